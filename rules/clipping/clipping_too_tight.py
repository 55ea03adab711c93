import math
from statistics import median

from gradcheck.analysis.statistics import percentile
from gradcheck.analysis.wording import falls_short, number, optimizer_in_words, percent, run_in_words
from gradcheck.rules.clipping import SETTLED
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

TIGHT = 10.0  # times the threshold: a usual norm this large means that clipping sets the size of nearly every step


@rule(
    "CLIP002",
    up_to="warning",
    needs=("probe", "parameters", "clipping"),
    limits={"share": Limit(0.5, "of the steps", "Deep Learning Tuning Playbook: more than half is extremely aggressive")},
    explains=("OPT002",),
)
def clipping_too_tight(m: Measurement, limits: Limits) -> Verdict:
    """Most steps are clipped: the threshold, not the learning rate, sets their size.

    ## What it finds
    A threshold for the gradient norm that lies below most norms of the probe training.

    ## Why it matters
    Clipping is meant for outliers. When it acts all the time, each step has the same length whatever the gradient says,
    and the rate that is written down is not the rate of the training. Steps do not get smaller near a minimum.

    ## How it is measured
    Share of the probe's steps after the first 20 whose gradient norm, before clipping, was above the threshold.

    ## Limits and their sources
    More than `share` 50 % of the steps. With an adaptive optimizer, which rescales gradients anyway, it is a note, unless
    what is left of the gradients is no larger than its epsilon. With others it is a warning when the usual norm is 10 times
    the threshold or the probe does not learn clearly (both heuristic).

    ## When to ignore it
    Large language models are often trained with a norm of 1 that clips nearly every early step, with Adam.

    ## Example
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1e-3)
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=5.0)
    ```

    ## References
    Godbole et al. 2023, Deep Learning Tuning Playbook; Seetharaman et al. 2020, AutoClip.
    """
    clip, norms = m.clip, [n for n in m.probe.gradient_norms[SETTLED:] if math.isfinite(n)]
    if clip is None or clip.kind != "norm":
        return not_applicable("the scan knows of no clipping by norm")
    if clip.clipped is None or not norms:
        return not_measured(f"the probe took fewer than {SETTLED} steps")
    if not clip.clipped > limits["share"]:
        return []
    usual, optimizer = median(norms), m.optimizer
    if optimizer.adaptive:
        count = sum(p.count for p in m.parameters if p.trainable) or 1
        bad = optimizer.eps is not None and clip.threshold / count**0.5 < 10 * optimizer.eps and falls_short(m)
    else:
        bad = usual > TIGHT * clip.threshold or falls_short(m)
    severity: Severity = "warning" if bad and optimizer.given else "info"
    rate = optimizer.lr * clip.threshold / usual
    message = (
        f"{percent(clip.clipped)} of the steps are clipped (limit {percent(limits['share'])}): gradients of norm {number(usual)} "
        f"are cut to {number(clip.threshold)}"
    )
    message += (
        f", which {optimizer.name} mostly undoes"
        if optimizer.adaptive and not bad
        else f", so that {optimizer_in_words(m)} trains at about {number(rate)}, and {run_in_words(m.probe)}"
    )
    text = f"raise the threshold to {number(percentile(norms, 0.9))}, the 90th percentile of the measured norms"
    text += "" if optimizer.adaptive else ", and lower the learning rate instead if that diverges"
    evidence = [
        Evidence("share of clipped steps", clip.clipped, limits["share"], ">", "of the steps"),
        Evidence("usual gradient norm", usual, clip.threshold, ">"),
    ]
    remedies = Remedy("clip-gradient-norm", text, "safe")
    return [found(severity, message, location=clip.site or optimizer.site, evidence=evidence, remedies=remedies)]
