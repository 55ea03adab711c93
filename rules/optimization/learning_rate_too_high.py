import math

from gradcheck.analysis.convergence import (
    CLEAR_FALL,
    RELAPSED,
    any_learned,
    depends_on_order,
    experiment_outcome,
    relapse,
    relative_decrease,
    start_and_end,
    training_outcome,
)
from gradcheck.analysis.costs import learns_slowly
from gradcheck.analysis.curves import changed_at_once, first_jump
from gradcheck.analysis.update_sizes import outgrowth, update_ratio
from gradcheck.analysis.wording import number, optimizer_in_words, run_in_words
from gradcheck.rules.optimization import RATIOS, at_most_info, best_rate, not_judged, rate_finding, ratio_finding
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule
from gradcheck.types.training import Run

JUMP, SETTLED = 10.0, 5  # times the highest rate so far, after so many values: as log-rate-jumps


def step_evidence(m: Measurement, limits: Limits) -> list[Evidence]:
    """How large a step is: against the critical one, times sharpness (SGD), and how far the first moved the output (adaptive ones)."""
    found_out = []
    if m.critical is not None:
        found_out.append(Evidence("rate over the critical rate", m.critical.share, limits["critical"], ">", "at the first steps"))
    if m.sharpness is not None and not m.optimizer.adaptive:
        limit = limits["sharpness_momentum" if m.optimizer.momentum else "sharpness"]
        found_out.append(Evidence("rate times largest curvature of the loss", m.optimizer.lr * m.sharpness.value, limit, ">"))
    if m.functional_step is not None:
        found_out.append(Evidence("change of the output by the first step", m.functional_step, limits["first_step"], ">", "of its spread"))
    return [e for e in found_out if e.limit is not None and e.value > e.limit]


def finite_at_lower_rate(m: Measurement) -> Run | None:
    """A run at a lower rate that stayed finite for longer than the probe, if the probe's loss was finite at first."""
    if m.probe.ended != "non-finite" or not m.probe.losses or not math.isfinite(m.probe.losses[0]):
        return None
    lower = [r for r in m.experiments if (r.rate_factor or 1) < 1 and r.losses and r.ended in ("done", "budget", "learned")]
    longer = [r for r in lower if r.ended == "learned" or (len(r.losses) >= len(m.probe.losses) and math.isfinite(r.losses[-1]))]
    return max(longer, key=lambda r: r.rate_factor or 0, default=None)


def diverging(m: Measurement, limits: Limits) -> Finding:
    """The loss diverges, and nothing that was tried within the budget prevents it."""
    rise, tried = -relative_decrease(m.probe, m.chance), [r for r in m.experiments if r.rate_factor is not None]
    others = f"none of {len(tried)} other trainings, at other rates or in another order, learned" if tried else "no other rate was tried"
    jump = first_jump(m.course.rate.finite, JUMP, SETTLED, gap=1) if m.course is not None and m.course.rate is not None else None
    if jump is not None:
        others = f"the rate jumps to {number(jump[1])} at step {jump[0]:g}, {number(jump[1] / jump[2])} times the highest one before"
    message = f"the loss diverges: with {optimizer_in_words(m)}, {run_in_words(m.probe)}; {others}"
    rising = Evidence("rise of the loss in the probe", rise, limits["rise"], ">", "of the better of start and chance")
    lapsed = relapse(m.probe, m.chance)
    shown = lost_again(m, lapsed[0]) if lapsed is not None and rise <= limits["rise"] else rising
    evidence = (shown, *step_evidence(m, limits))
    advice = f"start from a hundredth of the rate, {number(m.optimizer.lr / 100)}, with warm-up"
    if jump is not None:
        advice = f"see what raises the rate at step {jump[0]:g}; before it, {number(jump[2])} was the highest one"
    remedies = Remedy("lower-learning-rate", advice, "advice")
    severity = at_most_info(m, "error")
    confirmed = f"by the probe: {run_in_words(m.probe)}"
    return found(severity, message, location=m.optimizer.site, evidence=evidence, remedies=remedies, confirmed=confirmed)


