import math
from itertools import pairwise

from gradcheck.analysis.curves import first_jump
from gradcheck.analysis.wording import number, percent
from gradcheck.rules.log import at_step, look, recorded
from gradcheck.types.finding import Evidence, Finding
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule
from gradcheck.types.training import LogColumn

EACH_STEP = 1.0  # a watched run keeps both sides of every jump; between two measured steps a rate may rise in many small ones


@rule(
    "LOG005",
    up_to="warning",
    needs=("log",),
    limits={
        "jump": Limit(10, "times", "heuristic: schedules fall by a factor of ten at once, and rise smoothly"),
        "fall": Limit(100, "times", "heuristic: two steps of a usual schedule in one"),
        "points": Limit(5, "points", "heuristic: a warm-up may begin with large factors"),
        "idle": Limit(0.1, "of the run", "heuristic: the last values of a schedule may be 0"),
    },
    explains=("LOG002", "LOG003", "LOG004", "WATCH001", "WATCH002", "WATCH003", "WATCH004", "WATCH006", "WATCH007"),
)
def log_rate_jumps(m: Measurement, limits: Limits) -> Verdict:
    """The logged learning rate jumps, or is zero while the training goes on.

    ## What it finds
    A rate that rises at once far above all rates before; one that falls at once by more than two steps of a usual schedule, long before
    the end; and one that is zero for a part of the run.

    ## Why it matters
    A rate that jumps up throws the weights out of what they have learned. One that is zero, or next to it, lets the run go on for nothing.

    ## How it is measured
    From neighbouring values of the rate's column; in a watched run from neighbouring steps.

    ## Limits and their sources
    `jump` (10 times the highest rate so far, after `points` = 5 values), `fall` (100 times at once, with more than `idle` of
    the run to go), `idle` (zero over the last 10 % of the run).

    ## When to ignore it
    When a second stage of the training begins there on purpose.

    ## Example
    ```python
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.001)
    ```

    ## Use instead
    ```python
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)
    ```

    ## References
    PyTorch documentation: `torch.optim`, "How to adjust learning rate".
    """
    log = recorded(m)
    curve = required(log.rate, not_applicable("the log has no learning rate")).finite
    if len(curve.values) <= limits["points"]:
        return not_measured(f"{len(curve.values)} values of the learning rate are too few")
    last = log.last or 1.0
    findings = (_rise(m, curve, limits) or _fall(m, curve, last, limits), _idle(m, curve, last, limits))
    return [f for f in findings if f is not None]


def _rise(m: Measurement, curve: LogColumn, limits: Limits) -> Finding | None:
    jump = first_jump(curve, limits["jump"], int(limits["points"]), math.inf if m.log is not None else EACH_STEP)
    if jump is None:
        return None
    step, value, peak = jump
    message = (
        f"the learning rate ({curve.name}) jumps to {number(value)} at {at_step(step)}, {number(value / peak)} times the highest "
        f"one before (limit {number(limits['jump'])})"
    )
    evidence = Evidence("rate over the highest one before", value / peak, limits["jump"], ">", "times")
    return found("warning", message, evidence=evidence, remedies=look(m, "see what steps the scheduler, and how often"))


def _fall(m: Measurement, curve: LogColumn, last: float, limits: Limits) -> Finding | None:
    points = list(zip(curve.steps, curve.values, strict=True))
    for (_, before), (step, value) in pairwise(points):
        if 0 < value * limits["fall"] < before and last - step > limits["idle"] * last and max(v for s, v in points if s >= step) <= value:
            message = (
                f"the learning rate ({curve.name}) falls from {number(before)} to {number(value)} at {at_step(step)}, "
                f"{number(before / value)} times at once (limit {number(limits['fall'])}), with {percent((last - step) / last)} of the run "
                "to go"
            )
            evidence = Evidence("fall of the rate at once", before / value, limits["fall"], ">", "times")
            return found("warning", message, evidence=evidence, remedies=look(m, "see what steps the scheduler, and how often"))
    return None


def _idle(m: Measurement, curve: LogColumn, last: float, limits: Limits) -> Finding | None:
    moving = [s for s, v in zip(curve.steps, curve.values, strict=True) if v > 0]
    since = next((s for s in curve.steps if s > max(moving, default=-1.0)), None)
    if since is None or not last - since > limits["idle"] * last:
        return None
    share = (last - since) / last
    message = (
        f"the learning rate ({curve.name}) is 0 from {at_step(since)} on: the last {percent(share)} of the run (limit "
        f"{percent(limits['idle'])}) change nothing"
    )
    evidence = Evidence("part of the run at a rate of 0", share, limits["idle"], ">")
    return found("warning", message, evidence=evidence, remedies=look(m, "lay the schedule out for all steps of the run"))
