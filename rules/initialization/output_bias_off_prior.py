import math
from collections.abc import Sequence

from gradcheck.analysis.wording import number, percent
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.location import Location
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

SHOWN = 4  # classes whose bias is written out


@rule(
    "INIT008",
    up_to="info",
    needs=("losses", "data"),
    limits={
        "gain": Limit(0.1, "of log(classes)", "heuristic: the biases alone save a tenth of the loss at chance"),
        "reached": Limit(0.5, "of the gain", "heuristic: an output that starts with half of the gain knows the class frequencies"),
        "labels": Limit(64, "labels", "heuristic: fewer give no frequencies"),
        "most_classes": Limit(100, "classes", "beyond it labels are tokens or the like, whose frequencies are uneven by nature"),
    },
)
def output_bias_off_prior(m: Measurement, limits: Limits) -> Verdict:
    """The classes are imbalanced, and the output starts as if they were not.

    ## What it finds
    Classifiers on imbalanced classes whose loss starts at that of equal probabilities.

    ## Why it matters
    The first steps do nothing but learn the class frequencies, with large gradients that all point in one direction. With
    a rare class that is enough to make a detector diverge.

    ## How it is measured
    The gain is log(classes) minus the entropy of the class frequencies over all batches of the scan, times the weights of the
    classes: what the best constant prediction saves. It is compared with how far the first loss lies below log(classes).

    ## Limits and their sources
    Advice when the gain is above `gain` 0.1 of log(classes) and less than `reached` 0.5 of it is there at the start. At least
    `labels` 64 labels and at most `most-classes` 100 classes are judged. Heuristics.

    ## When to ignore it
    When the losses of the samples are weighted by hand, so that the classes count alike.

    ## Example
    ```python
    self.head = nn.Linear(256, 2)  # one sample in a hundred is positive
    ```

    ## Use instead
    ```python
    self.head = nn.Linear(256, 2)
    with torch.no_grad():
        self.head.bias.copy_(torch.tensor([0.99, 0.01]).log())
    ```

    ## References
    Lin et al. 2017, Focal Loss for Dense Object Detection, section 3.3; Karpathy 2019, A Recipe for Training Neural Networks.
    """
    if not m.data.given:
        return not_applicable("the data were made up by gradcheck")
    if m.pretrained:
        return not_applicable("the model was trained before")
    call = next((c for c in m.losses if c.value is not None and _frequencies(m, c, limits)), None)
    if call is None or call.value is None:
        return not_applicable("no loss over classes with enough labels")
    shares = _frequencies(m, call, limits)
    level = math.log(len(shares))
    gain = level + sum(p * math.log(p) for p in shares if p > 0)
    won = level - call.value
    if gain <= limits["gain"] * level or won > limits["reached"] * gain:
        return []
    head = next((x for x in reversed(m.layers) if x.head), None)
    site: Location | None = head.site if head else call.site
    share = percent(max(shares))
    largest = f"the heaviest has {share} of the weight" if call.class_weights else f"the most frequent has {share}"
    return [
        found(
            "info",
            f"the classes are imbalanced ({largest}), and the first loss is {number(call.value)}: "
            f"an output that starts at their frequencies has {number(level - gain)}, less by {percent(gain / level)} of log({len(shares)}) "
            f"(limit {percent(limits['gain'])}); the first steps learn only that",
            layers=(head.name,) if head else (),
            location=site,
            evidence=(
                Evidence("what a bias at the class frequencies saves, over log(classes)", gain / level, limits["gain"], ">"),
                Evidence("first loss", call.value, None, "="),
            ),
            remedies=Remedy("prior-bias", _cure(call, shares), "safe"),
        )
    ]


def _frequencies(m: Measurement, call: LossCall, limits: Limits) -> Sequence[float]:
    """Share of each class, () where the loss has none or too few labels are known."""
    labels = m.data.labels
    if call.function in ("cross_entropy", "nll_loss") and call.target_kind == "classes" and labels is not None:
        total = sum(labels.counts)
        dense = total > m.data.batches * m.data.batch_size
        if 2 <= labels.classes <= limits["most_classes"] and total >= limits["labels"] and not dense:
            weights = call.class_weights if len(call.class_weights) >= len(labels.counts) else (1.0,) * len(labels.counts)
            weighted = [n * w for n, w in zip(labels.counts, weights, strict=False)]
            return [n / sum(weighted) for n in weighted] if sum(weighted) > 0 else ()
    if call.function.startswith("binary_cross_entropy") and call.target_mean is not None and 0 < call.target_mean < 1:
        whole = call.target_min == 0 and call.target_max == 1 and not call.class_weights
        single = len(call.target_shape) == 1 or call.target_shape[1:] == (1,)
        if whole and single and math.prod(call.target_shape) >= limits["labels"]:
            return [1 - call.target_mean, call.target_mean]
    return ()


def _cure(call: LossCall, shares: Sequence[float]) -> str:
    if call.function.startswith("binary"):
        return f"set the bias of the output to log(p / (1 - p)) = {number(math.log(shares[1] / shares[0]))}"
    known = [number(math.log(p)) if p > 0 else "-10" for p in shares[:SHOWN]]
    more = ", ..." if len(shares) > SHOWN else ""
    return f"set the bias of the output to the logarithm of the class frequencies: {', '.join(known)}{more}"
