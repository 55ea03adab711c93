"""DATA, continued: targets of a regression, labels of a classification. Not applicable to those that gradcheck made up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradcheck.analysis.convergence import on_its_way, start_and_end, training_outcome
from gradcheck.analysis.wording import BY_VALUE, SYNTHETIC, learns_clearly, number
from gradcheck.rules.outputs import REGRESSION_LOSSES
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

if TYPE_CHECKING:
    from gradcheck.types.location import Location
    from gradcheck.types.measurement import LabelFacts, Measurement

MET = (0.1, 10.0)  # spread of such an output, in the targets' standard deviations
FEWEST_TARGETS = 8
CLEARLY = 0.9  # of the loss of a constant prediction


@dataclass(frozen=True)
class Targets:
    """What a regression loss compares in the first step."""

    function: str
    site: Location | None
    count: int
    output_mean: float
    output_std: float
    mean: float
    std: float

    @property
    def met(self) -> bool:
        """The output has the targets' mean and scale from the start: the model scales it itself."""
        return abs(self.output_mean - self.mean) <= self.std and MET[0] * self.std <= self.output_std <= MET[1] * self.std


@rule(
    "DATA003",
    "unscaled-target",
    up_to="warning",
    needs=("losses", "data", "probe"),
    limits={
        "largest_std": Limit(10.0, "", "heuristic: the first gradients of a squared error grow with it"),
        "smallest_std": Limit(0.01, "", "heuristic: squared errors of 1e-4"),
        "offset": Limit(3.0, "times the std", "heuristic"),
        "large_mean": Limit(3.0, "", "heuristic: smaller offsets are learned by the output's bias within a few hundred steps"),
    },
    explains=("LOSS003", "CLIP001", "GRAD005"),
)
def unscaled_target(m: Measurement, limits: Limits) -> Verdict:
    """The targets of a regression are far from zero mean and unit scale.

    ## What it finds
    Regression targets in physical units: a standard deviation in the tens or of thousandths, or a mean far from 0.

    ## Why it matters
    An untrained output is about 0 with spread 1. Everything has to move to the targets first: Adam at 0.001 moves
    a bias by 0.001 a step, and a mean of 152 is 152 000 of them away, and the gradients of a squared error grow with the targets.

    ## How it is measured
    Mean and standard deviation of targets and outputs in the first step, at regression losses of torch and at differences of an output
    and a tensor of the batch.

    ## Limits and their sources
    A standard deviation above `largest-std` 10 or below `smallest-std` 0.01, or a mean beyond `offset` 3 standard deviations and
    `large-mean` 3: a warning, advice when the probe learns clearly. The offset alone is advice. Heuristics. Outputs that have the targets'
    mean and scale from the start are exempt: such a model scales them itself.

    ## When to ignore it
    When the probe was too short for the output to reach the targets, and you can wait.

    ## Example
    ```python
    loss = F.mse_loss(model(x), price)  # mean 250 000
    ```

    ## Use instead
    ```python
    loss = F.mse_loss(model(x), (price - price_mean) / price_std)
    ```

    ## References
    LeCun et al., "Efficient BackProp", 1998, sections 4.3 and 4.5.
    """
    if not m.data.given:
        return not_applicable(SYNTHETIC)
    targets = [t for t in _targets(m) if t.count >= FEWEST_TARGETS and t.std > 0 and math.isfinite(t.mean) and math.isfinite(t.std)]
    if not targets:
        return not_applicable("no regression loss with several different targets")
    findings: dict[Location | None, Finding] = {}
    for t in targets:
        finding = None if t.met else _unscaled_target(m, t, limits)
        if finding is not None:
            findings.setdefault(t.site, finding)
    return list(findings.values())


def _targets(m: Measurement) -> list[Targets]:
    by_torch = [
        Targets(c.function, c.site, math.prod(c.target_shape), c.input_mean, c.input_std, c.target_mean, c.target_std)
        for c in m.losses
        if c.function in REGRESSION_LOSSES and not c.target_made and c.target_mean is not None and c.target_std is not None
    ]
    by_hand = [
        Targets("the loss", d.site, math.prod(d.shape), d.output_mean, d.output_std, d.target_mean, d.target_std) for d in m.differences
    ]
    return by_torch + by_hand


def _below_chance(m: Measurement, t: Targets) -> bool:
    """Whether the probe got below the loss of the best constant prediction, for a loss whose formula is not known.

    With targets of standard deviation s the squared error falls from E = (difference of the means)^2 + std(output)^2 + s^2 to s^2,
    and a loss of power 1 from about sqrt(E) to s; the first loss tells which of the two it is.
    """
    start, end, _ = start_and_end(m.probe)
    error = (t.output_mean - t.mean) ** 2 + t.output_std**2 + t.std**2
    if not (start > 0 and end > 0 and math.isfinite(end)):
        return end <= 0
    squared = abs(math.log(start / error)) < abs(math.log(start / error**0.5))
    return end < CLEARLY * start * (t.std**2 / error) ** (1.0 if squared else 0.5)


