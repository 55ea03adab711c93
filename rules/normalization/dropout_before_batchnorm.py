from gradcheck.analysis.layer_groups import by_site
from gradcheck.analysis.wording import number, percent, quoted
from gradcheck.rules.normalization import GAP, evaluation_gap, gap_in_words, norm_names, over_batches
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, rule
from gradcheck.types.structure import Norm


@rule(
    "NORM004",
    up_to="warning",
    needs=("normalization", "graph", "probe"),
    limits={
        "shift": Limit(1.2, "times the variance", "dropout 0.1 after ReLU gives 1.16, 0.3 gives 1.63, 0.5 gives 2.47"),
        "harm": Limit(2.0, "times the variance", "MLPs on digits, 400 steps, held-out loss: 2.47 doubles it, 1.63 adds a fifth"),
    }
    | GAP,
)
def dropout_before_batchnorm(m: Measurement, limits: Limits) -> Verdict:
    """Dropout ahead of batch normalization: the variance it learns is not the one it meets in evaluation.

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
    `shift` 1.2: advice. A warning from `harm` 2.0 directly behind the dropout; below it, and further away, only when the trained
    copy's loss in evaluation mode is more than `evaluation-ratio` 1.5 times that with each batch's own statistics (dropout off
    both times) and `evaluation-margin` 0.1 of chance above it. Of nets that are trained against each other it is advice: a
    discriminator is not evaluated. The formula agrees with measured ratios to 1 %.

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
    norms = over_batches(m)
    fed = [n for n in norms if n.dropout is not None and n.tracks]
    if not fed:
        return []
    near = [n for n in fed if (n.dropout_shift or 0.0) > limits["shift"]]
    far = [n for n in fed if n.dropout_shift is None and _measured_shift(m, n) > limits["shift"]]
    severity: Severity = "info" if _has_rival(m) else "warning"
    unless: Severity = severity if evaluation_gap(m, limits) else "info"
    harmful = lambda group: any((n.dropout_shift or 0.0) > limits["harm"] for n in group)  # noqa: E731
    groups = [*by_site(near), *by_site(far)]
    return [_shift_finding(m, group, severity if harmful(group) else unless, limits) for group in groups]


def _has_rival(m: Measurement) -> bool:
    """Whether it is one of two nets that are trained against each other, which are used as they are trained."""
    return m.loop is not None and (m.loop.adversary is not None or m.loop.played_against)


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
        f"dropout {quoted(worst.dropout) if worst.dropout else 'of the model'} ({percent(worst.dropout_rate)}) feeds "
        f"{quoted(worst.layer)} {how}: in training it sees "
        f"{number(shift(worst))} times the variance of evaluation (limit {number(limits['shift'])}){others}: "
        f"evaluation divides by the wrong one{gap}"
    )
    remedy = Remedy("move-dropout", f"move the dropout behind {quoted(worst.layer)}, or behind the last batch normalization", "unsafe")
    return found(
        severity,
        message,
        layers=norm_names(group),
        location=worst.site,
        evidence=Evidence("variance in training over evaluation", shift(worst), limits["shift"], ">", "times", worst.layer),
        remedies=remedy,
    )
