from gradcheck.analysis.wording import number, percent
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import LoopSchedule
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule

# Schedules that turn back, end at zero, or stop after the length they are laid out for. A warm-up may be short.
WHOLE = ("OneCycleLR", "CosineAnnealingLR", "PolynomialLR", "LambdaLR", "SequentialLR", "MultiStepLR")


@rule(
    "LOOP013",
    up_to="warning",
    needs=("loop",),
    limits={
        "epoch_steps": Limit(4, "steps", "heuristic: in shorter epochs a schedule may be meant either way"),
        "share": Limit(0.8, "of the training's steps", "heuristic: schedules are laid out for the whole training, give or take a warm-up"),
        "epochs": Limit(2, "times the epochs", "heuristic: the same for a schedule in epochs"),
        "warm_up": Limit(
            2, "times the calls", "heuristic: of a linear warm-up half is gone through; a plan for a longer training is its own matter"
        ),
        "rest": Limit(1e-4, "of the rate", "heuristic: weights that moved by 1 % a step now move by a millionth"),
    },
    explains=("OPT001", "OPT007", "OPT002", "LOSS005", "REG005"),
)
def schedule_misplaced(m: Measurement, limits: Limits) -> Verdict:
    """A schedule is laid out for the steps of the training and stepped once an epoch, or the other way round.

    ## What it finds
    A `OneCycleLR`, a warm-up or a cosine over all steps of a training whose `step()` stands outside the loop over the batches, so
    that it never gets past its first part; and a schedule over the epochs (`CosineAnnealingLR(T_max=epochs)`, milestones, a
    decay per epoch) that is stepped with every batch, so that it is through, or comes round again, within the first epochs.
    And a warm-up that is longer than the training.

    ## Why it matters
    The first keeps the rate near where the schedule starts, a thousandth of the peak for a one-cycle: the training crawls to
    its end. The second has the rate at its end, or swinging from the peak to zero and back, for most of the training.

    ## How it is measured
    The script is run. For each scheduler it is noted what it was built for (`total_steps`, `T_max`, `total_iters`, milestones,
    the factor and its period, `num_training_steps` of a schedule of Transformers, the values of the function of a `LambdaLR`),
    which `for` loops stand around its `step()` and around the optimizer's, and how often these turn: `range(epochs)`, the length
    of the loader. Loops that ran already when the scheduler was made, as a sweep over rates does, are none of its training,
    unless it is made in one turn only (`if scheduler is None:`).

    ## Limits and their sources
    Stepped once an epoch of at least `epoch-steps` 4 steps of the optimizer, and laid out for at least `share` 80 % of all
    steps of the training; or stepped with each of them, and laid out for no more than `epochs` 2 times the epochs. A decay for
    ever (`StepLR`, `ExponentialLR`): stepped with each of them it would leave less than `rest` 0.0001 of the rate, and
    stepped once an epoch ten times that. A warm-up of more than `warm-up` 2 times the calls that are made. All are heuristic.

    ## When to ignore it
    When a schedule should cycle several times, or stay in its first part.

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
    loop = script(m)
    schedulers = required(loop.schedulers, not_measured("what the schedulers were built for was not looked at"))
    if not schedulers:
        return not_applicable("the script has no scheduler")
    known = [s for s in schedulers if s.length is not None]
    if not known:
        return not_applicable("no scheduler is laid out for a number of steps")
    placed = [s for s in known if s.stepped and s.epochs is not None and s.epoch_steps is not None]
    if not placed and all(s.calls == 0 for s in known):
        return not_measured("no scheduler was stepped while the script was followed")
    findings = (_too_seldom(s, limits) or _too_often(s, limits) or _too_slow(s, limits) for s in placed)
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
    if s.kind not in WHOLE or length > limits["epochs"] * epochs or length == s.warm_up:
        return None
    message = (
        f"the {s.kind} is laid out for {length} calls of step() and stepped after each of the {steps} steps of an epoch: of {epochs} "
        f"epochs (limit {number(limits['epochs'])} times as many calls) it covers {percent(length / calls)}"
    )
    return _misplaced(s, message, Evidence("length of the schedule", length, limits["epochs"] * epochs, "<=", "calls of step()"), remedy)


def _too_slow(s: LoopSchedule, limits: Limits) -> Finding | None:
    calls = (s.epochs or 0) * (1 if s.stepped == "epoch" else s.epoch_steps or 0)
    if not calls or (s.warm_up or 0) <= limits["warm_up"] * calls:
        return None
    message = (
        f"the {s.kind} warms the rate up over {s.warm_up} calls of step(), of which the training makes {calls} (limit "
        f"{number(limits['warm_up'])} times as many): the rate never gets to where it should"
    )
    remedy = Remedy("shorter-warm-up", f"warm up over a few per cent of the {calls} calls")
    return _misplaced(
        s, message, Evidence("length of the warm-up", s.warm_up or 0, limits["warm_up"] * calls, ">", "calls of step()"), remedy
    )


def _power(factor: float, times: float) -> float:
    return factor**times if factor > 0 else 0.0


def _misplaced(s: LoopSchedule, message: str, evidence: Evidence, remedy: Remedy) -> Finding:
    return found("warning", message, location=s.step_site or s.site, evidence=evidence, remedies=remedy)
