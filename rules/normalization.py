"""Batch normalization that does not do what it is there for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gradcheck.analysis.wording import BY_VALUE, falls_short, layers_in_words, number, percent, probe_failure
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradcheck.types.finding import Finding, Severity
    from gradcheck.types.location import Location
    from gradcheck.types.measurement import Layer, Measurement
    from gradcheck.types.structure import Norm

NO_BATCH_NORM = "the model has no batch normalization"
CHANCE = Limit(0.9, "of chance", "random networks above it after 50 steps fail: precision 0.89 to 0.94")
GAP = {
    "evaluation_ratio": Limit(1.5, "times", "1400 digits, momentum 0.01, 75 steps: 5.7 times; momentum 0.1: none"),
    "evaluation_margin": Limit(0.1, "of chance", "heuristic: what counts as learning; a loss near zero doubles by accident"),
}


def batch_norms(m: Measurement) -> list[Norm]:
    return [n for n in m.norms if n.batch and n.raised is None]


def evaluation_gap(m: Measurement, limits: Limits) -> bool:
    """Whether the trained copy is far worse with the running statistics than with those of each batch."""
    s = m.normalization
    scale = m.chance or (m.probe.losses[0] if m.probe.losses else 0.0)
    margin = limits["evaluation_margin"] * abs(scale)
    return s is not None and s.evaluated > limits["evaluation_ratio"] * s.batch and s.evaluated > s.batch + margin


def useless_in_evaluation(m: Measurement, limits: Limits) -> bool:
    """Whether what was learned is gone in evaluation mode."""
    s = m.normalization
    return s is not None and m.chance is not None and evaluation_gap(m, limits) and s.evaluated >= limits["chance"] * m.chance


def gap_in_words(m: Measurement) -> str:
    s = m.normalization
    return f"loss {number(s.evaluated)} in evaluation mode, {number(s.batch)} with the statistics of each batch" if s else ""


def main_site(norms: Sequence[Norm | Layer]) -> Location | None:
    """The place that most of them come from, the first of equals."""
    counts = Counter(n.site for n in norms if n.site is not None)
    return counts.most_common(1)[0][0] if counts else None


def norm_names(norms: Sequence[Norm]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.layer for n in norms))


def norms_by_site(norms: Sequence[Norm]) -> list[list[Norm]]:
    groups: dict[Location | None, list[Norm]] = {}
    for n in norms:
        groups.setdefault(n.site, []).append(n)
    return list(groups.values())


# ------------------------------------------------------------------------------ batch statistics


@rule(
    "NORM003",
    "batchnorm-small-batch",
    up_to="error",
    needs=("normalization",),
    limits={
        "warning_values": Limit(16, "values per feature", "heuristic: the error of a variance over 16 values is 35 %"),
        "error_values": Limit(4, "values per feature", "of 2 values only the sign of their difference is left; torch refuses 1"),
        "chance": CHANCE,
    }
    | GAP,
)
def batchnorm_small_batch(m: Measurement, limits: Limits) -> Verdict:
    """Batch normalization over so few values that their mean and variance are noise.

    ## What it finds
    Batch normalizations in training mode whose statistics are taken over fewer than 16 values per feature, and
    batches that torch refuses because there is only one. Frozen normalizations and data that gradcheck made up
    are not judged.

    ## Why it matters
    A sample's output then depends on the few that it happens to share the batch with. The running statistics
    fit no batch, and evaluation differs from training. A last batch of one sample ends the epoch with an error.

    ## How it is measured
    Values per feature: samples times positions of each call in the first step. After the probe training, the
    trained copy's loss in evaluation mode is compared with its loss with each batch's own statistics, dropout
    off.

    ## Limits and their sources
    One value: an error. Fewer than `error-values` 4: a warning; an error when the probe training fails, or when
    the loss in evaluation mode is more than `evaluation-ratio` 1.5 times the other, `evaluation-margin` 0.1 of chance
    above it, and no better than `chance` 0.9 of a constant prediction's. Fewer than `warning-values` 16: a warning when the
    probe does not learn clearly or evaluation mode is that much worse, else advice. On 8x8 digits a batch of 2
    images (32 to 128 values per feature) cost less than 1 %.

    ## When to ignore it
    When gradients are exchanged between devices and the batch normalization is synchronised there.

    ## Example
    ```python
    DataLoader(dataset, batch_size=2)  # with nn.BatchNorm1d
    ```

    ## Use instead
    ```python
    DataLoader(dataset, batch_size=64, drop_last=True)  # or nn.GroupNorm, nn.LayerNorm
    ```

    ## References
    Wu and He 2018, Group Normalization; Summers and Dinneen 2020, Four Things Everyone Should Know.
    """
    if not any(n.batch for n in m.norms):
        return not_applicable(NO_BATCH_NORM)
    if not m.data.given:
        return not_applicable("the batches are gradcheck's own")
    if refused := [n for n in m.norms if n.raised is not None]:
        return [_refused_finding(m, refused[0])]
    few = [n for n in batch_norms(m) if n.of_batch and n.values is not None and n.values < limits["warning_values"]]
    if not few:
        return []
    severity, confirmed = _few_severity(m, min(n.values or 0.0 for n in few), limits)
    return [_few_finding(m, few, severity, confirmed, limits)]


def _few_severity(m: Measurement, values: float, limits: Limits) -> tuple[Severity, str]:
    gap = evaluation_gap(m, limits)
    if values >= limits["error_values"]:
        return ("warning" if gap or falls_short(m) else "info"), ""
    if failure := probe_failure(m):
        return "error", failure
    return ("error", f"by the trained copy: {gap_in_words(m)}") if useless_in_evaluation(m, limits) else ("warning", "")


def _few_finding(m: Measurement, few: list[Norm], severity: Severity, confirmed: str, limits: Limits) -> Finding:
    worst = min(few, key=lambda n: n.values or 0.0)
    values = worst.values or 0.0
    limit = limits["error_values" if values < limits["error_values"] else "warning_values"]
    measured = f" ({gap_in_words(m)})" if m.normalization else ""
    message = (
        f"{layers_in_words(norm_names(few))} take mean and variance over {number(values)} values per feature (limit {number(limit)}; "
        f"batches of {m.data.batch_size}): they are noise, and evaluation differs from training{measured}"
    )
    return found(
        severity,
        message,
        layers=norm_names(few),
        location=worst.site,
        evidence=(Evidence("values per feature", values, limit, "<", "", worst.layer),),
        remedies=_batch_remedies(m, values, limits),
        confirmed=confirmed,
    )


def _batch_remedies(m: Measurement, values: float, limits: Limits) -> tuple[Remedy, ...]:
    wanted = max(2, round(m.data.batch_size * limits["warning_values"] / max(values, 1e-9)))
    larger = Remedy("larger-batch", f"train on batches of at least {wanted} samples", "advice")
    other = Remedy("batch-free-normalization", "replace BatchNorm by GroupNorm or LayerNorm, which need no batch", "unsafe")
    return larger, other


def _refused_finding(m: Measurement, norm: Norm) -> Finding:
    """The batch that torch would not normalise."""
    number_of_batch = len(m.probe.losses) % max(1, m.data.batches)
    message = (
        f"batch {number_of_batch} leaves {norm.layer or 'the batch normalization'} 1 value per feature, of which there is no variance: "
        f"torch raises, and training ends in step {len(m.probe.losses)}"
    )
    drop = Remedy("drop-last", "give the DataLoader drop_last=True, or batches of at least 2 samples", "advice")
    other = Remedy("batch-free-normalization", "replace BatchNorm by GroupNorm or LayerNorm, which need no batch", "unsafe")
    evidence = (Evidence("values per feature", norm.values or 1.0, 2.0, "<", "", norm.layer or None),)
    return found("error", message, layers=(norm.layer,), location=norm.site, evidence=evidence, remedies=(drop, other), confirmed=BY_VALUE)


@rule(
    "NORM004",
    "dropout-before-batchnorm",
    up_to="warning",
    needs=("normalization", "graph", "probe"),
    limits={"shift": Limit(1.2, "times the variance", "dropout 0.1 after ReLU gives 1.16, 0.3 gives 1.62, 0.5 gives 2.46")} | GAP,
)
def dropout_before_batchnorm(m: Measurement, limits: Limits) -> Verdict:
    """Dropout ahead of batch normalization: the variance that it learns is not the one that it meets later.

    ## What it finds
    Batch normalizations that dropout reaches, directly or through at most two linear or conv layers and their
    activations.

    ## Why it matters
    Dropout raises the variance in training only. Evaluation divides by the variance of training, and every such
    layer shrinks the signal: test accuracy falls although the training loss looks fine.

    ## How it is measured
    Directly behind a dropout of rate p: r = 1 / (1 - p) + p / (1 - p) m^2 / Var, with mean and variance of each
    feature of the dropout's input in the first step. Further away: the running variance of the trained copy over
    the variance that the layer sees in evaluation mode, the median over features.

    ## Limits and their sources
    `shift` 1.2: a warning directly behind the dropout. Further away a warning only when the trained copy's loss
    in evaluation mode is more than `evaluation-ratio` 1.5 times that with each batch's own statistics (dropout off
    both times) and `evaluation-margin` 0.1 of chance above it; else advice. The formula agrees with measured ratios to 1 %.

    ## When to ignore it
    When the statistics are estimated again, in evaluation mode, after the training.

    ## Example
    ```python
    nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(64))
    ```

    ## Use instead
    ```python
    nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5))
    ```

    ## References
    Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift.
    """
    norms = [n for n in batch_norms(m) if n.of_batch]
    if not norms:
        return not_applicable(NO_BATCH_NORM)
    fed = [n for n in norms if n.dropout is not None and n.tracks]
    if not fed:
        return []
    near = [n for n in fed if (n.dropout_shift or 0.0) > limits["shift"]]
    far = [n for n in fed if n.dropout_shift is None and _measured_shift(m, n) > limits["shift"]]
    severity: Severity = "warning" if evaluation_gap(m, limits) else "info"
    return [_shift_finding(m, group, "warning", limits) for group in norms_by_site(near)] + [
        _shift_finding(m, group, severity, limits) for group in norms_by_site(far)
    ]


def _measured_shift(m: Measurement, norm: Norm) -> float:
    """Running variance over that in evaluation mode; where it was not measured, what centred inputs would give."""
    shifts = m.normalization.shifts if m.normalization else ()
    if norm.index is not None and norm.index < len(shifts) and shifts[norm.index] == shifts[norm.index]:
        return shifts[norm.index]
    return 1 / (1 - norm.dropout_rate)


def _shift_finding(m: Measurement, group: list[Norm], severity: Severity, limits: Limits) -> Finding:
    shift = lambda n: n.dropout_shift or _measured_shift(m, n)  # noqa: E731
    worst = max(group, key=shift)
    how = "directly" if worst.dropout_shift is not None else "through the layers between"
    others = f"; the same in {len(group) - 1} more" if len(group) > 1 else ""
    gap = f"; {gap_in_words(m)}" if m.normalization is not None and severity == "warning" else ""
    message = (
        f"dropout {worst.dropout or 'of the model'} ({percent(worst.dropout_rate)}) feeds {worst.layer} {how}: in training it sees "
        f"{number(shift(worst))} times the variance of evaluation (limit {number(limits['shift'])}){others}: "
        f"evaluation divides by the wrong one{gap}"
    )
    remedy = Remedy("move-dropout", f"move the dropout behind {worst.layer}, or behind the last batch normalization", "unsafe")
    return found(
        severity,
        message,
        layers=norm_names(group),
        location=worst.site,
        evidence=(Evidence("variance in training over evaluation", shift(worst), limits["shift"], ">", "times", worst.layer),),
        remedies=(remedy,),
    )


RULES = (batchnorm_small_batch, dropout_before_batchnorm)
