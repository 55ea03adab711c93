from gradcheck.analysis.wording import BY_VALUE, percent
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule


def script(m: Measurement) -> LoopFacts:
    """What the loop of the training script did, which a rule about it cannot judge without."""
    return required(m.loop, not_applicable("no training script was run"))


@rule(
    "GRAPH006",
    up_to="error",
    needs=("loop",),
    limits={
        "steps": Limit(3, "steps", "heuristic: fewer say nothing about a loop"),
        "share": Limit(0.5, "of the steps", "heuristic: a loop that clears now and then accumulates on purpose"),
    },
    explains=("OPT001", "OPT007", "OPT002", "LOSS005", "LOOP001", "CLIP001", "GRAD002"),
)
def gradients_not_cleared(m: Measurement, limits: Limits) -> Verdict:
    """Gradients pile up from step to step, or are cleared before the step can use them.

    ## What it finds
    Training loops whose steps use the gradients of all the steps before, because nothing clears `.grad`; and loops that
    clear it between `backward()` and `step()`.

    ## Why it matters
    Without clearing, a step follows the sum of all gradients since the start, most of them taken at weights that are long
    gone: training oscillates or diverges, like momentum that never forgets. Cleared too early, there is nothing to follow,
    and the weights stay as they are.

    ## How it is measured
    The script is run. Before each backward pass and each step, the gradients of the optimizer's parameters are looked at:
    whether those that the last step used are still there, and whether those of the last backward pass are gone. How they
    are cleared (`optimizer.zero_grad()`, `model.zero_grad()`, `p.grad = None`) makes no difference. The backward passes of
    one step, as gradient accumulation takes them, are one step.

    ## Limits and their sources
    More than `share` 50 % of at least `steps` 3 steps. Both are heuristic; a loop that forgets it does so always.

    ## When to ignore it
    When summing over all steps is intended.

    ## Example
    ```python
    for x, y in loader:
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
    ```

    ## Use instead
    ```python
    for x, y in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
    ```

    ## References
    PyTorch documentation: `torch.optim.Optimizer.zero_grad`.
    """
    loop = script(m)
    if not loop.backwards:
        return not_applicable("no backward pass was meant for this optimizer")
    if loop.steps < limits["steps"]:
        return not_measured(f"the script took {loop.steps} steps") if loop.steps else not_applicable("no step was taken")
    least = limits["share"] * loop.steps
    if loop.lost is not None and loop.lost > least:
        return [_lost(loop, loop.lost, limits)]
    if loop.leftover is not None and loop.leftover > least:
        return [_left(loop, loop.leftover, limits)]
    return not_measured("the gradients were not looked at between the steps") if None in (loop.lost, loop.leftover) else []


def _left(loop: LoopFacts, leftover: int, limits: Limits) -> Finding:
    whose = "" if loop.by_hand else f" of {loop.optimizer or 'the optimizer'}"
    call = "model.zero_grad()" if loop.by_hand else f"{loop.optimizer or 'optimizer'}.zero_grad()"
    message = (
        f"nothing clears the gradients{whose}: {leftover} of {loop.steps} steps "
        f"(limit {percent(limits['share'])}) still hold those of earlier steps: each step follows the sum of all gradients so far"
    )
    return found(
        "error",
        message,
        location=loop.backward_site or loop.step_site,
        evidence=Evidence("steps with gradients of earlier steps", leftover, limits["share"] * loop.steps, ">", "steps"),
        remedies=Remedy("clear-gradients", f"call {call} before each backward()"),
        confirmed=BY_VALUE,
    )


def _lost(loop: LoopFacts, lost: int, limits: Limits) -> Finding:
    whose = "" if loop.by_hand else f" of {loop.optimizer or 'the optimizer'}"
    step = "the update" if loop.by_hand else "step()"
    message = (
        f"the gradients{whose} are cleared between backward() and {step} in {lost} of {loop.steps} "
        f"steps (limit {percent(limits['share'])}): the steps have no gradient, and the weights stay as they are"
    )
    return found(
        "error",
        message,
        location=loop.clear_site or loop.step_site,
        evidence=Evidence("steps without their gradients", lost, limits["share"] * loop.steps, ">", "steps"),
        remedies=Remedy("clear-gradients", f"move zero_grad() before backward(), or behind {step}"),
        confirmed=BY_VALUE,
    )
