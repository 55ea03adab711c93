import math

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.depth import Trend, forward_trend, gradient_trend, over_nets
from gradcheck.analysis.layer_groups import BODY_KINDS, body, in_order, names
from gradcheck.analysis.wording import BY_VALUE, number, quoted
from gradcheck.rules import cures
from gradcheck.rules.gradient import FEW_LAYERS, TREND_LIMITS, lasting_trend, trend_finding, trend_place
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, NoVerdict, Verdict, found, not_applicable, rule


def overflow(m: Measurement, limits: Limits) -> Trend | None:
    """The growth that ends in non-finite gradients at the start: backward, or forward when the outputs overflow already."""
    layers = body(m)
    start = [s for s in (x.at(0) for x in layers) if s is not None]
    broken = [s for s in start if (s.gradient and not s.gradient.finite) or (s.output and not s.output.finite)]
    if not broken:
        return None
    backward, forward = gradient_trend(m, 0), forward_trend(m, 0)
    for trend, growing in ((backward, backward.slope < 0), (forward, forward.slope > 0)):
        if growing and trend.n >= limits["layers"] and trend.beyond(limits["slope"], limits["total"]):
            return trend
    return None


def initial_loss_ratio(m: Measurement) -> float | None:
    """Initial loss over that of the best constant prediction, for losses over classes; None where that says nothing."""
    if not m.probe.losses or not m.chance or m.chance <= 0 or not any(c.classes for c in m.losses):
        return None
    return m.probe.losses[0] / m.chance


def explosion_remedies(m: Measurement, layers: list[Layer]) -> tuple[Remedy, ...]:
    clip = Remedy("clip-gradient-norm", "clip the gradient's norm before each step: it limits the damage, not the cause", "advice")
    branches = cures.bypass(layers) if any(x.residual for x in layers) else ()
    return (*cures.reinitialise(m, layers), *cures.rescale(m), *branches, *cures.normalise(m, layers), clip)


def overflow_finding(m: Measurement, trend: Trend, limits: Limits) -> Finding:
    layers = body(m)
    way = "gradient grows towards the input" if trend.slope < 0 else "signal grows with depth"
    message = (
        f"{way} by {number(abs(trend.slope))} decades per layer over {trend.n} layers "
        f"({number(abs(trend.total))} decades; limit {number(limits['total'])}) and overflows before the first step: no step can be taken"
    )
    broken = [x for x in layers if (s := x.at(0)) and not all(t.finite for t in (s.output, s.gradient) if t)]
    evidence = (
        Evidence("layers with non-finite outputs or gradients", len(broken), 0, ">", "layers", broken[0].name),
        Evidence("change over depth", abs(trend.total), limits["total"], ">=", "decades", broken[0].name),
    )
    place, remedies = trend_place(layers, None), explosion_remedies(m, layers)
    return found("error", message, layers=names(layers), location=place, evidence=evidence, remedies=remedies, confirmed=BY_VALUE)


def huge_loss_finding(m: Measurement, ratio: float, limits: Limits) -> Finding:
    layers = body(m) or [x for x in in_order(m) if x.kind in BODY_KINDS]
    learns = training_outcome(m) == "learns"
    loudest = max((x for x in layers if (s := x.at(0)) and s.output), key=lambda x: x.at(0).output.rms, default=None)  # type: ignore[union-attr]
    signal = f"; the largest output, rms {number(loudest.at(0).output.rms)}, is that of {quoted(loudest.name)}" if loudest else ""  # type: ignore[union-attr]
    means = "it learns in the probe anyway" if learns else "the first steps only undo the scale of the outputs, or ruin the weights"
    message = (
        f"initial loss {number(m.probe.losses[0])} is {number(ratio)} times that of a constant prediction "
        f"(limit {number(limits['initial_loss'])}){signal}: {means}"
    )
    evidence = Evidence("initial loss over chance", ratio, limits["initial_loss"], ">", "times", loudest.name if loudest else None)
    return found(
        "warning" if learns else "error",
        message,
        layers=(loudest.name,) if loudest else (),
        location=loudest.site if loudest else None,
        evidence=evidence,
        remedies=explosion_remedies(m, layers),
        confirmed=BY_VALUE,
    )


@rule(
    "GRAD002",
    up_to="error",
    needs=("signals", "graph", "losses", "probe"),
    limits=TREND_LIMITS
    | {"initial_loss": Limit(1e4, "times chance", "all of 507 random networks beyond it fail; 58 healthy ones reach 1.54")},
    explains="NORM001 NORM002 INIT003 INIT001 INIT002 INIT007 ACT004 OPT001 OPT007 OPT002 LOSS003 LOSS005 NUM001".split(),
)
def exploding_gradient(m: Measurement, limits: Limits) -> Verdict:
    """The gradient, or the signal, grows exponentially with the number of layers.

    ## What it finds
    Networks whose gradient gains a constant factor per layer towards the input; signals that overflow on the
    way; and outputs so large that the first loss is thousands of times that of a constant guess.

    ## Why it matters
    One rate cannot fit all layers: the rate that moves the last layers throws the first ones out, or the first
    step ends in NaN.

    ## How it is measured
    As `vanishing-gradient`, with the slope of the other sign: 2-norms of dL/dh over the linear, conv and
    recurrent layers before the head, before the first step and after three. When outputs or gradients are not
    finite before the first step, the finite ones must show the growth that leads there; other non-finite values
    are left to the rule that names their first operation. The initial loss is compared with the best constant
    prediction, for losses over classes.

    ## Limits and their sources
    `slope` 0.075 decades per layer and `total` 2.5 decades: a warning. `error-total` 4 (SGD and kin) or
    `error-total-adaptive` 6 decades (Adam and kin): an error; below them only if the probe training fails.
    Never an error when the probe training learns, and below 4 decades only advice when its loss falls by 10 %.
    At least `layers` 4. `initial-loss` 10 000 times chance: an error unless the probe learns. From 507 random
    networks and 58 healthy architectures.

    ## When to ignore it
    Batch normalization without residual connections lets gradients grow by 0.08 decades per layer; when such a
    model trains well with warm-up, this is a warning that can be ignored.

    ## Example
    ```python
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5)  # fan-in 256: gain 8, each layer multiplies by 5.7
    ```

    ## Use instead
    ```python
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    ```

    ## References
    Glorot and Bengio 2010; Yang et al. 2019, A Mean Field Theory of Batch Normalization; Pascanu et al. 2013.
    """
    growth = over_nets(m, lambda net: _growing(net, limits))
    ratio = initial_loss_ratio(m)
    if ratio is not None and math.isfinite(ratio) and ratio > limits["initial_loss"] and (isinstance(growth, NoVerdict) or not growth):
        return [huge_loss_finding(m, ratio, limits)]
    return growth


def _growing(m: Measurement, limits: Limits) -> Verdict:
    least = int(limits["layers"])
    if (spill := overflow(m, limits)) is not None:
        return [overflow_finding(m, spill, limits)]
    trend = lasting_trend(m, least) if len(body(m)) >= least else not_applicable(FEW_LAYERS.format(least))
    if isinstance(trend, Trend) and trend.slope < 0 and trend.beyond(limits["slope"], limits["total"]):
        outcome = "no rate fits the first and the last layers"
        return [trend_finding(m, trend, limits, "grows", outcome, explosion_remedies(m, body(m)))]
    return [] if isinstance(trend, Trend) else trend
