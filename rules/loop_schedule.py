"""LOOP: schedules of the learning rate in the user's own training loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.rules.graph_loop import NO_SCRIPT
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from gradcheck.types.loop import LoopFacts, LoopSchedule
    from gradcheck.types.measurement import Measurement

FASTER = 1.001  # a rise over the one before it: a warm-up in a straight line differs by rounding
# Schedules that go back, or to nothing, or nowhere at all after the length that they are laid out for. A warm-up may be short.
WHOLE = ("OneCycleLR", "CosineAnnealingLR", "PolynomialLR", "LambdaLR", "SequentialLR", "MultiStepLR")


@rule(
    "LOOP004",
    "schedule-kills-rate",
    up_to="error",
    needs=("loop",),
    limits={
        "share_of_peak": Limit(1e-3, "of the highest rate", "heuristic: weights that moved by 1 % a step now move by a thousandth of that"),
        "steps_after": Limit(5, "steps", "heuristic: the last steps of a schedule may end near 0"),
        "early": Limit(50, "steps", "heuristic: no training is done after so few"),
        "explosion": Limit(100, "times the base rate", "heuristic: one-cycle schedules rise 25 times"),
    },
    explains=("OPT001", "OPT002", "LOSS005", "GRAD002", "NUM001", "LOOP001", "ACT001", "ACT002", "CLIP001", "GRAPH008", "LOOP013"),
)
def schedule_kills_rate(m: Measurement, limits: Limits) -> Verdict:
    """A scheduler takes the learning rate to nothing, or beyond all measure, while the training goes on.

    ## What it finds
    Learning rates that fall to a small part of their highest value within a few steps and stay there, and rates that
    grow faster and faster. Mostly a scheduler that is meant for epochs and is stepped with every batch.

    ## Why it matters
    Once the rate is gone the weights stand still, however long the script runs. A rate that explodes takes the weights with it.

    ## How it is measured
    The script is run for up to 200 steps, as far as they take less than 3 s, and the rate of each step is noted.

    ## Limits and their sources
    A rate below `share-of-peak` 0.001 of its highest value for at least `steps-after` 5 steps at the end, and for as many as
    came before: an error when it got there within `early` 50 steps, a warning later. A rate that is more than `explosion`
    100 times the scheduler's base rate, is the highest so far, and rises faster and faster: an error. All are heuristic.

    ## When to ignore it
    When the steps after the schedule's end are meant to do nothing.

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
    loop = m.loop
    if loop is None:
        return not_applicable(NO_SCRIPT)
    if not loop.rates:
        return not_measured("the rate was not looked at in each step" if loop.rates is None else "the script took no step")
    if len(set(loop.rates)) < 2 and (any(loop.rates) or not loop.base_rate):
        return not_applicable("the rate does not change over the steps of the script")
    finding = _exploding(loop, loop.rates, limits) or _dying(loop, loop.rates, limits)
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
        f"to {number(last)} at step {len(rates)} (limit {number(limit)} of the highest): the training goes on, and nothing moves any more"
    )
    return _schedule(loop, severity, message, Evidence("rate over the highest rate", last / peak, limit, "<", "of the highest rate"))


def _exploding(loop: LoopFacts, every: Sequence[float], limits: Limits) -> Finding | None:
    rates, base = [r for r in every if math.isfinite(r)], loop.base_rate
    if len(rates) < 4 or base <= 0 or rates[-1] < max(rates) or not rates[-1] > limits["explosion"] * base:
        return None
    distinct = list(dict.fromkeys(rates))
    rises = [b - a for a, b in itertools.pairwise(distinct)][-3:]
    if any(b <= FASTER * a for a, b in itertools.pairwise(rises)):
        return None
    message = (
        f"the rate of {_whose(loop)} grows from {number(base)} to {number(rates[-1])} within {len(rates)} steps "
        f"({number(rates[-1] / base)} times, limit {number(limits['explosion'])}), faster and faster: the weights go with it"
    )
    evidence = Evidence("rate over the base rate", rates[-1] / base, limits["explosion"], ">", "times")
    return _schedule(loop, "error", message, evidence)


def _often(loop: LoopFacts) -> str:
    steps = max(1, loop.steps)
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
    confirmed = BY_VALUE if severity == "error" else ""
    location = loop.schedule_site or loop.step_site
    return found(
        severity, message, location=location, evidence=(evidence,), remedies=(Remedy("change-schedule", text),), confirmed=confirmed
    )


