from gradcheck.analysis.convergence import experiment_outcome, training_outcome
from gradcheck.analysis.wording import number, run_in_words
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule
from gradcheck.types.training import ONE_OPTIMIZER, Run


@rule(
    "LOOP009",
    up_to="error",
    needs=("loop", "probe"),
    limits={
        "life": Limit(10, "steps", "1 / (1 - 0.9): how far back the usual momentum of SGD and Adam reaches"),
        "made": Limit(4, "times", "heuristic: two or three may be the stages of a training"),
        "schedule_life": Limit(2, "calls of step()", "heuristic: a schedule of so few steps is none"),
    },
    explains=("OPT002", "LOSS005", "LOOP004", "GRAD002"),
)
def optimizer_recreated(m: Measurement, limits: Limits) -> Verdict:
    """The loop makes its optimizer, or its scheduler, again at every step or every few steps.

    ## What it finds
    `torch.optim.Adam(...)`, or a scheduler, inside the loop or in the function that takes a step. It is told from the parameters
    and the line: the same for each of them.

    ## Why it matters
    Momentum, and Adam's averages of the gradients and of their squares, live in the optimizer. One that takes a single step has
    none: Adam then moves every weight by its rate, up or down, whatever the size of the gradient, and SGD with momentum 0.9 goes a
    tenth of its way. A scheduler that is made again starts again: the rate stays where a schedule begins.

    ## How it is measured
    The script is run. An optimizer that is made by the same expression for the same parameters as an earlier one takes its
    place; it is checked whether the earlier one held any state, and whether the later one was given it. The probe training
    forgets as often as the script. When it fails, it is run again with one optimizer for all steps.

    ## Limits and their sources
    At least `made` 4 of them, each for less than `life` 10 steps: what a momentum of 0.9 remembers. In trainings of a multilayer
    perceptron by seven optimizers, 600 steps each, one that was made again at every step ended at 1.2 to 7 times the loss (median
    1.5), one of 128 steps at 1.1. It is a warning therefore; an error where the probe fails, and learns with one optimizer.
    Schedulers: at least `made` 4, each stepped `schedule-life` 2 times or less: a warning. Optimizers without state, such as
    SGD without momentum, are not reported: nothing is lost.

    ## When to ignore it
    When each step is a training of its own, as in meta-learning, or when sign descent is intended.

    ## Example
    ```python
    for x, y in loader:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        train_step(model, optimizer, x, y)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in loader:
        train_step(model, optimizer, x, y)
    ```

    ## References
    PyTorch documentation: `torch.optim`, "Constructing it". Kingma and Ba, "Adam", 2015, section 3 (bias correction).
    """
    loop = script(m)
    if loop.made is None or loop.schedules_made is None:
        return not_measured("whether the optimizer and its scheduler are made again was not looked at")
    findings = []
    if loop.forgets and loop.made >= limits["made"] and 0 < loop.life < limits["life"]:
        findings.append(_forgetting(m, loop, limits))
    if loop.schedules_made >= limits["made"] and 0 < loop.schedule_life <= limits["schedule_life"]:
        findings.append(_restarting(loop, limits))
    return findings


def _forgetting(m: Measurement, loop: LoopFacts, limits: Limits) -> Finding:
    name = loop.optimizer or "the optimizer"
    kept = next((r for r in m.experiments if r.name == ONE_OPTIMIZER), None)
    fails = kept is not None and training_outcome(m) in ("stalls", "diverges") and experiment_outcome(kept, m) == "learns"
    severity: Severity = "error" if fails else "warning"
    steps = "step" if loop.life == 1 else f"{loop.life} steps"
    message = (
        f"{name} is made again every {steps} (limit {number(limits['life'])}), {loop.made} times in {loop.in_all} steps: "
        f"{_loss_of(m)}{_compared(m, kept) if fails else ''}"
    )
    return found(
        severity,
        message,
        location=loop.made_site,
        evidence=Evidence("steps of one optimizer", loop.life, limits["life"], "<", f"of {loop.in_all}"),
        remedies=Remedy("keep-optimizer", f"make {name} once, before the loop", "safe"),
        confirmed=f"by the probe: {_compared(m, kept).removeprefix('; ')}" if fails else "",
    )


def _loss_of(m: Measurement) -> str:
    """What is lost with the optimizer."""
    if not m.optimizer.adaptive:
        return "its momentum never builds up"
    return f"{m.optimizer.name} starts over each time, and never learns the size of the gradients"


def _compared(m: Measurement, kept: Run | None) -> str:
    return f"; so {run_in_words(m.probe)}, and with one optimizer for all of them {run_in_words(kept)}" if kept is not None else ""


def _restarting(loop: LoopFacts, limits: Limits) -> Finding:
    often = "once" if loop.schedule_life == 1 else f"{loop.schedule_life} times"
    first, last = loop.rates[0] if loop.rates else 0.0, loop.rates[-1] if loop.rates else 0.0
    message = (
        f"{loop.schedules_made} schedulers are made at one place, and each is stepped {often} (limit {number(limits['schedule_life'])}): "
        f"the schedule begins again and again; after {loop.in_all} steps the rate has gone from {number(first)} to {number(last)}"
    )
    return found(
        "warning",
        message,
        location=loop.schedule_made_site,
        evidence=Evidence("steps of one scheduler", loop.schedule_life, limits["schedule_life"], "<="),
        remedies=Remedy("keep-scheduler", "make the scheduler once, before the loop", "safe"),
    )
