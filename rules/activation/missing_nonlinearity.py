from gradcheck.analysis.activations import UNIT
from gradcheck.analysis.layer_groups import BODY_KINDS, body, by_site, gate_makers, in_order, names
from gradcheck.analysis.wording import number
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, rule
from gradcheck.types.structure import LinearPair

# What follows the second layer: these choose or weigh, and no hidden activation is missing before them.


@rule(
    "ACT006",
    up_to="warning",
    needs=("graph",),
    limits={"rank": Limit(1.0, "of the narrower side", "a product of matrices has at most the rank of its narrowest factor")},
)
def missing_nonlinearity(m: Measurement, limits: Limits) -> Verdict:
    """Two linear layers in a row with nothing between them compute no more than one.

    ## What it finds
    Pairs of linear layers, or of convolutions, between which there is nothing but affine operations: moves of
    entries, dropout, averages, batch normalization. All-linear networks are the plainest case.

    ## Why it matters
    The product of two matrices is a matrix. The first layer costs time and parameters and adds nothing that the
    second could not do alone: the network is shallower than it looks.

    ## How it is measured
    Walking back through the autograd graph of the first step, from what a layer takes to what made it. Any
    function that is not affine ends the walk, whatever it is called. Exempt: bottlenecks (low-rank
    factorisations, LoRA, linear bottlenecks), grouped, depthwise and transposed convolutions and what follows
    them, layers whose output is used elsewhere too, output projections of attention and what attention takes,
    gates, and embeddings narrower than their input before a head.

    ## Limits and their sources
    `rank` 1: the first layer has at least as many units as the narrower of its inputs and the second one's
    outputs (before a head: as its inputs), so that it does not limit the rank. Exact for what is affine.

    ## When to ignore it
    When the layers are separate on purpose: to study deep linear networks, or to train only one of them.

    ## Example
    ```python
    nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    ```

    ## Use instead
    ```python
    nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    ```

    ## References
    Saxe et al. 2014, Exact Solutions to the Nonlinear Dynamics of Learning in Deep Linear Neural Networks.
    """
    if sum(x.kind in BODY_KINDS for x in m.layers) < 2:
        return not_applicable("fewer than two linear or conv layers")
    layers = {x.name: x for x in m.layers}
    followed = {p.first for p in m.pairs}
    gates, body_layers = gate_makers(m), body(m)
    faulty = [
        p
        for p in m.pairs
        if p.alone
        and not p.projects
        and not {p.first, p.second} & gates
        and _plain(layers[p.second], followed)
        and not _narrow(p, layers[p.second], limits["rank"])
        and not _after_grouped(layers[p.first], body_layers)
    ]
    seconds = {p.first: p for p in faulty}
    groups = by_site(x for x in in_order(m) if x.name in seconds)
    return [_finding(m, group, seconds, limits) for group in groups]


def _plain(second: Layer, followed: set[str]) -> bool:
    """Whether the second layer's output goes into an activation, a normalization, another such layer or the loss, not into attention."""
    if second.gate or second.activation in UNIT:
        return second.head
    return second.head or second.activation is not None or second.normalized or second.name in followed


def _narrow(p: LinearPair, second: Layer, share: float) -> bool:
    """Whether the first layer's width limits the rank of the product, or is an embedding before a head."""
    return p.inner < share * (p.inputs if second.head else min(p.inputs, p.outputs))


def _after_grouped(first: Layer, body_layers: list[Layer]) -> bool:
    """Whether the layer before the first is a grouped convolution, whose second half the first is."""
    before = [x for x in body_layers if x.order < first.order]
    return bool(before) and before[-1].groups > 1


def _finding(m: Measurement, group: list[Layer], pairs: dict[str, LinearPair], limits: Limits) -> Finding:
    p = pairs[group[0].name]
    between = "only a batch normalization" if p.batch_norm else "nothing nonlinear"
    others = f"; the same behind {len(group) - 1} more" if len(group) > 1 else ""
    message = (
        f"between {p.first} ({p.inputs} to {p.inner}) and {p.second} (to {p.outputs}) there is {between}{others}: "
        f"the two compute what one {group[0].kind} layer from {p.inputs} to {p.outputs} could"
    )
    low = p.inputs if (second := m.layer(p.second)) is not None and second.head else min(p.inputs, p.outputs)
    usual = next((x.activation for x in body(m) if x.activation), None) or "ReLU"
    remedy = Remedy("insert-activation", f"put {usual} between {p.first} and {p.second}, or drop one of them", "unsafe")
    touched = (*names(group), *(pairs[x.name].second for x in group))
    return found(
        "warning",
        message,
        layers=tuple(dict.fromkeys(touched)),
        location=group[0].site,
        evidence=Evidence(f"width against the narrower side ({number(low)})", p.inner / low, limits["rank"], ">=", "times", p.first),
        remedies=remedy,
    )
