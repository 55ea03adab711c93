import math

from gradcheck.analysis.convergence import relative_decrease, training_outcome
from gradcheck.analysis.wording import also_in, number, percent, quoted
from gradcheck.rules.watch import NOT_WATCHED
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

AMPLE = 0.9  # relative fall of the loss: what has learned so much has small gradients by right
NORMAL = -14  # exponent of the smallest float16 number with all its digits


@rule(
    "WATCH009",
    up_to="warning",
    needs=("signals", "gauges"),
    limits={
        "under": Limit(0.5, "of the entries", "heuristic: half of what is left has lost digits, and about as much is 0 already"),
        "looks": Limit(2, "measured steps", "heuristic: one batch may be well predicted"),
    },
)
def gradients_leave_format(m: Measurement, limits: Limits) -> Verdict:
    """Gradients in float16 sink to the end of its range as the run goes on.

    ## What it finds
    Layers that compute in float16 and whose gradients, as they are scaled, lie mostly below the smallest normal number.

    ## Why it matters
    Gradients become smaller as the loss falls. Below 6e-5 float16 loses digits, below 6e-8 everything: first the layers far from
    the loss learn less, then nothing, while the loss still falls a little. A scan, which looks at the start, cannot see it.

    ## How it is measured
    From the exponents of a sample of each gradient that is not zero, in the last measured steps, times the factor of the loss scaler.

    ## Limits and their sources
    `under` (50 % of the entries that are not zero) in the last `looks` (2) measured steps. It is advice where the loss has fallen by 90 %.

    ## When to ignore it
    At the very end of a run.

    ## Example
    ```python
    with torch.autocast("cuda", dtype=torch.float16):
        loss = loss_fn(model(x), y)
    loss.backward()
    ```

    ## Use instead
    ```python
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    ```

    ## References
    Micikevicius et al. 2018, Mixed precision training, section 3.2.
    """
    if not m.probe.live:
        return not_applicable(NOT_WATCHED)
    halves = [x for x in m.layers if x.dtype == "float16" and x.trained and x.snapshots]
    if not halves:
        return not_applicable("nothing is computed in float16")
    end = NORMAL - round(math.log2(m.probe.loss_scale)) if m.probe.loss_scale > 0 else NORMAL
    looks = int(limits["looks"])
    bad = [x for x in halves if len(x.snapshots) >= looks and min(under(x, end)[-looks:]) > limits["under"]]
    if not bad:
        return []
    worst = max(bad, key=lambda x: under(x, end)[-1])
    shares = under(worst, end)
    message = (
        f"{percent(shares[-1])} of the gradient at {quoted(worst.name)} lies below 2^{end}, where float16 loses digits (limit "
        f"{percent(limits['under'])}), and {percent(shares[0])} did at the start{also_in(bad)}: as the loss falls the rest follows, and "
        "what becomes 0 is not learned from"
    )
    evidence = Evidence("share of the gradient below the normal range", shares[-1], limits["under"], ">", "", worst.name)
    text = f"scale the loss (torch.amp.GradScaler; the factor is {number(m.probe.loss_scale)}), or compute in bfloat16"
    names = [x.name for x in bad]
    learned = training_outcome(m) == "learns" and relative_decrease(m.probe, m.chance) >= AMPLE
    remedies = Remedy("loss-scaling", text)
    severity: Severity = "info" if learned else "warning"
    return [found(severity, message, layers=names, location=worst.site, evidence=evidence, remedies=remedies)]


def under(x: Layer, end: int) -> list[float]:
    """Of each measured step: share of the gradient's entries that are not 0 with an exponent below `end`."""
    known = [s.gradient for s in x.snapshots if s.gradient is not None]
    totals = [(sum(g.exponent_counts), sum(g.exponent_counts[: max(0, end - g.exponent_low)])) for g in known]
    return [below / total if total else 1.0 if g.norm == 0 else 0.0 for g, (total, below) in zip(known, totals, strict=True)] or [0.0]
