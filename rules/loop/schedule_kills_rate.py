import itertools
import math
from collections.abc import Sequence
from statistics import fmean

from gradcheck.analysis.wording import BY_VALUE, number
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

FASTER = 1.001  # a rise over the one before it: a warm-up in a straight line differs by rounding


@rule(
    "LOOP004",
    up_to="error",
    needs=("loop",),
    limits={
        "share_of_peak": Limit(1e-3, "of the highest rate", "heuristic: weights that moved by 1 % a step now move by a thousandth of that"),
        "steps_after": Limit(5, "steps", "heuristic: the last steps of a schedule may end near 0"),
        "early": Limit(50, "steps", "heuristic: no training is finished after so few"),
        "explosion": Limit(100, "times the base rate", "heuristic: one-cycle schedules rise 25 times"),
        "usual": Limit(0.1, "", "He et al. 2015, Deep residual learning, train with it: a warm-up from next to nothing may lead there"),
        "calls": Limit(4, "calls of step()", "heuristic: fewer may go the wrong way by chance"),
        "level": Limit(2, "times the loss", "heuristic: losses of training and validation lie closer at first, shares and ranks rarely"),
    },
    explains="OPT001 OPT007 OPT002 LOSS005 GRAD002 NUM001 LOOP001 ACT001 ACT002 CLIP001 GRAPH008 LOOP013".split(),
)
def schedule_kills_rate(m: Measurement, limits: Limits) -> Verdict:
    """A scheduler takes the learning rate to nothing, or lets it explode, while the training goes on.

    ## What it finds
    Learning rates that fall to a small part of their highest value within a few steps and stay there, and rates that
    grow faster and faster. Usually a scheduler designed for epochs is stepped with every batch. A `ReduceLROnPlateau` in the
    wrong mode, which takes a rising accuracy for a loss that gets no lower.

    ## Why it matters
    Once the rate is gone the weights stand still, however long the script runs. A rate that explodes makes the weights explode.

    ## How it is measured
    The script is run for up to 200 steps, as far as they take less than 3 s, and the rate of each step is noted, as is what a
    `ReduceLROnPlateau` is given.

    ## Limits and their sources
    A rate below `share-of-peak` 0.001 of its highest value for at least `steps-after` 5 steps at the end, and for as many as
    came before: an error when it got there within `early` 50 steps, a warning later. A rate that is more than `explosion`
    100 times the scheduler's base rate and `usual` 0.1, is the highest so far, and rises faster and faster: an error, unless other
    optimizers go on without this one, as after a search for the rate. A warning: at least `calls` 4 numbers that a
    `ReduceLROnPlateau` was given are all worse in its mode than the first while the loss fell, the rate was cut, and the first is
    within `level` 2 times the loss in mode `max`, or is not in mode `min`. All but `usual` are heuristic.

    ## When to ignore it
    When the steps after the schedule's end should do nothing.

    ## Example
    ```python
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    for x, y in loader:
        train_step(x, y)
        scheduler.step()
    ```

    ## Use instead
    ```python
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    for epoch in range(100):
        for x, y in loader:
            train_step(x, y)
        scheduler.step()
    ```

    ## References
    PyTorch documentation: `torch.optim`, "How to adjust learning rate".
    """
    loop = script(m)
    if not loop.rates:
        return not_measured("the rate was not looked at in each step" if loop.rates is None else "the script took no step")
    if len(set(loop.rates)) < 2 and (any(loop.rates) or not loop.base_rate):
        return not_applicable("the rate does not change over the steps of the script")
    finding = _exploding(loop, loop.rates, limits) or _contrary(loop, loop.rates, limits) or _dying(loop, loop.rates, limits)
    return [finding] if finding is not None else []