@rule(
    "LOOP013",
    "schedule-misplaced",
    up_to="warning",
    needs=("loop",),
    limits={
        "epoch_steps": Limit(4, "steps", "heuristic: in shorter epochs a schedule may be meant either way"),
        "share": Limit(0.8, "of the training's steps", "heuristic: schedules are laid out for the whole training, give or take a warm-up"),
        "epochs": Limit(2, "times the epochs", "heuristic: the same for a schedule in epochs"),
        "rest": Limit(1e-4, "of the rate", "heuristic: weights that moved by 1 % a step now move by a millionth"),
    },
    explains=("OPT001", "OPT002", "LOSS005", "REG005"),
)
def schedule_misplaced(m: Measurement, limits: Limits) -> Verdict:
    """A schedule is laid out for the steps of the training and stepped once an epoch, or the other way round.

    ## What it finds
    A `OneCycleLR`, a warm-up or a cosine over all steps of a training whose `step()` stands outside the loop over the batches, so
    that it never gets past its first part; and a schedule over the epochs (`CosineAnnealingLR(T_max=epochs)`, milestones, a
    decay per epoch) that is stepped with every batch, so that it is through, or comes round again, within the first epochs.

    ## Why it matters
    The first keeps the rate near where the schedule starts, a thousandth of the peak for a one-cycle: the training crawls to
    its end. The second has the rate at its end, or swinging from the peak to zero and back, for most of the training.

    ## How it is measured
    The script is run. Of each scheduler it is noted what it was built for (`total_steps`, `T_max`, `total_iters`, milestones,
    the factor and its period, `num_training_steps` of a schedule of Transformers), which `for` loops stand around its `step()`
    and around the optimizer's, and how often these turn: `range(epochs)`, the length of the loader.

    ## Limits and their sources
    Stepped once an epoch of at least `epoch-steps` 4 steps of the optimizer, and laid out for at least `share` 80 % of all
    steps of the training; or stepped with each of them, and laid out for no more than `epochs` 2 times the epochs. A decay for
    ever (`StepLR`, `ExponentialLR`): stepped with each of them it would leave less than `rest` 0.0001 of the rate, and
    stepped once an epoch ten times that. All are heuristic.

    ## When to ignore it
    When a schedule is meant to swing several times, or to stay in its first part.

    ## Example
    ```python
    scheduler = OneCycleLR(optimizer, max_lr=0.1, epochs=10, steps_per_epoch=len(loader))
    for epoch in range(10):
        for x, y in loader:
            train_step(x, y)
        scheduler.step()
    ```

    ## Use instead
    ```python
    scheduler = OneCycleLR(optimizer, max_lr=0.1, epochs=10, steps_per_epoch=len(loader))
    for epoch in range(10):
        for x, y in loader:
            train_step(x, y)
            scheduler.step()
    ```

    ## References
    PyTorch documentation: `torch.optim.lr_scheduler.OneCycleLR`; `torch.optim`, "How to adjust learning rate".
    """
    if m.loop is None:
        return not_applicable(NO_SCRIPT)
    if m.loop.schedulers is None:
        return not_measured("what the schedulers were built for was not looked at")
    if not m.loop.schedulers:
        return not_applicable("the script has no scheduler")
    known = [s for s in m.loop.schedulers if s.length is not None]
    if not known:
        return not_applicable("no scheduler is laid out for a number of steps")
    placed = [s for s in known if s.stepped and s.epochs is not None and s.epoch_steps is not None]
    if not placed and all(s.calls == 0 for s in known):
        return not_measured("no scheduler was stepped while the script was followed")
    findings = (_too_seldom(s, limits) or _too_often(s, limits) for s in placed)
    return [f for f in findings if f is not None]


def _too_seldom(s: LoopSchedule, limits: Limits) -> Finding | None:
    epochs, steps, length = s.epochs or 0, s.epoch_steps or 0, s.length or 0
    if s.stepped != "epoch" or steps < limits["epoch_steps"] or s.decay is not None or length < limits["share"] * epochs * steps:
        return None
    message = (
        f"the {s.kind} is laid out for {length} steps and stepped once an epoch of {steps} steps: after all {epochs} epochs it has gone "
        f"{percent(epochs / length)} of its way, and the rate has stayed near its start"
    )
    evidence = Evidence("length of the schedule", length, limits["share"] * epochs * steps, ">=", "calls of step()")
    text = f"call step() after each step of the optimizer, inside the loop over the batches, or lay the {s.kind} out for {epochs} epochs"
    return _misplaced(s, message, evidence, Remedy("step-schedule-per-batch", text))


def _too_often(s: LoopSchedule, limits: Limits) -> Finding | None:
    epochs, steps, length = s.epochs or 0, s.epoch_steps or 0, s.length or 0
    if s.stepped != "step" or steps < limits["epoch_steps"] or epochs < 1:
        return None
    calls = epochs * steps
    text = f"call step() once an epoch, outside the loop over the batches, or lay the {s.kind} out for {calls} steps"
    remedy = Remedy("step-schedule-per-epoch", text)
    if s.decay is not None:
        left, meant = (_power(s.decay, calls / length), _power(s.decay, epochs / length))
        if not left < limits["rest"] or meant < 10 * limits["rest"]:
            return None
        period = f"every {length} calls of step()" if length > 1 else "with each call of step()"
        message = (
            f"the {s.kind} multiplies the rate by {number(s.decay)} {period} and is stepped after each of the {steps} "
            f"steps of an epoch: {epochs} epochs leave {number(left)} of the rate (limit {number(limits['rest'])}); stepped once an "
            f"epoch, {number(meant)}"
        )
        return _misplaced(s, message, Evidence("rate that the schedule leaves", left, limits["rest"], "<", "of the rate"), remedy)
    if s.kind not in WHOLE or length > limits["epochs"] * epochs:
        return None
    message = (
        f"the {s.kind} is laid out for {length} calls of step() and stepped after each of the {steps} steps of an epoch: of {epochs} "
        f"epochs (limit {number(limits['epochs'])} times as many calls) it covers {percent(length / calls)}"
    )
    return _misplaced(s, message, Evidence("length of the schedule", length, limits["epochs"] * epochs, "<=", "calls of step()"), remedy)


def _power(factor: float, times: float) -> float:
    return factor**times if factor > 0 else 0.0


def _misplaced(s: LoopSchedule, message: str, evidence: Evidence, remedy: Remedy) -> Finding:
    return found("warning", message, location=s.step_site or s.site, evidence=(evidence,), remedies=(remedy,))


RULES = (schedule_kills_rate, schedule_misplaced)