def relapsing(m: Measurement, lowest: float, step: int) -> Finding:
    """The loss had fallen, and rises again."""
    end = start_and_end(m.probe)[1]
    message = (
        f"what is learned is lost again: with {optimizer_in_words(m)} the loss had fallen to {number(lowest)} by step {step}, "
        f"and is {number(end)} after {len(m.probe.losses)}: steps of this size undo what earlier ones did"
    )
    remedies = Remedy("lower-learning-rate", f"try a tenth of the rate: {number(m.optimizer.lr / 10)}", "safe")
    severity = at_most_info(m, "info" if m.chance is None else "warning")
    return found(severity, message, location=m.optimizer.site, evidence=lost_again(m, lowest), remedies=remedies)


def lost_again(m: Measurement, lowest: float) -> Evidence:
    start, end = start_and_end(m.probe)[:2]
    won = (start if m.chance is None else min(start, m.chance)) - lowest
    return Evidence("share of the fall that is lost again", (end - lowest) / max(won, 1e-12), RELAPSED, ">", "of the fall")


def order_finding(m: Measurement) -> Finding:
    """The probe failed, but learned in another order: the rate is at the edge of what the model can take."""
    again = next(r for r in m.experiments if r.rate_factor == 1 and experiment_outcome(r, m) == "learns")
    message = (
        f"training depends on luck: with {optimizer_in_words(m)}, {run_in_words(m.probe)}; with the same batches in another order, "
        f"{run_in_words(again)}: the rate is at the edge of what this model can take"
    )
    evidence = Evidence("fall of the loss in the probe", relative_decrease(m.probe, m.chance), CLEAR_FALL, "<", "of the loss")
    remedies = Remedy("lower-learning-rate", f"try a third of the rate: {number(m.optimizer.lr / 3)}", "safe")
    return found(at_most_info(m, "warning"), message, location=m.optimizer.site, evidence=evidence, remedies=remedies)


def outgrown(m: Measurement, limits: Limits) -> Evidence | None:
    """The weights have left the scale that they started at, and the loss has not come far."""
    growth, gain = outgrowth(m) or (0.0, 0.0)
    if growth <= limits["growth"] or gain <= limits["gain"] or not learns_slowly(m):
        return None
    return Evidence("norm of the weights after the probe, of that before it, median", growth, limits["growth"], ">", "times")


MADE_BY_LARGE_STEPS = tuple("NUM001 ACT001 ACT002 ACT007 GRAD004 GRAPH008 LOSS005 CLIP001 CLIP002 OPT005 OPT007 OPT008".split())
LONG_RUNS = tuple("LOG002 LOG003 LOG004 LOG005 LOG007 WATCH001 WATCH002 WATCH003 WATCH004 WATCH006 WATCH007".split())  # likewise