def _unscaled_target(m: Measurement, t: Targets, limits: Limits) -> Finding | None:
    offset = abs(t.mean) / t.std
    arrived = learns_clearly(m) and (m.chance is not None or _below_chance(m, t))
    unknown = training_outcome(m) == "unknown" and not on_its_way(m.probe, m.chance)
    severity: Severity = "info" if arrived or unknown else "warning"
    if t.std > limits["largest_std"]:
        what = f"their standard deviation is {number(t.std)} (limit {number(limits['largest_std'])})"
        evidence = Evidence("standard deviation of the targets", t.std, limits["largest_std"], ">")
    elif t.std < limits["smallest_std"]:
        what = f"their standard deviation is {number(t.std)} (limit {number(limits['smallest_std'])})"
        evidence = Evidence("standard deviation of the targets", t.std, limits["smallest_std"], "<")
    elif offset > limits["offset"]:
        what = f"their mean {number(t.mean)} is {number(offset)} standard deviations from 0 (limit {number(limits['offset'])})"
        evidence = Evidence("mean of the targets over their standard deviation", offset, limits["offset"], ">")
        severity = severity if abs(t.mean) > limits["large_mean"] else "info"
    else:
        return None
    return found(
        severity,
        f"the targets of {t.function} are unscaled: {what}; the output starts with mean {number(t.output_mean)} and standard "
        f"deviation {number(t.output_std)}, and has to travel there before it learns what the inputs say",
        location=t.site,
        evidence=(
            evidence,
            Evidence("mean of the targets", t.mean, None, "="),
            Evidence("mean of the outputs before training", t.output_mean, None, "="),
        ),
        remedies=(
            Remedy("standardize-target", f"subtract {number(t.mean)} from the targets and divide them by {number(t.std)}", "safe"),
            Remedy("prior-bias", f"or at least set the bias of the output to the targets' mean {number(t.mean)}", "safe"),
        ),
    )


@rule(
    "DATA004",
    "degenerate-labels",
    up_to="error",
    needs=("data",),
    limits={
        "labels": Limit(16, "labels", "two balanced classes give 16 equal labels once in 32768 draws"),
        "imbalance": Limit(0.01, "of the most frequent class", "heuristic"),
        "variety": Limit(0.6, "of the classes expected in a batch", "heuristic: shuffled batches are within 10 % of what is expected"),
        "most_classes": Limit(100, "classes", "beyond it labels are tokens or the like, whose frequencies are uneven by nature"),
    },
    explains=("GRAD004",),
)
def degenerate_labels(m: Measurement, limits: Limits) -> Verdict:
    """The class labels hardly inform: one class, a vanishing class, or batches of one class each.

    ## What it finds
    Labels that are all of one class; classes with less than a hundredth of the samples of the largest one; and data in
    label order, so that a batch holds fewer classes than chance would give.

    ## Why it matters
    With one class the model learns a constant. A vanishing class is ignored at no cost to the loss. Sorted batches pull
    the model to one class after the other, and normalisation statistics with it.

    ## How it is measured
    Labels are counted over all batches of the scan, and by batch.

    ## Limits and their sources
    One class only is an error from `labels` 16 labels on, when the model has more than one output class. `imbalance` 0.01:
    the rarest class that occurs, over the most frequent one (heuristic). `variety` 0.6: the classes in a batch over what
    shuffled batches of the same labels would show. More than `most_classes` 100 classes, and labels for each token or
    pixel, are exempt.

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
    labels = m.data.labels
    if labels is None:
        return not_applicable("no class labels")
    total = sum(labels.counts)
    dense = total + labels.ignored > m.data.batches * m.data.batch_size or any(
        c.target_kind == "classes" and len(c.target_shape) > 1 for c in m.losses
    )
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


def _loss_site(m: Measurement) -> Location | None:
    return next((c.site for c in m.losses if c.target_kind == "classes" and c.site), None)


def _one_class(m: Measurement, labels: LabelFacts, total: int) -> Finding:
    return found(
        "error",
        f"all {total} labels of {m.data.batches} batches are class {labels.minimum} (of {labels.classes} outputs; "
        "at least 2 classes needed): the model learns to say that always",
        location=_loss_site(m),
        evidence=(Evidence("classes among the labels", 1, 2, "<"),),
        remedies=(Remedy("fix-labels", "check how labels are read; if the data are in label order, shuffle them"),),
        confirmed=BY_VALUE,
    )


def _imbalanced(m: Measurement, labels: LabelFacts, limits: Limits) -> Finding:
    rare = min((n, i) for i, n in enumerate(labels.counts) if n)
    often = max((n, -i) for i, n in enumerate(labels.counts))
    share = rare[0] / often[0]
    return found(
        "warning",
        f"class {rare[1]} has {rare[0]} labels, class {-often[1]} has {often[0]}: a share of {number(share)} "
        f"(limit {number(limits['imbalance'])}); the loss hardly notices whether the rare class is learned",
        location=_loss_site(m),
        evidence=(Evidence("labels of the rarest over the most frequent class", share, limits["imbalance"], "<"),),
        remedies=(Remedy("balance-classes", "weight the classes in the loss, or draw samples with a WeightedRandomSampler"),),
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
    return found(
        "warning",
        f"the data are not shuffled: {order}a batch holds {number(seen)} classes on average, shuffled ones would hold {number(expected)} "
        f"(limit {number(limits['variety'])} of that): steps pull towards one class after the other",
        location=_loss_site(m),
        evidence=(
            Evidence(
                "classes in a batch, over the number expected when shuffled",
                ratio,
                limits["variety"],
                "<" if ratio < limits["variety"] else "=",
            ),
        ),
        remedies=(Remedy("shuffle-data", "pass shuffle=True to the DataLoader, or shuffle the samples once", "safe"),),
    )


RULES = (unscaled_target, degenerate_labels)
