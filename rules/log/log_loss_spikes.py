from gradcheck.analysis.curves import FEWEST, WINDOW, CurveSpike, changed_at_once, ends, resembling, spikes
from gradcheck.analysis.wording import number
from gradcheck.rules.log import NO_LOSS, at_step, led_by_rewards, look, recorded
from gradcheck.types.finding import Evidence, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_measured, required, rule
from gradcheck.types.training import LogFacts


@rule(
    "LOG003",
    up_to="warning",
    needs=("log",),
    limits={
        "score": Limit(
            10,
            "standard deviations",
            "measured: 0 such jumps in 13 healthy runs, batches of one and heavy tails among them; failures: 200 to 300",
        ),
        "reach": Limit(3, "times the highest value before", "heuristic: noise with heavy tails has been as high before"),
        "lost": Limit(0.5, "of what was learned", "heuristic: a stretch that throws the run back half of the way is no spike of a batch"),
        "faster": Limit(1.5, "times the rate before", "heuristic: a schedule that restarts raises the loss on purpose"),
        "count": Limit(3, "spikes", "heuristic: one or two bad batches are no illness of the training"),
    },
)
def log_loss_spikes(m: Measurement, limits: Limits) -> Verdict:
    """The logged loss jumps up.

    ## What it finds
    Three values in a row far above the level of the fifty before them, or ten whose median is: jumps that do not come back, and several
    that do. A value that stands alone is a bad sample or noise, and not reported.

    ## Why it matters
    A spike that comes back has cost some steps. One that does not has thrown the run back; it is often the first sign of a
    divergence. They come from bad batches, from a second moment of Adam that lags behind the gradients, or from logits that grow.

    ## How it is measured
    By a robust score: the distance from the median of the fifty values before, in standard deviations (estimated from the
    median absolute deviation); of a stretch of ten, the distance of its median in standard errors. The norm of the gradient
    right before a spike is given where the log has it.

    ## Limits and their sources
    `score` (10), together with `reach` (3 times as far above the level as any of the fifty). A spike that does not come back is
    a warning, as are, in the log of a finished run, more than `count` (3) that do, and one that lasts and goes `lost` (50 %) of
    the way back to the first level: a bad shard of the data looks so. Others are advice. So are all in
    a log with rewards, and, in a run that is watched, all that come back: targets that are renewed now and then, as in Q-learning,
    make them. Where the rate rises to `faster` (1.5) times what it was, the schedule is the reason. In a watched run a jump that is
    at its height at once, after updates below 10 % of the weights, and comes down from there by a third, is none of the weights'.

    ## When to ignore it
    When the data change at that step on purpose.

    ## Example
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.999))
    ```

    ## Use instead
    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    ```

    ## References
    Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language models (arXiv 2304.13013); Chowdhery et al.
    2022, PaLM, section 5.1.
    """
    log = recorded(m)
    curve = required(log.loss, NO_LOSS).finite
    if len(curve.values) <= FEWEST:
        return not_measured(f"{len(curve.values)} values of the loss are too few")
    every = [s for s in spikes(curve, limits["score"], limits["reach"], m.log is not None) if not _faster(log, s, limits["faster"])]
    if not every:
        return []
    stays = [s for s in every if s.back is None]
    worst = stays[0] if stays else max(every, key=lambda s: s.score)
    first = ends(curve.values)[0]
    shard = any(s.lasts and s.value - s.level > limits["lost"] * (first - s.level) for s in every)
    often = m.log is not None and (len(every) > limits["count"] or shard)
    severity: Severity = "warning" if (stays or often) and not led_by_rewards(log) else "info"
    others = f", and {len(every) - 1} more" if len(every) > 1 else ""
    after = "and does not come back" if worst.back is None else f"and is back at {at_step(worst.back)}"
    unit = "errors" if worst.lasts else "deviations"
    message = (
        f"the loss ({curve.name}) jumps from {number(worst.level)} to {number(worst.value)} at {at_step(worst.step)}, "
        f"{number(worst.score)} standard {unit} above the values before (limit {number(limits['score'])}), {after}{others}"
        f"{_norm_before(log, worst)}"
    )
    evidence = Evidence("distance from the level before", worst.score, limits["score"], ">", "standard deviations")
    remedies = look(m, f"see which batch and which layer it is, by watching from a checkpoint before {at_step(worst.step)}")
    changed = changed_at_once(m)
    if changed is not None:
        message += ": at once, after small updates, so the data, their labels or the loss changed there, and not the weights"
        remedies = Remedy("look-at-data", f"look at what the loop reads and computes from {at_step(changed.step)} on")
    return [found(severity, message, evidence=evidence, remedies=remedies)]


def _faster(log: LogFacts, spike: CurveSpike, times: float) -> bool:
    """Whether the rate has risen among the points before a spike."""
    rate = log.rate.finite if log.rate is not None else None
    loss = log.loss.finite if log.loss is not None else None
    if rate is None or loss is None or not rate.values:
        return False
    place = loss.steps.index(spike.step)
    now, *before = resembling(rate, [spike.step, *loss.steps[max(0, place - WINDOW // 2) : place]])
    return now > times * min(before, default=now)


def _norm_before(log: LogFacts, spike: CurveSpike) -> str:
    norm = log.norm.finite if log.norm is not None else None
    if norm is None or not norm.values:
        return ""
    (value,) = resembling(norm, [spike.step])
    return f"; the norm of the gradient is {number(value)} there"
