from gradcheck.analysis.wording import layers_in_words, number, percent
from gradcheck.rules.normalization import GAP, evaluation_gap, gap_in_words, main_site, norm_names, over_batches
from gradcheck.rules.normalization.batchnorm_small_batch import CHANCE, useless_in_evaluation
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, rule
from gradcheck.types.structure import Norm


@rule(
    "NORM006",
    up_to="warning",
    needs=("normalization", "graph"),
    limits={
        "lowest": Limit(0.01, "weight of the newest batch", "EfficientNet and others train with 0.01"),
        "highest": Limit(0.9, "weight of the newest batch", "heuristic: other libraries' 0.9 to 0.999 is torch's 0.1 to 0.001"),
        "chance": CHANCE,
        "residue": Limit(0.05, "of the initial statistics", "1400 digits, momentum 0.01, 75 steps: 0.47 left, loss 0.41 instead of 0.07"),
    }
    | GAP,
)
def batchnorm_momentum(m: Measurement, limits: Limits) -> Verdict:
    """Running statistics that never move, hold the last batch only, or move too slowly for the run.

    ## What it finds
    Batch normalizations in training mode with momentum 0, with momentum 1 or near it, and with one so small
    that the running statistics are still close to their initial values.

    ## Why it matters
    Training does not use the running statistics; evaluation uses nothing else. In torch, momentum is the weight
    of the newest batch, 0.1 by default. Elsewhere it is the weight of the past: 0.9 or 0.99 there is 0.1 or 0.01
    here.

    ## How it is measured
    The momentum that the normalization is called with. After the probe training, the trained copy's loss in
    evaluation mode against its loss with each batch's own statistics, dropout off.

    ## Limits and their sources
    0 or 1: a warning. `highest` 0.9 and more: advice; a warning when the loss in evaluation mode is more than
    `evaluation-ratio` 1.5 times the other, `evaluation-margin` 0.1 of chance above it, and no better than `chance` 0.9
    of a constant prediction's (three published networks have 0.99 and more, and train). Below `lowest` 0.01, with
    more than `residue` 5 % of the initial statistics left after the probe: a warning when evaluation mode is 1.5
    times and 0.1 of chance worse, else advice.

    ## When to ignore it
    When the statistics are estimated again before evaluation, or when the training is so long that a momentum
    below 0.01 settles.

    ## Example
    ```python
    nn.BatchNorm2d(64, momentum=0.99)  # as in Keras
    ```

    ## Use instead
    ```python
    nn.BatchNorm2d(64, momentum=0.01)
    ```

    ## References
    torch.nn.BatchNorm2d, note on momentum; Wu and Johnson 2021, Rethinking "Batch" in BatchNorm.
    """
    norms = over_batches(m)
    kept = [n for n in norms if n.tracks and n.momentum is not None]
    groups = [[n for n in kept if n.momentum == value] for value in dict.fromkeys(n.momentum for n in kept)]
    return [_momentum_finding(m, group, *said, limits) for group in groups if (said := _momentum(m, group[0], limits))]


def _momentum(m: Measurement, norm: Norm, limits: Limits) -> tuple[Severity, str, Evidence] | None:
    """Severity, what it means, and the number beside its limit; None for a momentum that is fine."""
    value, gap = norm.momentum or 0.0, evaluation_gap(m, limits)
    if value <= 0:
        severity: Severity = "warning" if norm.fresh else "info"
        return severity, "the running statistics never move", Evidence("momentum", value, 0.0, "<=", "", norm.layer)
    if value >= limits["highest"]:
        severity = "warning" if value >= 1 or useless_in_evaluation(m, limits) else "info"
        means = f"the running statistics are those of the last batch, to {percent(value)}"
        return severity, means, Evidence("momentum", value, limits["highest"], ">=", "", norm.layer)
    residue = (1 - value) ** m.steps
    if value < limits["lowest"] and residue > limits["residue"] and norm.fresh:
        means = f"after the {m.steps} steps of the probe {percent(residue)} of the initial statistics are left"
        return "warning" if gap else "info", means, Evidence("momentum", value, limits["lowest"], "<", "", norm.layer)
    return None


def _momentum_finding(m: Measurement, group: list[Norm], severity: Severity, means: str, evidence: Evidence, limits: Limits) -> Finding:
    value, name = evidence.value, layers_in_words(norm_names(group))
    gap = f"; {gap_in_words(m)}" if m.normalization is not None else ""
    message = f"momentum {number(value)} of {name} (limit {number(evidence.limit or 0.0)}): {means}{gap}, and evaluation uses nothing else"
    swapped = f", or {number(1 - value)} if {number(value)} was meant as the weight of the past" if limits["highest"] <= value < 1 else ""
    remedy = Remedy("default-momentum", f"set momentum to 0.1, torch's default{swapped}", "advice")
    return found(severity, message, layers=norm_names(group), location=main_site(group), evidence=evidence, remedies=remedy)
