import math

from gradcheck.analysis.statistics import percentile
from gradcheck.analysis.wording import number, percent
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


@rule(
    "CLIP003",
    up_to="info",
    needs=("clipping",),
    limits={"coordinates": Limit(0.01, "of the entries", "heuristic"), "cosine": Limit(0.9, "cosine", "heuristic: 26 degrees off")},
)
def clipping_by_value(m: Measurement, limits: Limits) -> Verdict:
    """Gradients are clipped entry by entry, which turns them away from the steepest descent.

    ## What it finds
    Clipping by value that cuts many entries, so that the step no longer goes where the gradient points.

    ## Why it matters
    Cutting each entry on its own changes the direction. The entries that matter most lose most.

    ## How it is measured
    Gradients of the first batch before training and of the last one after the probe: the share of entries beyond the
    threshold, and the cosine of the clipped gradient with the whole one.

    ## Limits and their sources
    More than `coordinates` 1 % of the entries are cut, and the cosine is below `cosine` 0.9. Both are heuristic.

    ## When to ignore it
    With gradients that have heavy tails, clipping by value can help (Zhang et al. 2020).

    ## Example
    ```python
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)
    ```

    ## Use instead
    ```python
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    ```

    ## References
    Zhang et al. 2020, Why are Adaptive Methods Good for Attention Models?
    """
    clip = m.clip
    if clip is None or clip.kind != "value":
        return not_applicable("the scan knows of no clipping by value")
    if clip.coordinates is None or clip.cosine is None:
        return not_measured("the gradients could not be compared")
    if not (clip.coordinates > limits["coordinates"] and clip.cosine < limits["cosine"]):
        return []
    message = (
        f"clipping by value at {number(clip.threshold)} cuts {percent(clip.coordinates)} of the gradient's entries and turns it: "
        f"its cosine with the whole gradient is {number(clip.cosine)} (limit {number(limits['cosine'])})"
    )
    evidence = [
        Evidence("share of clipped entries", clip.coordinates, limits["coordinates"], ">", "of the entries"),
        Evidence("cosine with the whole gradient", clip.cosine, limits["cosine"], "<"),
    ]
    norms = [n for n in m.probe.gradient_norms if math.isfinite(n)]
    limit = number(percentile(norms, 0.9)) if norms else "1"
    remedies = Remedy("clip-gradient-norm", f"clip by norm instead: clip_grad_norm_(model.parameters(), {limit})", "safe")
    return [found("info", message, location=clip.site or m.optimizer.site, evidence=evidence, remedies=remedies)]
