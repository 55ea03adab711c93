import math
import statistics
from collections.abc import Sequence

from gradcheck.analysis.wording import BY_VALUE, SYNTHETIC, number, probe_failure
from gradcheck.types.data import LabelFacts
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.location import Location
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, required, rule

UNEVEN = 2.0  # of the largest class over the smallest: below it weights say nothing of frequencies
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")


@rule(
    "DATA004",
    up_to="error",
    needs=("data",),
    limits={
        "labels": Limit(16, "labels", "two balanced classes give 16 equal labels once in 32768 draws"),
        "imbalance": Limit(0.01, "of the most frequent class", "heuristic"),
        "majority": Limit(0.9, "of the labels", "heuristic: a constant prediction is right that often"),
        "samples": Limit(100, "samples", "a class in one of 20 images is missed in so many once in 170 draws"),
        "proportion": Limit(0.25, "of the exponent 1", "heuristic: weights by frequency have 1, by its inverse -1"),
        "variety": Limit(0.6, "of the classes expected in a batch", "heuristic: shuffled batches are within 10 % of what is expected"),
        "most_classes": Limit(100, "classes", "beyond it labels are tokens or the like, whose frequencies are uneven by nature"),
    },
    explains=("OPT001", "LOSS005"),
)
def degenerate_labels(m: Measurement, limits: Limits) -> Verdict:
    """The class labels carry little information: a single class, a class that hardly occurs, or batches of one class each.

    ## What it finds
    Labels that are all of one class; classes with less than a hundredth of the samples of the largest one; and data in
    label order, so that a batch holds fewer classes than chance would give. A discriminator that is given one target for all. Class weights
    that are proportional to the frequencies, in place of their inverse.

    ## Why it matters
    With one class the model learns a constant. A class that hardly occurs can be ignored at no cost to the loss. Sorted batches pull
    the model towards one class after another, and normalization statistics with it.

    ## How it is measured
    Labels are counted over all batches of the scan, and by batch.

    ## Limits and their sources
    One class only is an error from `labels` 16 labels on, when the model has more than one output class. `imbalance` 0.01:
    the rarest class that occurs, over the most frequent one (heuristic); a warning where the most frequent one has
    `majority` 0.9 of all labels (heuristic), else info: weights for one of many classes cost accuracy on the others.
    `variety` 0.6: the classes in a batch over what shuffled batches of the same labels would show; an error where the probe
    training failed. More than `most-classes` 100 classes, and labels for each token or pixel, are exempt,
    but for a single class in all of `samples` 100 samples. Weights whose logarithms rise with those of the frequencies by 1, within
    `proportion` 0.25, are a warning. One target in all
    calls of a binary cross entropy, at least two of one net that is trained, is an error: the same output is best for all.

    ## When to ignore it
    When imbalance is met by class weights or a sampler that this scan did not see, or when only the first part of a data
    set was scanned.

    ## Example
    ```python
    loader = DataLoader(dataset, batch_size=32)
    ```

    ## Use instead
    ```python
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    ```

    ## References
    PyTorch documentation: `torch.utils.data.DataLoader`, `WeightedRandomSampler`.
    """
    if not m.data.given:
        return not_applicable(SYNTHETIC)
    if _is_told_the_same(m):
        return [_told_the_same(m.losses)]
    weighted = [f for f in (_by_frequency(m, call, limits["proportion"]) for call in m.losses) if f is not None][:1]
    if weighted:
        return weighted
    labels = required(m.data.labels, not_applicable("no class labels"))
    total = sum(labels.counts)
    dense = total + labels.ignored > m.data.batches * m.data.batch_size or any(
        c.target_kind == "classes" and len(c.target_shape) > 1 for c in m.losses
    )
    samples = m.data.batches * m.data.batch_size
    if dense and labels.classes > 1 and sum(n > 0 for n in labels.counts) == 1 and samples >= limits["samples"]:
        return [_one_class(m, labels, total)]
    if labels.classes > limits["most_classes"] or dense:
        return not_applicable("labels of tokens, pixels or very many classes")
    if total < limits["labels"]:
        return not_applicable(f"{total} labels are too few to judge")
    present = [n for n in labels.counts if n]
    if len(present) == 1:
        return [_one_class(m, labels, total)] if labels.classes > 1 else []
    findings = [_imbalanced(m, labels, limits)] if min(present) < limits["imbalance"] * max(present) else []
    unshuffled = _unshuffled(m, labels, total, limits)
    return findings + ([unshuffled] if unshuffled else [])


def _is_told_the_same(m: Measurement) -> bool:
    """Whether the loss is made of verdicts of one net that is trained, over several batches, and all have one target."""
    trained = {p.layer for p in m.parameters if p.trainable}
    verdicts = {(c.producer_layer, c.target_min, c.target_max) for c in m.losses if c.function in BINARY}
    layer, low, high = next(iter(verdicts), ("", None, None))
    return len(verdicts) == 1 and len(m.losses) > 1 and all(c.function in BINARY for c in m.losses) and layer in trained and low == high


