import math

from gradcheck.analysis.wording import BY_VALUE, SYNTHETIC, number
from gradcheck.types.data import InputFacts
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule


@rule(
    "DATA002",
    up_to="error",
    needs=("data",),
    explains="NUM001 NUM002 LOSS002 LOSS003 LOSS005 OPT001 OPT007 OPT002 GRAD001 GRAD002 GRAD004 ACT001 ACT002 ACT004".split(),
)
def non_finite_input(m: Measurement, limits: Limits) -> Verdict:
    """The data hold NaN or infinity.

    ## What it finds
    Inputs or targets with entries that are not finite; it names batch, sample and feature of the first one.

    ## Why it matters
    One such entry turns the loss of its batch, and with the next step every weight, into NaN.

    ## How it is measured
    The entries of each input, and the targets of the loss, are checked over all batches of the scan.

    ## Limits and their sources
    None: one entry counts. It is advice when the probe saw that batch and its loss stayed finite, because the model then
    handles missing values or masks itself.

    ## When to ignore it
    When missing values are marked by NaN on purpose and the model replaces them.

    ## Example
    ```python
    x = torch.tensor(frame.values)  # empty cells are NaN
    ```

    ## Use instead
    ```python
    x = torch.tensor(frame.fillna(frame.mean()).values)
    ```

    ## References
    PyTorch documentation: `torch.nan_to_num`, `torch.isfinite`.
    """
    if not m.data.given:
        return not_applicable(SYNTHETIC)
    if any(e.direction == "loop" for e in m.non_finite):
        return []  # the loop made them: non-finite says where
    findings = [_non_finite(m, x) for x in m.data.inputs if x.non_finite]
    known = {x.shape for x in m.data.inputs if x.non_finite}
    return findings + [_non_finite_target(c) for c in m.losses if _is_non_finite(c) and c.target_shape not in known]


def _non_finite(m: Measurement, x: InputFacts) -> Finding:
    batch = x.first_non_finite[0] if x.first_non_finite else 0
    harmless = len(m.probe.losses) > batch and m.probe.ended != "non-finite" and all(map(math.isfinite, m.probe.losses))
    entries = "1 entry" if x.non_finite == 1 else f"{x.non_finite} entries"
    meaning = (
        "the loss stays finite, so the model seems to handle them" if harmless else "the loss of that batch, then every weight, becomes NaN"
    )
    return found(
        "info" if harmless else "error",
        f"input {x.name} holds NaN or infinity in {entries} (limit 0), first at {_index(x)}: {meaning}",
        evidence=Evidence("non-finite entries of the input", x.non_finite, 0, ">"),
        remedies=Remedy("clean-data", "drop these samples, or replace the entries, by the feature's mean for example", "advice"),
        confirmed=BY_VALUE,
    )


def _index(x: InputFacts) -> str:
    """ "batch 0, sample 3, feature 5"."""
    if not x.first_non_finite:
        return "an unknown place"
    batch, *inside = x.first_non_finite
    words = [f"batch {batch}"]
    if inside:
        words.append(f"sample {inside[0]}")
    if len(inside) == 2:
        words.append(f"feature {inside[1]}")
    elif len(inside) > 2:
        words.append(f"index {tuple(inside[1:])}")
    return ", ".join(words)


def _is_non_finite(call: LossCall) -> bool:
    return any(x is not None and not math.isfinite(x) for x in (call.target_mean, call.target_min, call.target_max))


def _non_finite_target(call: LossCall) -> Finding:
    worst = next(x for x in (call.target_mean, call.target_min, call.target_max) if x is not None and not math.isfinite(x))
    mean = call.target_mean if call.target_mean is not None else worst
    return found(
        "error",
        f"the target {list(call.target_shape)} of {call.function} holds NaN or infinity (its mean is {number(mean)}; "
        "limit: finite): the loss, then every weight, becomes NaN",
        location=call.site,
        evidence=Evidence("mean of the target", worst, None, "="),
        remedies=Remedy("clean-data", "drop the samples without a target, or mask them out of the loss", "advice"),
        confirmed=BY_VALUE,
    )
