import math
from collections.abc import Mapping

from gradcheck.analysis.activations import GAINS
from gradcheck.analysis.depth import Trend, forward_trend, gradient_trend, over_nets
from gradcheck.analysis.layer_groups import body, by_site, gain, names, parameters_by_name, weight
from gradcheck.analysis.wording import also_in, falls_short, number, quoted
from gradcheck.rules import cures
from gradcheck.rules.initialization import NO_GAINS, TRAINED_BEFORE
from gradcheck.types.finding import Evidence, Finding
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


def body_gains(m: Measurement) -> dict[str, float]:
    """Gain of each linear and conv layer of the body whose gain is meaningful, by layer name."""
    parameters = parameters_by_name(m)
    return {x.name: g for x in body(m) if x.kind != "recurrent" and (g := gain(x, parameters)) is not None}


def misfit(value: float, activation: str | None, backward: float | None = None) -> float:
    """How many times the gain is outside of what the activation calls for: 1 inside, 2 for half or twice, ...

    `backward`: the same with the outputs in place of the inputs. Either may fit, and so may what lies between them: their ratios
    cancel over the depth of a network (He et al. 2015, section 2.2). A tall orthogonal matrix keeps the norm, not the rms.
    """
    low, high = GAINS.get(activation or "linear", (0.0, math.inf))
    least, most = min(value, backward or value), max(value, backward or value)
    return max(1.0, low / most, least / high)


def backward_gain(layer: Layer, value: float, parameters: Mapping[str, Parameter]) -> float:
    """Gain of a layer by its fan-out, the factor on the rms of the gradient, from the one by its fan-in."""
    p = weight(layer, parameters)
    if p is None or not layer.fan_in:
        return value
    kernel = math.prod(p.shape[2:])
    return value * math.sqrt(p.shape[0] * p.shape[1] * kernel**2) / layer.fan_in


@rule(
    "INIT001",
    up_to="warning",
    needs=("signals", "parameters", "graph", "probe"),
    limits={
        "misfit": Limit(2.0, "times", "table of gains per activation, by quadrature; half or twice the gain is 0.3 decades per layer"),
        "forward_slope": Limit(0.1, "decades per layer", "heuristic; healthy networks reach 0.18, hence the total beside it"),
        "forward_total": Limit(2.0, "decades", "heuristic; VGG11, the steepest healthy network but AlexNet, has 1.8"),
        "slope": Limit(0.075, "decades per layer", "limits of vanishing-gradient: 507 random networks, 58 healthy architectures"),
        "total": Limit(2.5, "decades", "limits of vanishing-gradient: 507 random networks, 58 healthy architectures"),
        "total_learning": Limit(4.0, "decades", "vanishing-gradient's limit for a warning on a model that learns in the probe"),
    },
    explains=("NORM001",),
)
def signal_gain(m: Measurement, limits: Limits) -> Verdict:
    """The scale of the weights does not fit the activation that follows, and the signal shows it.

    ## What it finds
    Linear and conv layers whose gain, sqrt(fan_in) times the standard deviation of the weights, is more than
    twice off what their activation needs, in a network whose signal or gradient shrinks or grows with depth.

    ## Why it matters
    A gain that is off by a factor multiplies the signal by that factor in each layer: over 20 layers, half of
    the right gain leaves a millionth.

    ## How it is measured
    Standard deviation of each weight before the first step, against a table: ReLU 1.41, GELU 1.53, SiLU 1.67,
    tanh 1.05 to 1.67, SELU 0.75 to 1, none 1. With the fan-out in place of the fan-in the gain may fit as well. Layers
    followed by a normalization, the ends of residual branches and weights that were trained before are exempt. The forward
    trend is that of log10 rms over the layers; it corroborates only, and only while the probe training does not learn.

    ## Limits and their sources
    `misfit` 2 times, together with a forward trend of at least `forward-slope` 0.1 decades per layer and
    `forward-total` 2 decades, or a gradient trend of `slope` 0.075 and `total` 2.5 decades (the limits of
    `vanishing-gradient`). When the probe training learns clearly, only the gradient counts, from
    `total-learning` 4 decades on.

    ## When to ignore it
    When the scale is set elsewhere, for example by a learned gain.

    ## Example
    ```python
    nn.init.normal_(layer.weight, std=0.01)  # fan-in 512: gain 0.23, ReLU needs 1.41
    ```

    ## Use instead
    ```python
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    ```

    ## References
    He et al. 2015, Delving Deep into Rectifiers; Mishkin and Matas 2016, All You Need Is a Good Init.
    """
    if m.pretrained:
        return not_applicable(TRAINED_BEFORE)
    return over_nets(m, lambda net: _misfitting(net, limits))


def _misfitting(m: Measurement, limits: Limits) -> Verdict:
    gains = body_gains(m)
    if not gains:
        return not_applicable(NO_GAINS)
    forward, backward = forward_trend(m), gradient_trend(m)
    if not falls_short(m):
        shows = backward.beyond(limits["slope"], limits["total_learning"])
    else:
        ahead = forward.beyond(limits["forward_slope"], limits["forward_total"])
        shows = ahead or backward.beyond(limits["slope"], limits["total"])
    if not shows:
        return []
    parameters = parameters_by_name(m)
    plain = [x for x in body(m) if x.name in gains and not x.normalized and not x.residual and x.groups == 1]
    off = {x.name: misfit(gains[x.name], x.activation, backward_gain(x, gains[x.name], parameters)) for x in plain}
    faulty = [x for x in plain if off[x.name] > limits["misfit"]]
    return [_gain_finding(m, group, gains, off, forward, backward, limits) for group in by_site(faulty)]


def _gain_finding(
    m: Measurement, group: list[Layer], gains: dict[str, float], off: dict[str, float], forward: Trend, backward: Trend, limits: Limits
) -> Finding:
    worst = max(group, key=lambda x: off[x.name])
    times, ahead = off[worst.name], gains[worst.name]
    nearest = min(ahead, backward_gain(worst, ahead, parameters_by_name(m)), key=lambda g: misfit(g, worst.activation))
    by_fan_out = "" if nearest == ahead else " by their fan-out"
    low, high = GAINS.get(worst.activation or "linear", (1.0, 1.0))
    wanted = number(low) if low == high else f"{number(low)} to {number(high)}"
    after = f"{worst.activation} after it" if worst.activation else "no activation after it"
    message = (
        f"weights of {quoted(worst.name)} have gain {number(nearest)}{by_fan_out}, {number(times)} times off the {wanted} for {after} "
        f"(limit {number(limits['misfit'])} times){also_in(group)}: over depth the signal changes by {number(forward.total)} decades"
        f"{', the gradient by ' + number(abs(backward.total)) if backward.n >= 2 else ''}"
    )
    return found(
        "warning",
        message,
        layers=names(group),
        location=worst.site,
        evidence=Evidence("gain against the activation's", times, limits["misfit"], ">", "times", worst.name),
        remedies=(*cures.reinitialise(m, group), *cures.rescale(m)),
    )
