import math
from bisect import bisect_left

from gradcheck.analysis.layer_groups import by_site, constant_at_start, gain, in_order, names, parameters_by_name, weight
from gradcheck.analysis.wording import also_in, number, quoted
from gradcheck.rules import cures
from gradcheck.rules.initialization import NO_GAINS, TRAINED_BEFORE
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule


@rule(
    "INIT002",
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
    explains="INIT001 ACT001 LOSS003 LOSS005 OPT001 OPT007 OPT002 GRAD001 GRAD002 CLIP001 GRAPH008 NUM001".split(),
)
def weight_scale(m: Measurement, limits: Limits) -> Verdict:
    """Weights that are orders of magnitude off what the number of inputs calls for.

    ## What it finds
    Hidden linear and conv layers with a gain below 0.01 or above 10; a layer far off its peers; a head so large
    that the first loss is several times chance; and, as advice, embeddings of unusual scale.

    ## Why it matters
    One such layer silences what comes before it, or drowns it out, and the first steps are spent on its scale.

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
    When another factor compensates for the scale.

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
    peers = {kind: sorted(gains[x.name] for x in judged if x.kind == kind) for kind in {x.kind for x in judged}}
    settled = {x.name for x in (*loud, *quiet)}
    off = {x.name: _off_peers(x, gains[x.name], peers[x.kind]) for x in judged if x.name not in settled}
    odd = [x for x in judged if off.get(x.name, 1.0) >= limits["peers"]]
    result = []
    for faulty, limit, sign in ((loud, limits["highest"], ">"), (quiet, limits["lowest"], "<")):
        for group in by_site(faulty):
            worst = max(group, key=lambda x: abs(math.log10(gains[x.name])))
            text = f"gain {number(gains[worst.name])} ({'above' if sign == '>' else 'below'} the limit {number(limit)})"
            evidence = Evidence("gain of the weights", gains[worst.name], limit, ">" if sign == ">" else "<", "", worst.name)
            result.append(_scale_finding(m, group, worst, text, evidence))
    for group in by_site(odd):
        worst = max(group, key=lambda x: off[x.name])
        times = off[worst.name]
        text = (
            f"gain {number(gains[worst.name])}, {number(times)} times off the median of the other {worst.kind} layers "
            f"(limit {number(limits['peers'])} times)"
        )
        evidence = Evidence("gain against its peers'", times, limits["peers"], ">=", "times", worst.name)
        result.append(_scale_finding(m, group, worst, text, evidence))
    return result


def _off_peers(layer: Layer, gain: float, peers: list[float]) -> float:
    """How many times the layer's gain is off the median of the other layers of its kind; 1 when there are too few of them.

    `peers`: the gains of all of the kind, this one among them, from the lowest to the highest.
    """
    others = len(peers) - 1
    if others < 4:
        return 1.0
    place = bisect_left(peers, gain)
    left, right = (peers[i + (i >= place)] for i in ((others - 1) // 2, others // 2))
    ratio = gain / ((left + right) / 2)
    if ratio < 1 and (layer.residual or (layer.fan_in or 0) < 16):
        return 1.0
    return max(ratio, 1 / ratio)


def _scale_finding(m: Measurement, group: list[Layer], worst: Layer, text: str, evidence: Evidence) -> Finding:
    p = weight(worst, parameters_by_name(m))
    std = f", standard deviation {number(p.std)} over {worst.fan_in} inputs" if p else ""
    message = (
        f"weights of {quoted(worst.name)} have {text}{std}{also_in(group)}: this layer changes the scale of the signal by orders of "
        "magnitude"
    )
    cure = Remedy("lecun-init", f"initialise with standard deviation 1 / sqrt(fan_in) = {number((worst.fan_in or 1) ** -0.5)}", "safe")
    remedies = cures.reinitialise(m, group) or (cure,)
    return found("warning", message, layers=names(group), location=worst.site, evidence=evidence, remedies=remedies)


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
            f"weights of the head {quoted(x.name)} have gain {number(value)} (limit {number(limits['highest'])}), and the initial loss is "
            f"{number(times)} times that of a constant prediction (limit {number(limits['head_loss'])}): the first steps only shrink it"
        )
        remedy = Remedy("head-scaling", f"divide the head's weights by {number(value)}, and start with a zero bias", "safe")
        evidence = (
            Evidence("gain of the head's weights", value, limits["highest"], ">", "", x.name),
            Evidence("initial loss over chance", times, limits["head_loss"], ">", "times", x.name),
        )
        result.append(found("warning", message, layers=(x.name,), location=x.site, evidence=evidence, remedies=remedy))
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
        message = (
            f"embedding {quoted(x.name)} has standard deviation {number(p.std)} ({side} the limit {number(limit)}); 0.02 to 1 are usual"
        )
        remedy = Remedy("lecun-init", f"initialise the embedding with normal_(std={number(max(0.02, p.shape[-1] ** -0.5))})", "safe")
        evidence = Evidence("standard deviation of the embedding", p.std, limit, ">" if high else "<", "", x.name)
        result.append(found("info", message, layers=(x.name,), location=x.site, evidence=evidence, remedies=remedy))
    return result
