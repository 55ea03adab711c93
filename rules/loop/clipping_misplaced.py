import math

from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import LoopClip, LoopFacts
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule


@rule(
    "LOOP002",
    up_to="error",
    needs=("loop",),
    limits={"share": Limit(0.5, "of the calls", "heuristic: a misplaced call is misplaced every time")},
    explains=("OPT001", "OPT007", "CLIP001", "GRAD002"),
)
def clipping_misplaced(m: Measurement, limits: Limits) -> Verdict:
    """Gradient clipping is called where it has no effect, or the wrong one.

    ## What it finds
    Calls of `clip_grad_norm_` or `clip_grad_value_` after the step that used the gradients, before the backward pass that
    makes them, on no parameter at all (a generator that was used up), on parameters that no optimizer trains, or on
    gradients that a GradScaler has scaled and not unscaled.

    ## Why it matters
    The training is not clipped although the code says so, and the spikes that clipping should stop pass through. Clipping scaled
    gradients is worse: all of them are far above the threshold, and are cut to a fraction of their size.

    ## How it is measured
    The script is run; at each call it is checked whether the parameters belong to an optimizer, whether they have gradients,
    whether these come from a backward pass after the optimizer's last step, and whether they are scaled.

    ## Limits and their sources
    More than `share` 50 % of the calls at one place (heuristic). A matter of order otherwise: there is nothing to measure.

    ## When to ignore it
    When the call only measures a norm for a log; then use a threshold of infinity.

    ## Example
    ```python
    loss.backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    ```

    ## Use instead
    ```python
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    ```

    ## References
    PyTorch documentation: `torch.nn.utils.clip_grad_norm_`; "Automatic Mixed Precision examples", gradient clipping.
    """
    loop = script(m)
    unknown = "it is not known whether the loop clips gradients: it changes them without torch's functions"
    clips = required(loop.clips, not_measured(unknown))
    if not clips:
        return not_applicable("the script does not clip gradients")
    findings = (_clip(c, loop, limits["share"]) for c in clips if math.isfinite(c.threshold))
    return [f for f in findings if f is not None]


def _clip(clip: LoopClip, loop: LoopFacts, share: float) -> Finding | None:
    call = f"clip_grad_{clip.kind}_"
    step = "the update" if loop.by_hand else f"the step of {loop.optimizer or 'the optimizer'}"
    between = f"call it between backward() and {'the update' if loop.by_hand else 'step()'}"
    factor = f" by {number(loop.scaler.factor)}" if loop.scaler and loop.scaler.scaled else ""
    cases = (
        (clip.empty, "is given no parameter: an iterator such as parameters() is used up by its first user", "call parameters() again"),
        (clip.foreign, f"is given {clip.parameters} parameters that no optimizer trains", "pass the parameters that the optimizer holds"),
        (clip.late, f"comes after {step} that used the gradients", between),
        (clip.early, "comes before the backward pass: there is no gradient yet", between),
        (clip.scaled, f"acts on gradients that are still scaled{factor}", "call scaler.unscale_(optimizer) before it"),
    )
    count, what, cure = max(cases, key=lambda case: case[0])
    if not count > share * clip.calls:
        return None
    effect = "all of them are cut" if count == clip.scaled and clip.scaled else "nothing is clipped"
    return found(
        "error",
        f"{call} at {number(clip.threshold)} {what}, in {count} of {clip.calls} calls (limit {percent(share)}): {effect}",
        location=clip.site,
        evidence=Evidence("calls at the wrong time or on the wrong parameters", count, share * clip.calls, ">", "calls"),
        remedies=Remedy("move-clipping", cure),
        confirmed=BY_VALUE,
    )
