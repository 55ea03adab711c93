"""Rules about how gradients travel.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

from gradcheck.analysis.convergence import any_learned, training_outcome
from gradcheck.analysis.depth import Trend, gradient_norms, gradient_trend, largest_drop, trend_evidence
from gradcheck.analysis.layer_groups import names, settled_step, trained_body
from gradcheck.analysis.wording import BY_VALUE, learns_clearly, number, probe_failure, quoted
from gradcheck.types.finding import Finding, Remedy, Severity
from gradcheck.types.layers import Layer
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, NoVerdict, found, not_measured

RULES = "vanishing_gradient exploding_gradient gradient_through_time zero_gradient gradient_outliers".split()

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
    """The expression to point at: that of the culprit, else the one that creates most of the layers (the first of equals)."""
    if culprit is not None:
        return culprit.site
    sites = [x.site for x in layers if x.site is not None]
    return max(dict.fromkeys(sites), key=sites.count, default=None)


def one_place(m: Measurement, trend: Trend) -> tuple[Layer | None, str]:
    """The layer behind more than half of the trend, if one is, and a clause about it."""
    drop = largest_drop(gradient_norms(m, 0), rising=trend.slope > 0)
    if drop is None or trend.n < 6 or abs(drop.decades) < 0.5 * abs(trend.total):
        return None, ""
    return drop.after, f"; {number(abs(drop.decades))} of them between {quoted(drop.before.name)} and {quoted(drop.after.name)}"


def trend_finding(m: Measurement, trend: Trend, limits: Limits, verb: str, outcome: str, remedies: tuple[Remedy, ...]) -> Finding:
    layers = trained_body(m)
    severity, confirmed = trend_severity(m, abs(trend.total), limits)
    culprit, where = one_place(m, trend)
    if severity == "info":
        outcome = "the probe training learns anyway, with little to spare"
    message = (
        f"gradient {verb} towards the input: {number(abs(trend.slope))} decades per layer over {trend.n} layers "
        f"({number(abs(trend.total))} decades; limit {number(limits['total'])}{where}), "
        f"from {layers[-1].name} back to {layers[0].name}: {outcome}"
    )
    evidence = trend_evidence(trend, limits, layers[0].name)
    place = trend_place(layers, culprit)
    return found(severity, message, layers=names(layers), location=place, evidence=evidence, remedies=remedies, confirmed=confirmed)