def _dying(loop: LoopFacts, rates: Sequence[float], limits: Limits) -> Finding | None:
    peak, limit = max(rates) or loop.base_rate, limits["share_of_peak"]  # a rate of 0 from the start is a schedule's, too
    after = next((i for i, rate in enumerate(reversed(rates)) if rate >= limit * peak), len(rates))
    before = len(rates) - after
    if after < limits["steps_after"] or after < before:
        return None
    severity: Severity = "error" if before <= limits["early"] else "warning"
    last = rates[-1]
    message = (
        f"the rate of {_whose(loop)} falls from {number(peak)} to {number(rates[before])} within {before} steps, and "
        f"to {number(last)} at step {len(rates)} (limit {number(limit)} of the highest): the training goes on, but the weights hardly move"
    )
    return _schedule(loop, severity, message, Evidence("rate over the highest rate", last / peak, limit, "<", "of the highest rate"))


def _exploding(loop: LoopFacts, every: Sequence[float], limits: Limits) -> Finding | None:
    rates, base = [r for r in every if math.isfinite(r)], loop.base_rate
    if (
        loop.over
        or len(rates) < 4
        or base <= 0
        or rates[-1] < max(rates)
        or not rates[-1] > max(limits["explosion"] * base, limits["usual"])
    ):
        return None
    distinct = list(dict.fromkeys(rates))
    rises = [b - a for a, b in itertools.pairwise(distinct)][-3:]
    if any(b <= FASTER * a for a, b in itertools.pairwise(rises)):
        return None
    message = (
        f"the rate of {_whose(loop)} grows from {number(base)} to {number(rates[-1])} within {len(rates)} steps "
        f"({number(rates[-1] / base)} times, limit {number(limits['explosion'])}), faster and faster: the weights will explode with it"
    )
    evidence = Evidence("rate over the base rate", rates[-1] / base, limits["explosion"], ">", "times")
    return _schedule(loop, "error", message, evidence)


def _contrary(loop: LoopFacts, rates: Sequence[float], limits: Limits) -> Finding | None:
    """A ReduceLROnPlateau whose number went the way that it takes for bad in every call, while the training went well."""
    quarter = len(loop.losses) // 4
    if not quarter or not rates[-1] < max(rates) or not fmean(loop.losses[-quarter:]) < fmean(loop.losses[:quarter]):
        return None
    for s in loop.schedulers or ():
        if len(s.metrics) < limits["calls"]:
            continue
        (steps, first), *rest = s.metrics
        level = fmean(loop.losses[: max(1, steps)])
        near = level > 0 and 1 / limits["level"] <= first / level <= limits["level"]
        if near != (s.mode == "max") or not all(value < first if near else value > first for _, value in rest):
            continue
        moves, right = ("falls", "min") if near else ("rises", "max")
        message = (
            f"the {s.kind} waits in mode '{s.mode}' for a number that {moves}, from {number(first)} to {number(rest[-1][1])} in "
            f"{len(s.metrics)} calls of step() (limit {number(limits['calls'])}), while the loss falls: it counts every call as bad, and "
            f"has cut the rate from {number(max(rates))} to {number(rates[-1])}"
        )
        evidence = Evidence("calls with a number worse than the first", len(rest), limits["calls"] - 1, ">=", "calls of step()")
        remedy = Remedy("change-schedule", f"build it with mode='{right}'")
        return found("warning", message, location=s.site or s.step_site, evidence=evidence, remedies=remedy)
    return None


def _often(loop: LoopFacts) -> str:
    steps = max(1, loop.in_all)
    if loop.schedules is None:
        return ""
    often = "after every step" if loop.schedules >= 0.8 * steps else f"{loop.schedules} times in {steps} steps"
    return f"the scheduler is stepped {often}: "


def _whose(loop: LoopFacts) -> str:
    return "the update" if loop.by_hand else loop.optimizer or "the optimizer"


def _schedule(loop: LoopFacts, severity: Severity, message: str, evidence: Evidence) -> Finding:
    text = f"{_often(loop)}step the scheduler once an epoch, or give it a schedule in steps"
    if loop.schedules == 0:
        text = "let the rate change over the whole training"
    location = loop.schedule_site or loop.step_site
    return found(severity, message, location=location, evidence=evidence, remedies=Remedy("change-schedule", text), confirmed=BY_VALUE)
