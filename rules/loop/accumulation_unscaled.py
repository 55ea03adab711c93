from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import number, percent, run_in_words
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.rules.optimization import best_rate
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.types.training import Run


@rule(
    "LOOP006",
    up_to="error",
    needs=("loop",),
    wants=("probe",),
    limits={
        "too_large": Limit(1.5, "times one mean loss", "heuristic: half way to a second batch"),
        "too_small": Limit(0.67, "times one mean loss", "heuristic: the inverse"),
        "same_rate": Limit(3.0, "times", "heuristic: half a decade; the rates that are tried lie about one apart"),
    },
    explains=("OPT001", "OPT007", "CLIP001", "CLIP002", "GRAD002", "LOSS005", "NUM001", "ACT001", "ACT002"),
)
def accumulation_unscaled(m: Measurement, limits: Limits) -> Verdict:
    """The gradients of several batches are added up without dividing by their number, or by a wrong one.

    ## What it finds
    Steps that follow several backward passes from the same line whose losses, each a mean over its batch, are summed and not
    averaged; losses divided by a number other than that of the passes; and passes that are cleared before the step.

    ## Why it matters
    The gradient is too large by the number of passes, and so is every step of SGD; a clipping threshold, weight
    decay and a penalty no longer fit it. Adam rescales its steps; only those three are off. Cleared passes are wasted work.

    ## How it is measured
    The script is run, and the backward passes between two steps are counted. The factor on each pass's mean loss is read
    from the operations between loss function and `backward()`; losses that are sums have none. Gradients that are divided
    by hand before the step are left out.

    ## Limits and their sources
    The factors of a step's passes sum to more than `too-large` 1.5 or less than `too-small` 0.67 (heuristic; 1 is a mean). An
    error when the probe fails, and SGD or its kin learns at the rate that averaging would amount to, within a factor of
    `same-rate` 3, or at a higher one that is still below the user's.

    ## When to ignore it
    When the learning rate was chosen for the sum.

    ## Example
    ```python
    for i, (x, y) in enumerate(loader, 1):
        loss_fn(model(x), y).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    ```

    ## Use instead
    ```python
    for i, (x, y) in enumerate(loader, 1):
        (loss_fn(model(x), y) / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    ```

    ## References
    PyTorch documentation: "Automatic Mixed Precision examples", gradient accumulation.
    """
    loop = script(m)
    if loop.dropped is None or loop.accumulated is None:
        return not_measured("the backward passes of a step were not told apart")
    if loop.dropped > loop.steps / 2:
        return [_dropped(loop, loop.dropped)]
    if loop.accumulated < 2:
        return not_applicable("each step follows one backward pass")
    if loop.weight is None:
        return not_measured("the factor on the losses cannot be told from their operations")
    if limits["too_small"] <= loop.weight <= limits["too_large"]:
        return []
    large = loop.weight > limits["too_large"]
    limit = limits["too_large" if large else "too_small"]
    rest = (
        f"{m.optimizer.name} rescales its steps, so mostly clipping and weight decay are off"
        if m.optimizer.adaptive
        else "so is every step"
    )
    message = (
        f"each step sums {loop.accumulated} backward passes whose mean losses weigh {number(loop.weight)} (limit {number(limit)}): "
        f"the gradient is {number(loop.weight)} times that of one large batch; {rest}"
    )
    text = f"divide the loss by {loop.accumulated} before backward()"
    evidence = Evidence("sum of the factors on the mean losses", loop.weight, limit, ">" if large else "<", "times one mean loss")
    run = _learns_as_a_mean(m, loop.weight, limits["same_rate"])
    return [
        found(
            "warning" if run is None else "error",
            message,
            location=loop.backward_site,
            evidence=evidence,
            remedies=Remedy("scale-loss", text),
            confirmed=""
            if run is None
            else f"by the probe: {run_in_words(m.probe)}; at {number(run.rate_factor or 1)} of the rate, {run_in_words(run)}",
        )
    ]


def _learns_as_a_mean(m: Measurement, weight: float, within: float) -> Run | None:
    """The experiment that shows what a mean would do for an optimizer whose steps are as large as its gradients."""
    run = best_rate(m, higher=False) if training_outcome(m) in ("stalls", "diverges") and not m.optimizer.adaptive else None
    return run if run is not None and (run.rate_factor or 1) * weight * within >= 1 else None


def _dropped(loop: LoopFacts, dropped: int) -> Finding:
    message = (
        f"in {dropped} of {loop.steps} steps (limit {percent(0.5)}) the gradients of some backward passes are cleared before the "
        "step: they are wasted"
    )
    text = f"clear the gradients only after {'the update' if loop.by_hand else (loop.optimizer or 'optimizer') + '.step()'}"
    evidence = Evidence("steps that lose passes", dropped, loop.steps / 2, ">", "steps")
    location = loop.clear_site or loop.step_site
    return found("warning", message, location=location, evidence=evidence, remedies=Remedy("clear-gradients", text))
