from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.loop import LoopFacts, LoopScaler
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


@rule(
    "LOOP007",
    up_to="error",
    needs=("loop",),
    limits={"share": Limit(0.5, "of the steps", "heuristic: a wrong call is wrong every time")},
    explains=("LOOP002", "OPT001", "OPT007", "GRAD002", "NUM001", "LOSS005", "CLIP002"),
)
def scaler_misused(m: Measurement, limits: Limits) -> Verdict:
    """A GradScaler scales the loss, but nothing unscales the gradients, or the reverse.

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
    loop = script(m)
    if loop.scaler is None:
        return not_measured("whether the loop scales its loss was not looked at")
    if not loop.scaler.scaled and not loop.scaler.steps:
        return not_applicable("the script uses no GradScaler")
    case = _misuse(loop, loop.scaler, limits["share"])
    if case is None:
        return []
    message, count, limit, text, first = case
    asleep = "" if loop.scaler.enabled else "; the scaler is disabled on this machine, where this does no harm"
    severity: Severity = "error" if loop.scaler.enabled else "warning"
    location = (loop.scaler.scale_site if first else None) or loop.scaler.step_site or loop.step_site
    return [
        found(
            severity,
            message + asleep,
            location=location,
            evidence=Evidence("steps or calls that go wrong", count, limit, ">"),
            remedies=Remedy("complete-scaler", text),
            confirmed=BY_VALUE,
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