@rule(
    "OPT001",
    up_to="error",
    needs=("parameters", "probe"),
    wants=("sharpness", "functional_step", "critical"),
    limits={
        "sharpness": Limit(16.0, "rate x sharpness", f"{RATIOS}: plain SGD diverges in 38 to 57 % of the runs beyond 8, 89 % beyond 64"),
        "sharpness_momentum": Limit(8.0, "rate x sharpness", f"{RATIOS}: with momentum 57 % diverge beyond 8, 96 % beyond 64"),
        "critical": Limit(1.0, "of the critical rate", "definition: the loss rises along the optimizer's own update"),
        "first_step": Limit(1.0, "of the output's spread", "calibration E14: failures 1.6 to 2.2, with warm-up at most 0.17"),
        "rise": Limit(1.0, "of the loss", "definition: the loss has doubled against the better of where it started and chance"),
        "update_ratio_info": Limit(0.1, "of the weight", f"{RATIOS}: beyond 0.1, 67 % diverge with momentum; the best is at 0.02"),
        "update_ratio_warning": Limit(0.3, "of the weight", f"{RATIOS}: beyond 0.3 most diverge with any optimizer"),
        "growth": Limit(8.0, "times", "33 workloads of benchmarks/predictions.py: at most 3.9 in what trains, but for a normed net (47)"),
        "gain": Limit(5.0, "rms x sqrt(inputs)", "the same: at most 1.8 in what trains, but for that net (27)"),
    },
    explains=(*MADE_BY_LARGE_STEPS, *LONG_RUNS),
)
def learning_rate_too_high(m: Measurement, limits: Limits) -> Verdict:
    """The optimizer's steps are larger than this model can take.

    ## What it finds
    Rates at which the loss diverges, turns non-finite or stays where it was, while the same optimizer learns at
    a lower rate; and updates that replace a large part of each weight in one step.

    ## Why it matters
    Too large a step leaves the region in which the gradient says anything: the loss jumps, units die, values overflow.

    ## How it is measured
    A short training with your optimizer; when it fails, the same start is trained again at lower and higher rates. A probe of fewer
    than 40 steps fails only when its loss is not finite or 100 times its start. The size of an update is ||update|| / ||weight||,
    the median over weight matrices and the measured steps 3 to 20; weights that start at zero are left out. After a failed probe,
    three more numbers say how large a step is: the rate over the least at which the loss rises along its own update (see
    `past-critical-rate`), the rate times the largest curvature of the loss at the start (SGD and kin), and how far the first step
    moves the output (adaptive ones).

    ## Limits and their sources
    An error: the probe diverges or stalls, and the best of the other rates that learn is a lower one; or
    the probe turns non-finite and a lower rate does not. When nothing that was tried learns, an error too
    if the loss diverges and rises by `rise`, to twice the better of its start and chance. A warning when
    the probe fails, and learns with its batches in another order. Otherwise, when the probe does not learn:
    updates above `update-ratio-warning` 30 % of the weight are a warning, above `update-ratio-info` 10 %
    advice. When it learns: advice above 30 %. Such updates are a warning, too, where they have made the weights `growth` 8
    times as large, and larger than `gain` 5 times what keeps a signal's size, while the loss has fallen by less than half.
    Beyond `sharpness` 16 (with momentum `sharpness-momentum` 8), `critical` 1 and `first-step` 1 the other numbers are
    evidence; alone they are none, since healthy nets pass 2, the limit of a quadratic loss. An optimizer that gradcheck
    assumed gets advice only. From 12 networks, three optimizers and 11 rates: the best ratio is 1.5 to 2 %, within 0.4
    decades, for all of them.

    ## When to ignore it
    When your schedule warms the rate up and the scan did not see it.

    ## Example
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ```

    ## References
    Smith 2017, Cyclical Learning Rates; Lewkowycz et al. 2020, The large learning rate phase of deep learning.
    """
    if reason := not_judged(m):
        return not_measured(reason)
    outcome, ratio = training_outcome(m), update_ratio(m)
    learns = outcome == "learns"
    if outcome in ("diverges", "stalls"):
        run = best_rate(m, higher=False) or finite_at_lower_rate(m)
        if run is not None:
            return [rate_finding(m, run, "error", "high", "lower-learning-rate", step_evidence(m, limits))]
    if depends_on_order(m):
        return [order_finding(m)]
    ran_away = outcome == "diverges" and m.probe.ended != "non-finite" and relative_decrease(m.probe, m.chance) < -limits["rise"]
    lapsed = relapse(m.probe, m.chance)
    if (ran_away or lapsed is not None) and changed_at_once(m):
        return []
    if not learns and (ran_away or lapsed is not None) and not any_learned(m):
        return [diverging(m, limits)]
    if lapsed is not None:
        return [relapsing(m, *lapsed)]
    grown = outgrown(m, limits)
    if ratio is None or ratio <= limits["update_ratio_info"] or (learns and ratio <= limits["update_ratio_warning"] and not grown):
        return []
    large = ratio > limits["update_ratio_warning"]
    limit = limits["update_ratio_warning" if large else "update_ratio_info"]
    severity: Severity = "warning" if grown or (large and not learns) else "info"
    return [ratio_finding(m, ratio, limit, severity, high=True, more=[grown] if grown else [])]
