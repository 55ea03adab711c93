from gradcheck.analysis.wording import BY_VALUE, percent
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule


@rule(
    "LOOP001",
    up_to="error",
    needs=("loop",),
    limits={
        "backwards": Limit(8, "backward passes", "heuristic: fewer may be one step of an accumulation"),
        "undone": Limit(0.9, "of the steps", "heuristic: a search that goes back when the loss rises keeps some"),
    },
    explains=("OPT002", "LOSS005", "GRAPH003", "LOOP006"),
)
def optimizer_never_steps(m: Measurement, limits: Limits) -> Verdict:
    """Backward passes run, but no step ever follows: the parameters stay as they are.

    ## What it finds
    Training loops that call `backward()` and never the optimizer's `step()`; and those that put the weights back after each step, as by
    loading a moving average into the model that is trained in place of the one that follows it.

    ## Why it matters
    Gradients are computed and thrown away. The loss only moves with the batches, and the model at the end is the one from the start.

    ## How it is measured
    The script is run, and the backward passes and the optimizers' steps are counted. A script that takes no step is stopped
    after 160 backward passes, or when it ends. Parameters are compared with what they were at the start: where something
    else changes them, the rule is silent.

    ## Limits and their sources
    At least `backwards` 8 backward passes without a step (heuristic): fewer may belong to a step that was yet to come. A warning
    where other optimizers of the script step: 32 passes whose gradients one clears and never uses may be those before its turn.
    Of a small training the weights before and after each of 32 steps are compared with those before the next one: a warning where nine
    tenths of the change are gone in `undone` 0.9 of the steps (heuristic).

    ## When to ignore it
    When the gradients themselves are the result, as in saliency maps or sensitivity studies.

    ## Example
    ```python
    optimizer.zero_grad()
    loss.backward()
    ```

    ## Use instead
    ```python
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ```

    ## References
    PyTorch documentation: `torch.optim`, "Taking an optimization step".
    """
    loop = script(m)
    if loop.undone is not None and loop.undone >= limits["undone"]:
        return [_undone(loop, limits["undone"])]
    if loop.steps or loop.moved:
        return []
    if loop.ended != "end" and loop.backwards < limits["backwards"]:
        return not_measured(f"the script took {loop.backwards} backward passes before it was stopped")
    name = loop.optimizer or "optimizer"
    count = f"none of the {loop.parameters} parameters of {name}" if loop.parameters else "no parameter"
    rest = f"while other optimizers take {loop.beside} steps" if loop.beside else "and the model stays as it was"
    message = f"{loop.backwards} backward passes and not a single step: {count} changes, {rest}"
    evidence = Evidence("steps of the optimizer", 0, 1, "<", f"in {loop.backwards} backward passes")
    by_hand = "" if loop.parameters else ", or change the parameters themselves in place: `p = p - ...` makes another tensor"
    remedies = Remedy("call-step", f"call {name}.step() after backward(){by_hand}")
    severity: Severity = "warning" if loop.beside else "error"
    return [found(severity, message, location=loop.backward_site, evidence=evidence, remedies=remedies, confirmed=BY_VALUE)]


def _undone(loop: LoopFacts, limit: float) -> Finding:
    name = loop.optimizer or "the optimizer"
    return found(
        "warning",
        f"what {name} changes is put back after {percent(loop.undone or 0.0)} of its steps (limit {percent(limit)}): less than a tenth of "
        "a step's change is left before the next one, so that hardly anything is learned",
        location=loop.put_back_site or loop.step_site,
        evidence=Evidence("steps that are undone", loop.undone or 0.0, limit, ">="),
        remedies=Remedy("call-step", "load the average into the model that follows, not into the one that is trained", "advice"),
    )
