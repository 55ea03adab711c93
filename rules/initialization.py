"""What the weights are before the first step."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from gradcheck.analysis.depth import GAINS, Trend, forward_trend, gradient_trend
from gradcheck.analysis.layer_groups import body, by_site, constant_at_start, gain, in_order, names, parameters_by_name, weight
from gradcheck.analysis.parallel_nets import over_nets
from gradcheck.analysis.wording import also_in, falls_short, number
from gradcheck.rules import cures
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradcheck.types.finding import Finding
    from gradcheck.types.measurement import Layer, Measurement, Parameter

TRAINED_BEFORE = "the model was trained before: its weights were learned"
NO_GAINS = "no linear or conv layer of the body has weights whose scale can be judged"


def body_gains(m: Measurement) -> dict[str, float]:
    """Gain of each linear and conv layer of the body for which it says something, by layer name."""
    parameters = parameters_by_name(m)
    return {x.name: g for x in body(m) if x.kind != "recurrent" and (g := gain(x, parameters)) is not None}


# ------------------------------------------------------------------------------ signal gain


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
    "signal-gain",
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
    Standard deviation of each weight before the first step, against a table: ReLU 1.41, GELU 1.5, SiLU 1.65,
    tanh 1.05 to 1.67, SELU 0.75 to 1, none 1. With the fan-out in place of the fan-in the gain may fit as well. Layers
    followed by a normalization, the ends of residual branches and weights that were trained before are exempt. The forward
    trend is that of log10 rms over the layers; it corroborates only, and only while the probe training does not learn.

    ## Limits and their sources
    `misfit` 2 times, together with a forward trend of at least `forward-slope` 0.1 decades per layer and
    `forward-total` 2 decades, or a gradient trend of `slope` 0.075 and `total` 2.5 decades (the limits of
    `vanishing-gradient`). When the probe training learns clearly, only the gradient counts, from
    `total-learning` 4 decades on.

    ## When to ignore it
    When the scale is set elsewhere, such as by a learned gain.

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
    sick = [x for x in plain if off[x.name] > limits["misfit"]]
    return [_gain_finding(m, group, gains, off, forward, backward, limits) for group in by_site(sick)]


def _gain_finding(
    m: Measurement, group: list[Layer], gains: dict[str, float], off: dict[str, float], forward: Trend, backward: Trend, limits: Limits
) -> Finding:
    worst = max(group, key=lambda x: off[x.name])
    times = off[worst.name]
    low, high = GAINS.get(worst.activation or "linear", (1.0, 1.0))
    wanted = number(low) if low == high else f"{number(low)} to {number(high)}"
    after = f"{worst.activation} after it" if worst.activation else "no activation after it"
    message = (
        f"weights of {worst.name} have gain {number(gains[worst.name])}, {number(times)} times off the {wanted} for {after} "
        f"(limit {number(limits['misfit'])} times){also_in(group)}: over depth the signal changes by {number(forward.total)} decades"
        f"{', the gradient by ' + number(abs(backward.total)) if backward.n >= 2 else ''}"
    )
    return found(
        "warning",
        message,
        layers=names(group),
        location=worst.site,
        evidence=(Evidence("gain against the activation's", times, limits["misfit"], ">", "times", worst.name),),
        remedies=(*cures.reinitialise(m, group), *cures.rescale(m)),
    )


# ------------------------------------------------------------------------------ weight scale


@rule(
    "INIT002",
    "weight-scale",
    up_to="error",
    needs=("parameters", "graph", "losses", "probe"),
    limits={
        "lowest": Limit(0.01, "gain", "two decades below the lowest recommended gain; healthy architectures have 0.1 and more"),
        "highest": Limit(10.0, "gain", "seven times what any activation but sigmoid needs: each layer adds a decade"),
        "peers": Limit(30.0, "times", "heuristic: 1.5 decades off the layers of the same kind"),
        "head_loss": Limit(3.0, "times chance", "67 % of random networks beyond it fail with Adam at 0.001; healthy ones reach 1.54"),
        "embedding_lowest": Limit(1e-4, "standard deviation", "heuristic; 0.02 to 1 are usual"),
        "embedding_highest": Limit(10.0, "standard deviation", "heuristic; 0.02 to 1 are usual"),
    },
    explains=("INIT001", "ACT001", "LOSS003", "LOSS005", "OPT001", "OPT002", "GRAD001", "GRAD002", "CLIP001", "GRAPH008", "NUM001"),
)
def weight_scale(m: Measurement, limits: Limits) -> Verdict:
    """Weights that are orders of magnitude off what the number of inputs calls for.

    ## What it finds
    Hidden linear and conv layers with a gain below 0.01 or above 10; a layer far off its peers; a head so loud
    that the first loss is several times chance; and, as advice, embeddings of unusual scale.

    ## Why it matters
    One such layer silences what comes before it, or drowns it, and the first steps are spent on its scale.

    ## How it is measured
    Gain: sqrt(fan_in) times the standard deviation of the weights before the first step. Zero-initialised,
    frozen, grouped, recurrent and normalized layers, routers and others before a softmax, the ends of residual
    branches and gates (when small: gMLP starts its gates at 1 that way), and models that were trained before are
    exempt.

    ## Limits and their sources
    Gain below `lowest` 0.01 or above `highest` 10. `peers` 30 times off the median of at least four layers of
    the same kind (small ones: from a fan-in of 16). Head: gain above `highest` and an initial loss above
    `head-loss` 3 times chance. Embedding: standard deviation below `embedding-lowest` 0.0001 or above
    `embedding-highest` 10. An error when the probe fails, and a paired training with the remedy alone learns.

    ## When to ignore it
    When another factor undoes the scale.

    ## Example
    ```python
    nn.init.normal_(self.fc.weight)  # standard deviation 1 over 512 inputs: gain 22.6
    ```

    ## Use instead
    ```python
    nn.init.normal_(self.fc.weight, std=1 / math.sqrt(self.fc.in_features))
    ```

    ## References
    LeCun et al. 1998, Efficient BackProp; Glorot and Bengio 2010.
    """
    if m.pretrained:
        return not_applicable(TRAINED_BEFORE)
    parameters = parameters_by_name(m)
    layers = [x for x in in_order(m) if x.trained and x.kind in ("linear", "conv") and not x.head and x.groups == 1 and not x.normalized]
    layers = [x for x in layers if x.activation != "softmax"]  # it chooses, as a router or as attention; its scale is a temperature
    gains = {x.name: g for x in layers if (g := gain(x, parameters)) is not None}
    findings = _hidden_scales(m, layers, gains, limits) + _head_scales(m, limits) + _embedding_scales(m, limits)
    if not findings and not gains and not any(m.of_kind("embedding")):
        return not_applicable(NO_GAINS)
    return findings


def _hidden_scales(m: Measurement, layers: list[Layer], gains: dict[str, float], limits: Limits) -> list[Finding]:
    judged = [x for x in layers if x.name in gains]
    loud = [x for x in judged if gains[x.name] > limits["highest"]]
    quiet = [x for x in judged if gains[x.name] < limits["lowest"] and not x.residual and not x.gate]
    odd = [x for x in judged if x not in loud and x not in quiet and _off_peers(x, judged, gains) >= limits["peers"]]
    result = []
    for sick, limit, sign in ((loud, limits["highest"], ">"), (quiet, limits["lowest"], "<")):
        for group in by_site(sick):
            worst = max(group, key=lambda x: abs(math.log10(gains[x.name])))
            text = f"gain {number(gains[worst.name])} ({'above' if sign == '>' else 'below'} the limit {number(limit)})"
            evidence = Evidence("gain of the weights", gains[worst.name], limit, ">" if sign == ">" else "<", "", worst.name)
            result.append(_scale_finding(m, group, worst, text, evidence))
    for group in by_site(odd):
        worst = max(group, key=lambda x: _off_peers(x, judged, gains))
        times = _off_peers(worst, judged, gains)
        text = (
            f"gain {number(gains[worst.name])}, {number(times)} times off the median of the other {worst.kind} layers "
            f"(limit {number(limits['peers'])} times)"
        )
        evidence = Evidence("gain against its peers'", times, limits["peers"], ">=", "times", worst.name)
        result.append(_scale_finding(m, group, worst, text, evidence))
    return result


def _off_peers(layer: Layer, judged: list[Layer], gains: dict[str, float]) -> float:
    """How many times the layer's gain is off the median of the other layers of its kind; 1 when there are too few of them."""
    peers = [gains[x.name] for x in judged if x.kind == layer.kind and x is not layer]
    if len(peers) < 4:
        return 1.0
    ratio = gains[layer.name] / median(peers)
    if ratio < 1 and (layer.residual or (layer.fan_in or 0) < 16):
        return 1.0
    return max(ratio, 1 / ratio)


