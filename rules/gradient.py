"""How the gradient travels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradcheck.analysis.convergence import any_learned, training_outcome
from gradcheck.analysis.depth import Trend, forward_trend, gradient_norms, gradient_trend, largest_drop
from gradcheck.analysis.layer_groups import BODY_KINDS, body, in_order, names, settled_step, trained_body
from gradcheck.analysis.parallel_nets import over_nets
from gradcheck.analysis.wording import BY_VALUE, learns_clearly, number, probe_failure
from gradcheck.rules import cures
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.rule import Limit, Limits, NoVerdict, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from gradcheck.types.finding import Finding, Severity
    from gradcheck.types.location import Location
    from gradcheck.types.measurement import Layer, Measurement

CALIBRATION = "507 random networks, 66 held-out ones and a zoo of 58 healthy architectures: no healthy one is beyond both limits"
TREND_LIMITS = {
    "slope": Limit(
        0.075, "decades per layer", f"{CALIBRATION}; the steepest healthy one with at least 16 layers has 0.062 (vgg16_bn: 0.10)"
    ),
    "total": Limit(2.5, "decades", f"{CALIBRATION}; at 2.5 all networks fail with SGD at 0.01, 60 % with Adam at 0.001"),
    "error_total": Limit(4.0, "decades", "same: 127 of 127 networks beyond 4 fail with SGD at 0.01"),
    "error_total_adaptive": Limit(6.0, "decades", "same: 96 of 96 networks beyond 6 fail at every one of six optimizers and rates"),
    "layers": Limit(4, "layers", "a line through fewer points is no trend"),
}
FEW_LAYERS = "fewer than {} linear, conv or recurrent layers before the head"


def lasting_trend(m: Measurement, least: int) -> Trend | NoVerdict:
    """The gradient's trend at the start, if it is still there after a few steps: the weaker of the two.

    Layers without any gradient at the start lie behind zero-initialised branches; then the later trend speaks alone.
    """
    start, step = gradient_trend(m, 0), settled_step(m)
    later = gradient_trend(m, step) if step is not None else None
    usable = later is not None and later.n >= max(least, start.n // 2)
    if start.skipped and later is None:
        return not_measured(f"{start.skipped} layers have no usable gradient before the first step, and no later step was measured")
    if later is None or not usable:
        return start if start.n >= least else not_measured("too few layers have a finite gradient that is not zero")
    if start.skipped:
        return later
    if start.slope * later.slope <= 0:
        return Trend(0.0, start.n)
    return min(start, later, key=lambda t: abs(t.total))


def trend_severity(m: Measurement, size: float, limits: Limits) -> tuple[Severity, str]:
    """Severity of a trend of `size` decades, and what confirms it when it is an error. A model that learns has none."""
    if training_outcome(m) == "learns":
        return ("info" if learns_clearly(m) and size < limits["error_total"] else "warning"), ""
    if failure := probe_failure(m):
        return "error", failure
    alone = limits["error_total_adaptive"] if m.optimizer.adaptive else limits["error_total"]
    if size >= alone and (m.optimizer.given or not any_learned(m)):
        return "error", BY_VALUE
    return "warning", ""


def trend_place(layers: list[Layer], culprit: Layer | None) -> Location | None:
    """The expression to point at: of the culprit, else the one that creates most of the layers (the first of equals)."""
    if culprit is not None:
        return culprit.site
    sites = [x.site for x in layers if x.site is not None]
    return max(dict.fromkeys(sites), key=sites.count, default=None)


def one_place(m: Measurement, trend: Trend) -> tuple[Layer | None, str]:
    """The layer behind more than half of the trend, if one is, and a clause about it."""
    drop = largest_drop(gradient_norms(m, 0), rising=trend.slope > 0)
    if drop is None or trend.n < 6 or abs(drop.decades) < 0.5 * abs(trend.total):
        return None, ""
    return drop.after, f"; {number(abs(drop.decades))} of them between {drop.before.name} and {drop.after.name}"


def trend_evidence(trend: Trend, limits: Limits, layer: str) -> tuple[Evidence, ...]:
    return (
        Evidence("slope of the gradient over depth", abs(trend.slope), limits["slope"], ">=", "decades per layer", layer),
        Evidence("change of the gradient over depth", abs(trend.total), limits["total"], ">=", "decades", layer),
    )


def trend_finding(m: Measurement, trend: Trend, limits: Limits, verb: str, outcome: str, remedies: tuple[Remedy, ...]) -> Finding:
    layers = trained_body(m)
    severity, confirmed = trend_severity(m, abs(trend.total), limits)
    culprit, where = one_place(m, trend)
    if severity == "info":
        outcome = "the probe training learns all the same, with little to spare"
    message = (
        f"gradient {verb} towards the input: {number(abs(trend.slope))} decades per layer over {trend.n} layers "
        f"({number(abs(trend.total))} decades; limit {number(limits['total'])}{where}), "
        f"from {layers[-1].name} back to {layers[0].name}: {outcome}"
    )
    evidence = trend_evidence(trend, limits, layers[0].name)
    place = trend_place(layers, culprit)
    return found(severity, message, layers=names(layers), location=place, evidence=evidence, remedies=remedies, confirmed=confirmed)


@rule(
    "GRAD001",
    "vanishing-gradient",
    up_to="error",
    needs=("signals", "graph", "probe"),
    limits=TREND_LIMITS,
    explains=("NORM001", "INIT001", "INIT002", "INIT007", "ACT004", "OPT002", "GRAPH008", "LOSS005"),
)
def vanishing_gradient(m: Measurement, limits: Limits) -> Verdict:
    """The gradient shrinks exponentially on its way from the loss to the input.

    ## What it finds
    Networks whose gradient loses a constant factor per layer, so that the layers near the input receive next to
    none.

    ## Why it matters
    The first layers keep their random weights while the last ones train on what these make of the input. Of 507
    randomly drawn networks, all 164 whose gradient shrank or grew by 3 decades or more failed with SGD at 0.01.

    ## How it is measured
    In training mode, before the first step and again after three: the 2-norm of dL/dh for the output h of each
    linear, conv and recurrent layer before the head, up to the last one that the optimizer trains. A line through log10
    of the norms over depth, the number of such layers on the longest way from the input, gives the slope; slope times
    depth is the total. Nets side by side, such as actor and critic, are judged one by one. Ratios of weight gradients are
    not used: forward and backward decay cancel in them. Layers whose gradient is exactly zero at the start (behind
    zero-initialised branches) are left to the later measurement. Both the slope and the total must be beyond
    their limits, both times.

    ## Limits and their sources
    `slope` 0.075 decades per layer and `total` 2.5 decades: a warning. `error-total` 4 decades (SGD and kin) or
    `error-total-adaptive` 6 decades (Adam and kin): an error; below them only if the probe training fails.
    Never an error when the probe training learns, and below 4 decades only advice when its loss falls by 10 %.
    At least `layers` 4. All from 507 random networks trained with two optimizers, 66 held-out ones, and 58
    healthy architectures.

    ## When to ignore it
    When only the last layers are meant to learn: better to freeze the first ones, which also silences this
    rule.

    ## Example
    ```python
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(20)]  # torch's default: x 0.41 per layer
    ```

    ## Use instead
    ```python
    for layer in layers:
        nn.init.kaiming_normal_(layer[0].weight, nonlinearity="relu")
        nn.init.zeros_(layer[0].bias)
    ```

    ## References
    Glorot and Bengio 2010; He et al. 2015; Schoenholz et al. 2016, Deep Information Propagation.
    """
    return over_nets(m, lambda net: _vanishing(net, limits))


def _vanishing(m: Measurement, limits: Limits) -> Verdict:
    least = int(limits["layers"])
    if len(trained_body(m)) < least:
        return not_applicable(FEW_LAYERS.format(least))
    trend = lasting_trend(m, least)
    if not isinstance(trend, Trend):
        return trend
    if trend.slope <= 0 or not trend.beyond(limits["slope"], limits["total"]):
        return []
    layers = trained_body(m)
    activation = cures.usual_activation(layers)
    swap = (cures.other_activation(activation),) if activation in cures.SIGMOID_LIKE else ()
    remedies = (*swap, *cures.reinitialise(m, layers), *cures.rescale(m), *cures.bypass(layers), *cures.normalise(m, layers))
    return [trend_finding(m, trend, limits, "shrinks", "the layers near the input will hardly learn", remedies)]


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
    signal = f"; the largest output, rms {number(loudest.at(0).output.rms)}, is that of {loudest.name}" if loudest else ""  # type: ignore[union-attr]
    means = "it learns in the probe all the same" if learns else "the first steps only undo the scale of the outputs, or break the weights"
    message = (
        f"initial loss {number(m.probe.losses[0])} is {number(ratio)} times that of a constant prediction "
        f"(limit {number(limits['initial_loss'])}){signal}: {means}"
    )
    evidence = (Evidence("initial loss over chance", ratio, limits["initial_loss"], ">", "times", loudest.name if loudest else None),)
    return found(
        "warning" if learns else "error",
        message,
        layers=(loudest.name,) if loudest else (),
        location=loudest.site if loudest else None,
        evidence=evidence,
        remedies=explosion_remedies(m, layers),
        confirmed="" if learns else BY_VALUE,
    )


@rule(
    "GRAD002",
    "exploding-gradient",
    up_to="error",
    needs=("signals", "graph", "losses", "probe"),
    limits=TREND_LIMITS
    | {"initial_loss": Limit(1e4, "times chance", "all of 507 random networks beyond it fail; 58 healthy ones reach 1.54")},
    explains=(
        "NORM001",
        "NORM002",
        "INIT003",
        "INIT001",
        "INIT002",
        "INIT007",
        "ACT004",
        "OPT001",
        "OPT002",
        "LOSS003",
        "LOSS005",
        "NUM001",
    ),
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


RULES = (vanishing_gradient, exploding_gradient)
