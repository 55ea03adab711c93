from gradcheck.analysis.wording import number, quoted
from gradcheck.rules.watch import NOT_WATCHED, others
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.gauges import Gauge
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule


@rule(
    "WATCH002",
    up_to="warning",
    needs=("gauges", "parameters"),
    limits={
        "score": Limit(20, "standard deviations", "measured: none beyond 10 in 15 healthy runs of 2000 steps; planted spikes: 22 to 600"),
        "looks": Limit(2, "measured steps", "heuristic: one look may be one bad batch"),
    },
)
def gradient_out_of_line(m: Measurement, limits: Limits) -> Verdict:
    """The gradient of a tensor leaves its own history.

    ## What it finds
    Tensors whose gradient becomes far larger than it ever was in this run, and stays so.

    ## Why it matters
    A tensor whose gradient breaks out drags the others along in the next steps. The norm over all tensors hides it: that is made of
    a few large ones. It names the layer in which a divergence begins.

    ## How it is measured
    With Adam, from its second moment, an average of squares with a known decay: the mean gradient since the last measured step,
    so that no spike between two of them is missed. Elsewhere the norm at the measured steps. The score is the distance from the
    median of the tensor's last fifty values, in standard deviations (estimated from the median absolute deviation).

    ## Limits and their sources
    `score` (20), and three times as far above the median as any value before. In 15 healthy runs of 2000 steps (MLPs,
    convolutional nets, GPTs, a mixture of experts, LSTM, GAN, autoencoder) no tensor comes beyond 10. It is a warning when it
    lasts for `looks` (2) measured steps or more, and advice otherwise. No judgement before eight measured steps.

    ## When to ignore it
    When the data, the loss or the rate change at that step on purpose.

    ## Example
    ```python
    optimizer.step()
    ```

    ## Use instead
    ```python
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    ```

    ## References
    Chowdhery et al. 2022, PaLM, section 5.1; Wortsman et al. 2023 (arXiv 2304.13013).
    """
    if not m.probe.live:
        return not_applicable(NOT_WATCHED)
    if not any(p.steps for p in m.parameters):
        return not_measured("no gradient was measured")
    bad = [g for g in m.gauges if g.quantity == "gradient" and g.departure is not None and g.departure.score > limits["score"]]
    return [_finding(bad, limits)] if bad else []


def _finding(bad: list[Gauge], limits: Limits) -> Finding:
    def key(g: Gauge) -> tuple[bool, float]:
        d = g.departure
        return (d.lasted >= limits["looks"], d.score) if d is not None else (False, 0.0)

    worst = max(bad, key=key)
    d = worst.departure
    assert d is not None
    lasts = d.lasted >= limits["looks"]
    course = f"for {d.lasted} measured steps" if d.back else "to the last measured step"
    message = (
        f"the gradient of {quoted(worst.name)} leaves its own history at step {d.step}: {number(d.value)} after {number(d.level)}, "
        f"{number(d.score)} standard deviations (limit {number(limits['score'])}), {course}{others(len(bad) - 1)}; where the loss goes, "
        "it goes after that"
    )
    return found(
        "warning" if lasts else "info",
        message,
        layers=list(dict.fromkeys(g.layer for g in bad)),
        location=worst.site,
        evidence=Evidence("distance from its own history", d.score, limits["score"], ">", "standard deviations", worst.name),
        remedies=Remedy("clip-gradient-norm", "clip the norm of the gradients at a few times its median, and lower the rate"),
    )