def _scale_finding(m: Measurement, group: list[Layer], worst: Layer, text: str, evidence: Evidence) -> Finding:
    p = weight(worst, parameters_by_name(m))
    std = f", standard deviation {number(p.std)} over {worst.fan_in} inputs" if p else ""
    message = f"weights of {worst.name} have {text}{std}{also_in(group)}: this layer changes the scale of the signal by orders of magnitude"
    cure = Remedy("lecun-init", f"initialise with standard deviation 1 / sqrt(fan_in) = {number((worst.fan_in or 1) ** -0.5)}", "safe")
    remedies = cures.reinitialise(m, group) or (cure,)
    return found("warning", message, layers=names(group), location=worst.site, evidence=(evidence,), remedies=remedies)


def _head_scales(m: Measurement, limits: Limits) -> list[Finding]:
    if not m.chance or m.chance <= 0 or not m.probe.losses:
        return []
    times, parameters = m.probe.losses[0] / m.chance, parameters_by_name(m)
    result = []
    for x in m.of_kind("linear", "conv"):
        value = gain(x, parameters) if x.head and x.trained and x.groups == 1 and not x.normalized else None
        if value is None or value <= limits["highest"] or not times > limits["head_loss"]:
            continue
        message = (
            f"weights of the head {x.name} have gain {number(value)} (limit {number(limits['highest'])}), and the initial loss is "
            f"{number(times)} times that of a constant prediction (limit {number(limits['head_loss'])}): the first steps only quieten it"
        )
        remedy = Remedy("head-scaling", f"divide the head's weights by {number(value)}, and start with a zero bias", "safe")
        evidence = (
            Evidence("gain of the head's weights", value, limits["highest"], ">", "", x.name),
            Evidence("initial loss over chance", times, limits["head_loss"], ">", "times", x.name),
        )
        result.append(found("warning", message, layers=(x.name,), location=x.site, evidence=evidence, remedies=(remedy,)))
    return result


def _embedding_scales(m: Measurement, limits: Limits) -> list[Finding]:
    parameters, result = parameters_by_name(m), []
    for x in m.of_kind("embedding"):
        p = weight(x, parameters)
        if p is None or not p.trainable or constant_at_start(p) or limits["embedding_lowest"] <= p.std <= limits["embedding_highest"]:
            continue
        high = p.std > limits["embedding_highest"]
        limit = limits["embedding_highest" if high else "embedding_lowest"]
        side = "above" if high else "below"
        message = f"embedding {x.name} has standard deviation {number(p.std)} ({side} the limit {number(limit)}); 0.02 to 1 are usual"
        remedy = Remedy("lecun-init", f"initialise the embedding with normal_(std={number(max(0.02, p.shape[-1] ** -0.5))})", "safe")
        evidence = (Evidence("standard deviation of the embedding", p.std, limit, ">" if high else "<", "", x.name),)
        result.append(found("info", message, layers=(x.name,), location=x.site, evidence=evidence, remedies=(remedy,)))
    return result


RULES = (signal_gain, weight_scale)
