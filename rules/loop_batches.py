"""LOOP: what the user's loop does with its batches and its loss: the same batch again, accumulation, loss scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import BY_VALUE, number, percent, run_in_words
from gradcheck.rules.graph_loop import NO_SCRIPT
from gradcheck.rules.optimization import best_rate
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from gradcheck.types.loop import LoopFacts, LoopScaler
    from gradcheck.types.measurement import Measurement, Run


@rule(
    "LOOP005",
    "same-batch-every-step",
    up_to="warning",
    needs=("loop",),
    limits={
        "steps": Limit(5, "steps", "heuristic"),
        "share": Limit(0.5, "of the data", "heuristic: a part larger than this is a training split, not a batch"),
    },
    explains=("DATA004",),
)
def same_batch_every_step(m: Measurement, limits: Limits) -> Verdict:
    """Every step sees the same batch, although there are other data.

    ## What it finds
    Loops that feed one batch again and again: `next(iter(loader))` inside the loop without shuffling, a batch that was taken
    before the loop, a slice that does not move.

    ## Why it matters
    The model learns these samples by heart and nothing else. The training loss falls beautifully.

    ## How it is measured
    The script is run. What the model is called with is compared over the first 32 steps, bit by bit. How many
    samples there are is known from the DataLoader that makes batches of this size, or from the tensor that the batch was
    cut out of.

    ## Limits and their sources
    The same input in at least `steps` 5 steps. A warning when the batch holds less than `share` 50 % of the samples that
    there are; a note when nothing else is known to be there: training on all data at once is a choice. Both are heuristic.

    ## When to ignore it
    When overfitting one batch is the point, as a test of the model.

    ## Example
    ```python
    x, y = next(iter(loader))
    for step in range(1000):
        train_step(x, y)
    ```

    ## Use instead
    ```python
    for epoch in range(10):
        for x, y in loader:
            train_step(x, y)
    ```

    ## References
    None.
    """
    if m.loop is None:
        return not_applicable(NO_SCRIPT)
    seen = m.loop.batches
    if seen is None:
        return not_measured("what the model is called with could not be compared")
    if seen.compared < limits["steps"]:
        return not_measured(f"the batches of {seen.compared} steps are too few to compare")
    if seen.distinct > 1:
        return []
    part = seen.samples / seen.available if seen.available else 1.0
    severity: Severity = "warning" if part < limits["share"] else "info"
    limit = percent(limits["share"])
    known = f"{percent(part)} of the {seen.available} that there are (limit {limit})" if seen.available else "all that is known of"
    batch = f"the same {seen.samples} samples" if seen.samples else "one batch"
    message = f"{seen.compared} steps see {batch}, {known}"
    message += ": the model learns these by heart" if severity == "warning" else ": fine when these are all the data"
    text = "take the next batch in each step: iterate over the loader, with shuffle=True, instead of taking its first batch"
    evidence = (Evidence("different batches", seen.distinct, 2, "<", f"in {seen.compared} steps"),)
    return [found(severity, message, location=seen.site, evidence=evidence, remedies=(Remedy("next-batch", text),))]


@rule(
    "LOOP006",
    "accumulation-unscaled",
    up_to="error",
    needs=("loop",),
    wants=("probe",),
    limits={
        "too_large": Limit(1.5, "times one mean loss", "heuristic: half way to a second batch"),
        "too_small": Limit(0.67, "times one mean loss", "heuristic: the inverse"),
        "same_rate": Limit(3.0, "times", "heuristic: half a decade; the rates that are tried lie about one apart"),
    },
    explains=("OPT001", "CLIP001", "CLIP002", "GRAD002", "LOSS005", "NUM001", "ACT001", "ACT002"),
)
def accumulation_unscaled(m: Measurement, limits: Limits) -> Verdict:
    """The gradients of several batches are added up without dividing by their number, or by a wrong one.

    ## What it finds
    Steps that follow several backward passes from the same line whose losses, each a mean over its batch, are summed and
    not averaged; losses that are divided by another number than that of the passes; and passes that are cleared before the step.

    ## Why it matters
    The gradient is as many times too large as there are passes, and so is every step of SGD; a clipping threshold, weight
    decay and a penalty no longer fit it. Adam rescales its steps and only feels the latter. Cleared passes are work for nothing.

    ## How it is measured
    The script is run, and the backward passes between two steps are counted. The factor on each pass's mean loss is read
    from the operations between loss function and `backward()`; losses that are sums have none. Gradients that are divided
    by hand before the step are left out.

    ## Limits and their sources
    The factors of a step's passes sum to more than `too-large` 1.5 or less than `too-small` 0.67 (heuristic; 1 is a mean). An
    error when the probe fails, and SGD or its kin learns at the rate that a mean would make of the user's, to a factor of
    `same-rate` 3, or at a higher one that is still below the user's.

    ## When to ignore it
    When the rate was chosen for the sum.

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
    loop = m.loop
    if loop is None:
        return not_applicable(NO_SCRIPT)
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
    rest = f"Adam-like as {m.optimizer.name} is, mostly clipping and weight decay feel it" if m.optimizer.adaptive else "so is every step"
    message = (
        f"each step sums {loop.accumulated} backward passes whose mean losses weigh {number(loop.weight)} (limit {number(limit)}): "
        f"the gradient is {number(loop.weight)} times that of one large batch; {rest}"
    )
    text = f"divide the loss by {loop.accumulated} before backward()"
    evidence = (Evidence("sum of the factors on the mean losses", loop.weight, limit, ">" if large else "<", "times one mean loss"),)
    run = _learns_as_a_mean(m, loop.weight, limits["same_rate"])
    return [
        found(
            "warning" if run is None else "error",
            message,
            location=loop.backward_site,
            evidence=evidence,
            remedies=(Remedy("scale-loss", text),),
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
        "step: they are computed for nothing"
    )
    text = f"clear the gradients only after {'the update' if loop.by_hand else (loop.optimizer or 'optimizer') + '.step()'}"
    evidence = (Evidence("steps that lose passes", dropped, loop.steps / 2, ">", "steps"),)
    location = loop.clear_site or loop.step_site
    return found("warning", message, location=location, evidence=evidence, remedies=(Remedy("clear-gradients", text),))


@rule(
    "LOOP007",
    "scaler-misused",
    up_to="error",
    needs=("loop",),
    limits={"share": Limit(0.5, "of the steps", "heuristic: a wrong call is wrong every time")},
    explains=("LOOP002", "OPT001", "GRAD002", "NUM001", "LOSS005", "CLIP002"),
)
def scaler_misused(m: Measurement, limits: Limits) -> Verdict:
    """A GradScaler scales the loss, and its other half is missing.

    ## What it finds
    Losses that are scaled while the optimizer steps by itself, on gradients that are thousands of times too large; a scaler whose
    `update()` is never called; clipping of gradients that are still scaled; and a scaler that steps without having scaled.

    ## Why it matters
    SGD's first step on scaled gradients destroys the weights; Adam rescales them, but its epsilon, clipping and weight
    decay do not. Without `update()` the scaler refuses its second step. Scaled gradients are all above the clipping threshold.

    ## How it is measured
    The script is run, and the calls of the scaler and the optimizer are followed. A scaler that switched itself off for want
    of a GPU is judged by the order of its calls.

    ## Limits and their sources
    More than `share` 50 % of the steps (heuristic); the rest is a matter of which calls are made.

    ## When to ignore it
    When the gradients are unscaled by hand.

    ## Example
    ```python
    scaler.scale(loss).backward()
    optimizer.step()
    ```

    ## Use instead
    ```python
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    ```

    ## References
    PyTorch documentation: "Automatic Mixed Precision examples".
    """
    loop = m.loop
    if loop is None:
        return not_applicable(NO_SCRIPT)
    if loop.scaler is None:
        return not_measured("whether the loop scales its loss was not looked at")
    if not loop.scaler.scaled and not loop.scaler.steps:
        return not_applicable("the script uses no GradScaler")
    case = _misuse(loop, loop.scaler, limits["share"])
    if case is None:
        return []
    message, count, limit, text, first = case
    asleep = "" if loop.scaler.enabled else "; the scaler is off on this machine, where it does no harm"
    severity: Severity = "error" if loop.scaler.enabled else "warning"
    location = (loop.scaler.scale_site if first else None) or loop.scaler.step_site or loop.step_site
    return [
        found(
            severity,
            message + asleep,
            location=location,
            evidence=(Evidence("steps or calls that go wrong", count, limit, ">"),),
            remedies=(Remedy("complete-scaler", text),),
            confirmed=BY_VALUE if severity == "error" else "",
        )
    ]


def _misuse(loop: LoopFacts, scaler: LoopScaler, share: float) -> tuple[str, float, float, str, bool] | None:
    """(message, count, limit, cure, whether it is about the scaling), or None."""
    name = loop.optimizer or "optimizer"
    if scaler.scaled and scaler.bare > share * max(1, loop.steps):
        text = f"call scaler.step({name}) instead of {name}.step(), and scaler.update() after it"
        by = f"{number(scaler.factor)} times too large" if scaler.enabled else "scaled"
        message = f"the loss is scaled and never unscaled: {scaler.bare} of {loop.steps} steps (limit {percent(share)}) use gradients {by}"
        return message, scaler.bare, share * loop.steps, text, True
    clips = [c for c in loop.clips or () if c.scaled > share * c.calls]
    if clips:
        first = clips[0]
        message = (
            f"{first.scaled} of {first.calls} calls (limit {percent(share)}) of clip_grad_{first.kind}_ at {number(first.threshold)} "
            f"clip gradients that are still scaled by {number(scaler.factor)}"
        )
        return message, clips[0].scaled, share * clips[0].calls, f"call scaler.unscale_({name}) before clipping", True
    if scaler.steps and not scaler.scaled:
        message = f"{scaler.steps} steps (limit 0) are taken by a scaler that never scales the loss: it only makes the gradients smaller"
        return message, scaler.steps, 0, "call scaler.scale(loss).backward()", False
    if scaler.steps and not scaler.updates:
        message = f"scaler.update() is missing after {scaler.steps} calls (limit 0) of scaler.step(): the scaler refuses its next step"
        return message, scaler.steps, 0, "call scaler.update() after scaler.step()", False
    return None


RULES = (same_batch_every_step, accumulation_unscaled, scaler_misused)
