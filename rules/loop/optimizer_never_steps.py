from gradcheck.analysis.wording import BY_VALUE
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, rule


@rule(
    "LOOP001",
    up_to="error",
    needs=("loop",),
    limits={"backwards": Limit(8, "backward passes", "heuristic: fewer may be one step of an accumulation")},
    explains=("OPT002", "LOSS005", "GRAPH003", "LOOP006"),
)
def optimizer_never_steps(m: Measurement, limits: Limits) -> Verdict:
    """Backward passes run, but no step ever follows: the parameters stay as they are.

    ## What it finds
    Training loops that call `backward()` and never the optimizer's `step()`.

    ## Why it matters
    Gradients are computed and thrown away. The loss only moves with the batches, and the model at the end is the one from the start.

    ## How it is measured
    The script is run, and the backward passes and the optimizers' steps are counted. A script that takes no step is stopped
    after 160 backward passes, or when it ends. Parameters are compared with what they were at the start: where something
    else changes them, the rule is silent.

    ## Limits and their sources
    At least `backwards` 8 backward passes without a step (heuristic): fewer may belong to a step that was yet to come. A warning
    where other optimizers of the script step: 32 passes whose gradients one clears and never uses may be those before its turn.

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
