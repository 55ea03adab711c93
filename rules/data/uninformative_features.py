from gradcheck.analysis.wording import SYNTHETIC, percent
from gradcheck.rules.data import FLOATING
from gradcheck.types.data import InputFacts
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "DATA005",
    up_to="info",
    needs=("data",),
    limits={
        "duplicate_samples": Limit(0.05, "of the samples", "heuristic: a few equal samples are normal, many point to a mistake in loading")
    },
)
def uninformative_features(m: Measurement, limits: Limits) -> Verdict:
    """Features that never change or repeat another one, and samples that occur again and again.

    ## What it finds
    Columns of tables that are constant, or that are another column scaled and shifted; and inputs of which many samples are
    exactly equal, with the number of those that carry another label than their twin.

    ## Why it matters
    Such columns cost weights and say nothing; a column that occurs twice gets twice the learning rate. Equal samples in training and
    validation data make the validation look better than it is, and twins with different labels cannot both be learned.

    ## How it is measured
    Over all batches of the scan, for float inputs of up to four million numbers and at least 16 samples. Columns count as repeated when
    they agree to a millionth of their standard deviation after scaling, and differ from their median in 8 samples or more.

    ## Limits and their sources
    One constant or repeated column counts. `duplicate-samples` 0.05: share of samples that are exactly equal to another one
    (heuristic). All of it is advice.

    ## When to ignore it
    When the scanned batches are a small part of the data, or samples are drawn with replacement.

    ## Example
    ```python
    frame["price_cents"] = 100 * frame["price"]
    ```

    ## Use instead
    ```python
    frame = frame.loc[:, frame.nunique() > 1].drop(columns="price_cents")
    ```

    ## References
    None.
    """
    if not m.data.given:
        return not_applicable(SYNTHETIC)
    judged = [x for x in m.data.inputs if x.dtype.removeprefix("torch.").startswith(FLOATING) and len(x.shape) > 1]
    if not judged:
        return not_applicable("no input of floating dtype with features")
    alike: dict[tuple[int, ...], list[InputFacts]] = {}
    for x in judged:
        alike.setdefault(x.shape, []).append(x)
    return [f for group in alike.values() if (f := _uninformative(group, limits)) is not None]


def _uninformative(group: list[InputFacts], limits: Limits) -> Finding | None:
    """Inputs of one shape, such as both images of a pair, come from one source: what is true of all of them is said once."""
    x = min(group, key=lambda one: one.constant_features + one.duplicate_features)
    share = x.duplicate_samples / x.samples if x.samples else 0.0
    texts, evidence, cures = [], [], []
    if x.constant_features:
        texts.append(f"{x.constant_features} of its {x.shape[-1]} features never change")
        evidence.append(Evidence("constant features", x.constant_features, 0, ">"))
        cures.append(Remedy("drop-features", f"drop the {x.constant_features} constant features, unless other data vary there", "advice"))
    if x.duplicate_features:
        texts.append(f"{x.duplicate_features} of its {x.shape[-1]} features repeat another one, scaled or shifted")
        evidence.append(Evidence("repeated features", x.duplicate_features, 0, ">"))
        cures.append(Remedy("drop-features", f"drop the {x.duplicate_features} repeated features", "advice"))
    if share > limits["duplicate_samples"]:
        conflicts = f", {x.conflicting_samples} of them with another label" if x.conflicting_samples else ""
        texts.append(
            f"{x.duplicate_samples} of {x.samples} samples equal another one{conflicts} (limit {percent(limits['duplicate_samples'])})"
        )
        evidence.append(Evidence("samples that equal another one", share, limits["duplicate_samples"], ">", "of the samples"))
        cures.append(
            Remedy("drop-duplicates", f"find out where the {x.duplicate_samples} repeated samples come from, and drop them", "advice")
        )
    if not texts:
        return None
    return found(
        "info",
        f"input {' and '.join(one.name for one in group)} {list(x.shape)}: {'; '.join(texts)}: that adds nothing to learn from",
        evidence=evidence,
        remedies=cures,
    )