def _told_the_same(calls: Sequence[LossCall]) -> Finding:
    told = calls[0].target_min or 0.0
    return found(
        "error",
        f"all targets of the {len(calls)} calls of {calls[0].function} are {number(told)} (at least 2 different ones needed): "
        f"what is judged makes no difference, and the model learns to say {number(told)} always",
        location=calls[-1].site,
        evidence=Evidence("different targets", 1, 2, "<", f"in {len(calls)} calls"),
        remedies=Remedy("fix-labels", "give what the model is to tell apart different targets: 1 to what is real, 0 to what is made"),
        confirmed=BY_VALUE,
    )


def _by_frequency(m: Measurement, call: LossCall, limit: float) -> Finding | None:
    """Class weights that are proportional to how often the classes occur. None where they are not, or where all occur about as often."""
    labels, weights, share = m.data.labels, call.class_weights, call.target_mean
    counts: Sequence[float] = ()
    if len(weights) == 1 and share is not None and 0 < share < 1 and call.function == BINARY[1]:
        weights, counts = (1.0, *weights), (1 - share, share)
    elif labels is not None and len(weights) == len(labels.counts):
        counts = labels.counts
    pairs = [(math.log(c), math.log(w)) for c, w in zip(counts, weights, strict=False) if c > 0 and w > 0]
    if len(pairs) < 2 or max(c for c, _ in pairs) - min(c for c, _ in pairs) < math.log(UNEVEN):
        return None
    frequency, weight = zip(*pairs, strict=True)
    exponent = statistics.linear_regression(frequency, weight).slope
    if abs(exponent - 1) > limit or statistics.correlation(frequency, weight) < 1 - limit / 2:
        return None
    often = max(range(len(counts)), key=lambda i: counts[i])
    return found(
        "warning",
        f"the class weights of {call.function} grow with how often a class occurs, with the power {number(exponent)} of its frequency "
        f"(limit {number(1 - limit)}): class {often}, with {number(100 * counts[often] / sum(counts))} % of the labels, weighs the most, "
        "and the rare classes are learned even less than without weights",
        location=call.site,
        evidence=(Evidence("power of the frequency that the weights follow", exponent, 1 - limit, ">="),),
        remedies=(Remedy("balance-classes", "weight by the inverse: weight = count.sum() / count; pos_weight = negatives / positives"),),
    )


def _loss_site(m: Measurement) -> Location | None:
    return next((c.site for c in m.losses if c.target_kind == "classes" and c.site), None)


def _one_class(m: Measurement, labels: LabelFacts, total: int) -> Finding:
    return found(
        "error",
        f"all {total} labels of {m.data.batches} batches are class {labels.minimum} (of {labels.classes} outputs; "
        "at least 2 classes needed): the model learns to predict that class always",
        location=_loss_site(m),
        evidence=Evidence("classes among the labels", 1, 2, "<"),
        remedies=Remedy(
            "fix-labels",
            "check how labels are read: divided by 255 and made whole numbers, they become 0; if the data are in label order, shuffle them",
        ),
        confirmed=BY_VALUE,
    )


def _imbalanced(m: Measurement, labels: LabelFacts, limits: Limits) -> Finding:
    rare = min((n, i) for i, n in enumerate(labels.counts) if n)
    often = max((n, -i) for i, n in enumerate(labels.counts))
    share = rare[0] / often[0]
    return found(
        "warning" if often[0] >= limits["majority"] * sum(labels.counts) else "info",
        f"class {rare[1]} has {rare[0]} labels, class {-often[1]} has {often[0]}: a share of {number(share)} "
        f"(limit {number(limits['imbalance'])}); the loss hardly notices whether the rare class is learned",
        location=_loss_site(m),
        evidence=Evidence("labels of the rarest over the most frequent class", share, limits["imbalance"], "<"),
        remedies=Remedy("balance-classes", "weight the classes in the loss, or draw samples with a WeightedRandomSampler"),
    )


def _unshuffled(m: Measurement, labels: LabelFacts, total: int, limits: Limits) -> Finding | None:
    if len(labels.classes_per_batch) < 2:
        return None
    size = total / len(labels.classes_per_batch)
    expected = sum(1 - (1 - n / total) ** size for n in labels.counts)
    seen = sum(labels.classes_per_batch) / len(labels.classes_per_batch)
    ratio = seen / expected
    if size < 2 or not (labels.sorted or ratio < limits["variety"]):
        return None
    order = "labels come in order; " if labels.sorted else ""
    failure = probe_failure(m)
    return found(
        "error" if failure else "warning",
        f"the data are not shuffled: {order}a batch holds {number(seen)} classes on average, shuffled ones would hold {number(expected)} "
        f"(limit {number(limits['variety'])} of that): steps pull towards one class after the other",
        location=_loss_site(m),
        evidence=Evidence(
            "classes in a batch, over the number expected when shuffled",
            ratio,
            limits["variety"] if ratio < limits["variety"] else None,
            "<",
        ),
        remedies=Remedy("shuffle-data", "pass shuffle=True to the DataLoader, or shuffle the samples once", "safe"),
        confirmed=failure,
    )
