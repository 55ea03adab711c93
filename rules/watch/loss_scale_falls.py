from gradcheck.analysis.wording import number
from gradcheck.rules.watch import NOT_WATCHED
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "WATCH008",
    up_to="warning",
    needs=("gauges",),
    wants=("log",),
    limits={
        "scale": Limit(1, "", "Megatron and DeepSpeed stop there: below it gradients overflow that nothing has enlarged"),
        "fall": Limit(4096, "times", "heuristic: twelve halvings below the highest; healthy scales settle within six of their start"),
    },
    explains=("WATCH009",),
)
def loss_scale_falls(m: Measurement, limits: Limits) -> Verdict:
    """The scale of the loss scaler keeps falling.

    ## What it finds
    A GradScaler whose factor has come down to 1 or less, or to a small part of what it was.

    ## Why it matters
    Each halving is a step that was skipped because a gradient was infinite. A factor that keeps falling means gradients that grow
    without bound, or a layer whose output overflows; at the end every step is skipped, and the loss stands still.

    ## How it is measured
    The factor at the measured steps; in the log of a finished run the column of it, after the first tenth.

    ## Limits and their sources
    `scale` (1), and `fall` (4096 times below the highest factor of the run, while it is at its lowest).

    ## When to ignore it
    When the factor was set by hand.

    ## Example
    ```python
    scaler.step(optimizer)
    scaler.update()
    ```

    ## Use instead
    ```python
    with torch.autocast("cuda", dtype=torch.bfloat16):  # needs no scaler
        loss = loss_fn(model(x), y)
    ```

    ## References
    Micikevicius et al. 2018, Mixed precision training, section 3.2.
    """
    gauge = next((g for g in m.gauges if g.quantity == "loss-scale" and g.values), None)
    if gauge is None:
        return not_applicable(NOT_WATCHED if not m.probe.live else "no GradScaler scales the loss")
    last, highest = gauge.values[-1], gauge.peak
    fall = highest / last if last > 0 else float("inf")
    low = last < limits["scale"] and highest > limits["scale"]
    if not low and not (fall >= limits["fall"] and last <= min(gauge.values)):
        return []
    since = next(s for s, v in zip(gauge.steps, gauge.values, strict=True) if v <= highest / 2)
    message = (
        f"the factor of the GradScaler has fallen from {number(highest)} to {number(last)} (limit {number(limits['scale'])}, or "
        f"{number(limits['fall'])} times), beginning by step {since}: each halving is a step skipped for an infinite gradient, and "
        "at the end all of them are"
    )
    evidence = Evidence("fall of the factor", fall, limits["fall"], ">=", "times")
    text = "compute in bfloat16, or find the layer whose output or gradient grows (gradient-out-of-line, half-overflow)"
    return [found("warning", message, location=m.optimizer.site, evidence=evidence, remedies=Remedy("bfloat16", text))]
