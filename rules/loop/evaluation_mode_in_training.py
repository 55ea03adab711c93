from gradcheck.analysis.wording import BY_VALUE, layers_in_words, number
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.loop import LoopEvaluation
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, required, rule


@rule(
    "LOOP003",
    up_to="error",
    needs=("loop",),
    limits={"steps": Limit(2, "steps", "heuristic: one step may be an experiment of the script's")},
    explains=("NORM005",),
)
def evaluation_mode_in_training(m: Measurement, limits: Limits) -> Verdict:
    """Steps are taken in evaluation mode: dropout is off, or normalization does not follow its batches.

    ## What it finds
    Models that the script has put into evaluation mode with `eval()`, for a validation in most cases, and that go on training
    without a `train()`. Models without dropout and batch normalization are not affected, and are left out; so are models that
    are in training mode but for some frozen layers.

    ## Why it matters
    Dropout no longer regularises. Batch normalization uses running statistics that never change again: from scratch these
    are 0 and 1, and the network trains without normalization.

    ## How it is measured
    The script is run for up to 200 steps; at each forward pass that leads to a step the mode of the called module is noted,
    with its dropouts of a rate above 0 and its batch normalizations with trained weights.

    ## Limits and their sources
    At least `steps` 2 steps (heuristic). An error when the model was in training mode before, or when a normalization has
    seen no batch; a warning otherwise: fine-tuning in evaluation mode can be meant.

    ## When to ignore it
    When a trained model is fine-tuned with dropout off and statistics fixed on purpose.

    ## Example
    ```python
    model.eval()
    validate(model)
    for x, y in loader:
        train_step(model, x, y)
    ```

    ## Use instead
    ```python
    model.eval()
    validate(model)
    model.train()
    for x, y in loader:
        train_step(model, x, y)
    ```

    ## References
    PyTorch documentation: `torch.nn.Module.eval`; "Autograd mechanics", evaluation mode.
    """
    loop = script(m)
    seen = required(loop.evaluation, not_measured("the mode of the model in training steps was not looked at"))
    if seen.steps < limits["steps"]:
        return []
    severity: Severity = "error" if seen.trained_before or seen.fresh else "warning"
    since = f"from step {seen.first} on" if seen.trained_before else "from the start"
    limit = number(limits["steps"])
    message = f"{seen.steps} of {loop.steps} steps (limit {limit}), {since}, are taken in evaluation mode: {_effects(seen)}"
    evidence = Evidence("steps in evaluation mode", seen.steps, limits["steps"], ">=", f"of {loop.steps} steps")
    remedies = Remedy("restore-training-mode", f"call train() on the model before step {seen.first}, after each evaluation")
    return [
        found(
            severity,
            message,
            layers=(*seen.dropouts, *seen.norms),
            location=seen.site or loop.backward_site,
            evidence=evidence,
            remedies=remedies,
            confirmed=BY_VALUE,
        )
    ]


def _effects(seen: LoopEvaluation) -> str:
    effects = []
    if seen.norms:
        state = "running statistics that have seen no batch" if seen.fresh else "fixed running statistics"
        effects.append(f"{layers_in_words(seen.norms)} use{'s' * (len(seen.norms) == 1)} {state}")
    if seen.dropouts:
        effects.append(f"{layers_in_words(seen.dropouts)} drop{'s' * (len(seen.dropouts) == 1)} nothing")
    return " and ".join(effects)
