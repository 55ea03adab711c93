"""What the weights are before the first step."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from gradcheck.judge.layers import (
    BODY_KINDS,
    bias,
    body,
    by_site,
    constant_at_start,
    gain,
    holders,
    in_order,
    is_matrix,
    names,
    parameters_by_name,
    weight,
)
from gradcheck.judge.protocol import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.judge.signal import DEFAULT_GAIN, GAINS, Trend, forward_trend, gradient_trend
from gradcheck.nouns.verdict import Evidence, Remedy
from gradcheck.rules import cures
from gradcheck.rules.words import BY_VALUE, layers_in_words, learns_clearly, number, percent, probe_failure

if TYPE_CHECKING:
    from gradcheck.nouns.measurement import Layer, Measurement, Parameter
    from gradcheck.nouns.verdict import Finding, Severity

TRAINED_BEFORE = "the model was trained before: its weights were learned"
NO_GAINS = "no linear or conv layer of the body has weights whose scale can be judged"


def body_gains(m: Measurement) -> dict[str, float]:
    """Gain of each linear and conv layer of the body for which it says something, by layer name."""
    parameters = parameters_by_name(m)
    return {x.name: g for x in body(m) if x.kind != "recurrent" and (g := gain(x, parameters)) is not None}


def also_in(group: list[Layer]) -> str:
    return f"; the same in {layers_in_words(names(group))}" if len(group) > 1 else ""


# ------------------------------------------------------------------------------ signal gain


def misfit(value: float, activation: str | None) -> float:
    """How many times the gain is outside of what the activation calls for: 1 inside, 2 for half or twice, ..."""
    low, high = GAINS.get(activation or "linear", (0.0, math.inf))
    return max(1.0, low / value, value / high)


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
    tanh 1.05 to 1.67, SELU 0.75 to 1, none 1. Layers followed by a normalization, the ends of residual branches
    and weights that were trained before are exempt. The forward trend is that of log10 rms over the layers; it
    corroborates only, and only while the probe training does not learn.

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
    gains = body_gains(m)
    if not gains:
        return not_applicable(NO_GAINS)
    forward, backward = forward_trend(m), gradient_trend(m)
    if learns_clearly(m):
        shows = backward.beyond(limits["slope"], limits["total_learning"])
    else:
        ahead = forward.beyond(limits["forward_slope"], limits["forward_total"])
        shows = ahead or backward.beyond(limits["slope"], limits["total"])
    if not shows:
        return []
    plain = [x for x in body(m) if x.name in gains and not x.normalized and not x.residual and x.groups == 1]
    sick = [x for x in plain if misfit(gains[x.name], x.activation) > limits["misfit"]]
    return [_gain_finding(m, group, gains, forward, backward, limits) for group in by_site(sick)]


def _gain_finding(m: Measurement, group: list[Layer], gains: dict[str, float], forward: Trend, backward: Trend, limits: Limits) -> Finding:
    worst = max(group, key=lambda x: misfit(gains[x.name], x.activation))
    times = misfit(gains[worst.name], worst.activation)
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
    up_to="warning",
    needs=("parameters", "graph", "losses", "probe"),
    limits={
        "lowest": Limit(0.01, "gain", "two decades below the lowest recommended gain; healthy architectures have 0.1 and more"),
        "highest": Limit(10.0, "gain", "seven times what any activation but sigmoid needs: each layer adds a decade"),
        "peers": Limit(30.0, "times", "heuristic: 1.5 decades off the layers of the same kind"),
        "head_loss": Limit(3.0, "times chance", "67 % of random networks beyond it fail with Adam at 0.001; healthy ones reach 1.54"),
        "embedding_lowest": Limit(1e-4, "standard deviation", "heuristic; 0.02 to 1 are usual"),
        "embedding_highest": Limit(10.0, "standard deviation", "heuristic; 0.02 to 1 are usual"),
    },
    explains=("INIT001", "ACT001", "LOSS003"),
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
    `embedding-highest` 10.

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


# ------------------------------------------------------------------ degenerate and symmetric


def hidden_weights(m: Measurement, trained_for: int) -> list[tuple[Parameter, Layer]]:
    """Weights of the body that the optimizer holds and that were measured at the start and at a step >= `trained_for`."""
    inside, holder = {x.name for x in body(m)}, holders(m)
    return [
        (p, x) for p in m.parameters
        if (x := holder.get(p.name)) is not None and x.name in inside
        and p.trainable and p.used and p.groups > 0 and is_matrix(p) and p.at(0) is not None and _last_step(p) >= trained_for
    ]  # fmt: skip


def _last_step(p: Parameter) -> int:
    return max((s.step for s in p.steps), default=-1)


def anything_moved(m: Measurement) -> bool:
    """Whether the optimizer changed any parameter at all: else nothing can be said about what stays as it is."""
    return any(s.update_ratio for p in m.parameters for s in p.steps)


def stays_degenerate(p: Parameter, limits: Limits) -> bool:
    """Constant at the start, and either still so after some steps, or (if not zero) its units are still equal."""
    first, last = p.at(0), p.at(-1)
    if first is None or last is None or not constant_at_start(p):
        return False
    later = [s for s in p.steps if s.step >= limits["settled_step"]]
    twins = first.norm > 0 and (last.duplicate_units or 0.0) >= limits["duplicates"]
    return all(s.constant for s in later) or twins


@rule(
    "INIT005",
    "degenerate-initialization",
    up_to="error",
    needs=("parameters", "units", "graph", "probe"),
    limits={
        "settled_step": Limit(3, "steps", "54 of 54 healthy networks have no zero gradient left after 3 steps"),
        "duplicates": Limit(0.99, "of the units", "a constant weight makes all units of a layer equal"),
        "samples": Limit(64, "samples x positions", "as dead-units: at 64 a healthy network seems to have 19 % dead units"),
        "bias": Limit(-1.0, "mean bias", "heuristic: a unit-variance pre-activation is then negative for 84 % of the inputs"),
    },
    explains=("INIT002", "INIT006", "ACT002", "ACT004", "GRAD001", "GRAD004", "GRAPH008", "LOSS005", "OPT001", "OPT002"),
)
def degenerate_initialization(m: Measurement, limits: Limits) -> Verdict:
    """Hidden weights that are constant, or zero, and stay so; biases that shut a whole layer.

    ## What it finds
    Hidden weights whose entries are all equal before the first step and whose units are still equal after
    several; and biases so negative that a ReLU layer is never active.

    ## Why it matters
    Units with equal weights get equal gradients and stay equal: a layer of 512 units computes one feature.
    Zeros on both sides of a product get no gradient at all.

    ## How it is measured
    Whether all entries of a weight are equal, and which rows are, before the first step and at the later
    measured ones. Zero-initialised branches, heads and adapters are healthy: they are no longer constant after
    the first steps, and are not reported. A shut layer: no unit active before the first step, and a mean bias
    below the limit.

    ## Limits and their sources
    Constant from step 0 to the last measured one, `settled-step` 3 at least; or `duplicates` 99 % of the units
    still equal: an error. Mean `bias` below -1 before a layer without any active unit over `samples` 64: a
    warning, an error if the probe training fails.

    ## When to ignore it
    When the layer is constant on purpose: set `requires_grad_(False)`, which also silences this rule.

    ## Example
    ```python
    nn.init.constant_(self.fc1.weight, 0.1)
    ```

    ## Use instead
    ```python
    nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")
    ```

    ## References
    Goodfellow et al. 2016, Deep Learning, section 8.4.
    """
    weights = hidden_weights(m, int(limits["settled_step"]))
    shut = {before.name: (act, before, p) for act, before, p in shut_layers(m, limits)}
    findings = [_shut_finding(m, [shut[n] for n in names(group)], limits) for group in by_site(x for _, x, _ in shut.values())]
    if not weights and not findings:
        if not body(m):
            return not_applicable("no hidden linear, conv or recurrent layer")
        return not_measured(f"no hidden weight that the optimizer holds was measured at step {number(limits['settled_step'])} or later")
    if anything_moved(m):
        sick = {x.name: (x, p) for p, x in weights if stays_degenerate(p, limits)}
        findings += [_degenerate_finding(group, {n: sick[n][1] for n in names(group)}) for group in by_site(x for x, _ in sick.values())]
    return findings


def _degenerate_finding(group: list[Layer], weights: dict[str, Parameter]) -> Finding:
    first = group[0]
    p = weights[first.name]
    zero, last = p.mean == 0, _last_step(p)
    value = "zero" if zero else f"equal to {number(p.mean)}"
    effect = "they get no gradient that could change that" if zero else "its units stay copies of one another"
    message = f"all {p.count} entries of {p.name} are {value}, and after {last} steps still equal{also_in(group)}: {effect}"
    remedy = Remedy("break-symmetry", f"initialise {p.name} at random, e.g. with kaiming_normal_ or xavier_uniform_", "safe")
    evidence = (Evidence("steps after which the units are still equal", float(last), 3.0, ">=", "steps", first.name),)
    return found("error", message, layers=names(group), location=first.site, evidence=evidence, remedies=(remedy,), confirmed=BY_VALUE)


def shut_layers(m: Measurement, limits: Limits) -> list[tuple[Layer, Layer, Parameter]]:
    """(activation, layer before it, its bias) where no unit is active before the first step because of the bias."""
    parameters, layers, result = parameters_by_name(m), in_order(m), []
    for x in layers:
        if x.kind != "activation" or not x.units or x.dead_at_start != x.units or x.gate or x.effective_samples < limits["samples"]:
            continue
        before = next((y for y in reversed(layers) if y.order < x.order and y.kind in BODY_KINDS), None)
        p = bias(before, parameters) if before is not None else None
        if before is not None and p is not None and p.mean < limits["bias"] and not before.normalized:
            result.append((x, before, p))
    return result


def _shut_finding(m: Measurement, group: list[tuple[Layer, Layer, Parameter]], limits: Limits) -> Finding:
    failure = probe_failure(m)
    act, before, p = min(group, key=lambda item: item[2].mean)
    message = (
        f"biases of {before.name} average {number(p.mean)} (limit {number(limits['bias'])}), and none of the {act.units} units "
        f"of {act.name} is active for any sample{also_in([x for _, x, _ in group])}: the layer passes neither signal nor gradient"
    )
    return found(
        "error" if failure else "warning",
        message,
        layers=names(x for a, b, _ in group for x in (b, a)),
        location=before.site,
        evidence=(Evidence("mean bias", p.mean, limits["bias"], "<", "", before.name),),
        remedies=(Remedy("he-init", f"start {p.name} at zero", "safe"),),
        confirmed=failure,
    )


@rule(
    "INIT006",
    "symmetric-units",
    up_to="error",
    needs=("parameters", "graph"),
    limits={
        "duplicates": Limit(0.5, "of the units", "half of the layer's width is lost; random weights have no two equal rows"),
        "settled_step": Limit(3, "steps", "equal gradients over three steps do not part any more"),
    },
    explains=("LOSS005", "ACT004", "OPT002"),
)
def symmetric_units(m: Measurement, limits: Limits) -> Verdict:
    """Units of a layer with equal weights and equal gradients: they stay equal.

    ## What it finds
    Hidden linear, conv and recurrent layers in which more than half of the units (rows) have the same weights
    as another one, before the first step and still after several. Weights that are constant altogether are
    `degenerate-initialization`.

    ## Why it matters
    Equal units compute the same feature for ever. The layer is as narrow as the number of its different units.

    ## How it is measured
    The share of rows that equal another row, in weights and gradients, before the first step and at the last
    measured one. Grouped and depthwise convolutions are exempt, and so are heads: their units part at once,
    since their targets differ.

    ## Limits and their sources
    `duplicates` 50 % of the units, both before the first step and at the last measured one, `settled-step` 3 at
    least: an error.

    ## When to ignore it
    When copies are meant to part later, e.g. through dropout.

    ## Example
    ```python
    self.fc1.weight.data = row.repeat(64, 1)
    ```

    ## Use instead
    ```python
    nn.init.xavier_uniform_(self.fc1.weight)
    ```

    ## References
    Goodfellow et al. 2016, Deep Learning, section 8.4.
    """
    hidden = hidden_weights(m, int(limits["settled_step"]))
    weights = [(p, x) for p, x in hidden if x.groups == 1 and p.steps[0].duplicate_units is not None]
    if not weights:
        return not_applicable("no hidden weight whose units were compared before the first step and after several")
    sick = {x.name: (x, p) for p, x in weights if _twins(p) > limits["duplicates"] and not constant_at_start(p)}
    if not sick or not anything_moved(m):
        return []
    return [_symmetry_finding(group, {n: sick[n][1] for n in names(group)}, limits) for group in by_site(x for x, _ in sick.values())]


def _twins(p: Parameter) -> float:
    """The smaller share of duplicate units of the first and the last measured step."""
    first, last = p.at(0), p.at(-1)
    return min((first.duplicate_units or 0.0), (last.duplicate_units or 0.0)) if first and last else 0.0


def _symmetry_finding(group: list[Layer], weights: dict[str, Parameter], limits: Limits) -> Finding:
    worst = max(group, key=lambda x: _twins(weights[x.name]))
    p = weights[worst.name]
    message = (
        f"{percent(_twins(p))} of the {p.shape[0]} units of {worst.name} equal another unit (limit {percent(limits['duplicates'])}), "
        f"in weights and gradients, still after {_last_step(p)} steps{also_in(group)}: they will stay equal"
    )
    remedy = Remedy("break-symmetry", f"initialise {p.name} at random, e.g. with kaiming_normal_ or xavier_uniform_", "safe")
    evidence = (Evidence("units that equal another one", _twins(p), limits["duplicates"], ">", "of the units", worst.name),)
    return found("error", message, layers=names(group), location=worst.site, evidence=evidence, remedies=(remedy,), confirmed=BY_VALUE)


# -------------------------------------------------------------------------- default initialization


@rule(
    "INIT007",
    "default-initialization",
    up_to="warning",
    needs=("signals", "parameters", "graph", "probe"),
    limits={
        "share": Limit(0.7, "of the layers", "some layers are commonly set apart: the first, the last, projections"),
        "tolerance": Limit(0.03, "of the gain 0.577", "the standard deviation of 200 uniform entries errs by 3 %"),
        "layers": Limit(8, "layers", "12-layer CNNs with it fail with SGD at 0.01, 20-layer ones always"),
        "slope": Limit(0.075, "decades per layer", "limit of vanishing-gradient; the default loses 0.44 to 0.48 per ReLU layer"),
        "total_learning": Limit(4.0, "decades", "vanishing-gradient's limit for a warning on a model that learns in the probe"),
        "total": Limit(1.5, "decades", "random networks between 1.5 and 2 decades fail in 65 % with SGD at 0.01"),
    },
    explains=(
        "GRAPH008",
        "NORM001",
        "INIT001",
    ),
)
def default_initialization(m: Measurement, limits: Limits) -> Verdict:
    """A deep plain network left at torch's default initialisation.

    ## What it finds
    Networks of eight or more layers without normalization or residual connections whose weights are as torch's
    constructors left them, and whose gradient changes with depth.

    ## Why it matters
    torch draws weights with gain 0.58, for no activation in particular. ReLU needs 1.41: each layer keeps 41 %
    of the signal.

    ## How it is measured
    Gain: sqrt(fan_in) times the standard deviation of each weight before the first step. Networks with
    normalization or residual connections, and models that were trained before, are not judged. The gradient's
    trend is that of `vanishing-gradient`.

    ## Limits and their sources
    `share` 70 % of the layers within `tolerance` 3 % of the gain 0.577, at least `layers` 8, and a gradient
    trend of at least `slope` 0.075 decades per layer and `total` 1.5 decades. Advice only when the probe
    training learns clearly and the trend is below `total-learning` 4 decades.

    ## When to ignore it
    When the network trains as fast as you need.

    ## Example
    ```python
    layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()) for _ in range(12)]
    ```

    ## Use instead
    ```python
    for conv, _ in layers:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)
    ```

    ## References
    He et al. 2015, Delving Deep into Rectifiers; torch.nn.Linear.reset_parameters: kaiming_uniform_(a=sqrt(5)).
    """
    if m.pretrained:
        return not_applicable(TRAINED_BEFORE)
    layers = [x for x in body(m) if x.kind != "recurrent"]
    if len(layers) < limits["layers"]:
        return not_applicable(f"fewer than {number(limits['layers'])} linear or conv layers before the head")
    if any(m.of_kind("norm")) or any(x.normalized or x.residual for x in layers):
        return not_applicable("the model has normalization or residual connections")
    gains, trend = body_gains(m), gradient_trend(m)
    untouched = [x for x in layers if x.name in gains and abs(gains[x.name] / DEFAULT_GAIN - 1) <= limits["tolerance"]]
    share = len(untouched) / len(layers)
    if share < limits["share"] or not trend.beyond(limits["slope"], limits["total"]):
        return []
    mild = learns_clearly(m) and abs(trend.total) < limits["total_learning"]
    severity: Severity = "info" if mild else "warning"
    return [_default_finding(m, untouched, share, trend, severity, limits)]


def _default_finding(m: Measurement, untouched: list[Layer], share: float, trend: Trend, severity: Severity, limits: Limits) -> Finding:
    activation = cures.usual_activation(untouched)
    low, high = GAINS.get(activation or "linear", (1.0, 1.0))
    wanted = number(low) if low == high else f"{number(low)} to {number(high)}"
    message = (
        f"{len(untouched)} layers without normalization or bypass have torch's default initialisation, "
        f"gain {number(DEFAULT_GAIN)} where {activation or 'no activation'} wants {wanted}: "
        f"the gradient changes by {number(abs(trend.slope))} decades per layer, {number(abs(trend.total))} in all "
        f"(limit {number(limits['total'])}), and training starts slowly or not at all"
    )
    sites = [x.site for x in untouched]
    place = max(dict.fromkeys(sites), key=sites.count)
    evidence = (
        Evidence("layers with the default gain", share, limits["share"], ">=", "of the layers", untouched[0].name),
        Evidence("change of the gradient over depth", abs(trend.total), limits["total"], ">=", "decades", untouched[0].name),
    )
    remedies = (*cures.reinitialise(m, untouched), *cures.rescale(m), *cures.normalise(m, untouched))
    return found(severity, message, layers=names(untouched), location=place, evidence=evidence, remedies=remedies)


RULES = (signal_gain, weight_scale, degenerate_initialization, symmetric_units, default_initialization)
