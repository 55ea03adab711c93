"""Questions about layers that several rules ask. Pure functions of a Measurement."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from gradcheck.analysis.activations import UNIT
from gradcheck.types.layers import Layer, LayerKind
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.structure import Norm

Sited = TypeVar("Sited", "Layer", "Norm")
Asked = TypeVar("Asked", bound=Callable[..., Any])
BODY_KINDS: tuple[LayerKind, ...] = ("linear", "conv", "recurrent")
GATES = UNIT - {"softmax"}
SMALL_BATCH = 8  # samples: batch statistics of fewer are noise


def once(question: Asked) -> Asked:
    """Keeps each answer beside its measurement: rules ask the same again and again, which took seconds of 100,000 layers."""

    @functools.wraps(question)
    def asked(m: Measurement, *rest: Any) -> Any:
        known, key = vars(m).setdefault("_known", {}), (question.__qualname__, *rest)
        if key not in known:
            known[key] = question(m, *rest)
        return known[key]

    return asked  # type: ignore[return-value]


@once
def body(m: Measurement) -> list[Layer]:
    """The layers that carry the signal, in order of their first call: linear, conv and recurrent ones.

    Heads are excluded, and so are layers that only make the factor of a gate.
    """
    aside = gate_makers(m)
    return [x for x in in_order(m) if x.kind in BODY_KINDS and not x.head and x.trained and x.name not in aside]


@once
def trained_body(m: Measurement) -> list[Layer]:
    """The body, up to the last layer with weights that the optimizer holds.

    What comes after it, as a critic does after the generator, scales the gradient of all of them alike.
    """
    held = {name for p in m.parameters if p.groups for name in (p.name, *p.aliases)}
    last = max((x.order for x in m.layers if not held.isdisjoint(x.parameters)), default=math.inf)
    return [x for x in body(m) if x.order <= last]


def depths(layers: Sequence[Layer]) -> list[int]:
    """Their places on the way from the input, from 0 on; layers side by side share one. In the given order where that is not known."""
    if any(x.depth is None for x in layers):
        return list(range(len(layers)))
    rank = {depth: i for i, depth in enumerate(sorted({x.depth or 0 for x in layers}))}
    return [rank[x.depth or 0] for x in layers]


@once
def gate_makers(m: Measurement) -> frozenset[str]:
    """Layers that only make the factor of a sigmoid gate: [reduce, activation,] expand in squeeze-and-excitation.

    Healthy gates let next to no gradient through, whatever the rest of the network does.
    """
    layers = [x for x in in_order(m) if x.kind in (*BODY_KINDS, "activation")]
    found: set[str] = set()
    for i, x in enumerate(layers):
        if x.kind != "activation" or not x.gate or x.function not in GATES or i < 1 or layers[i - 1].kind not in BODY_KINDS:
            continue
        found.add(layers[i - 1].name)
        if i >= 3 and layers[i - 2].kind == "activation" and pooled(layers[i - 1]) and pooled(layers[i - 3]):
            found |= {layers[i - 2].name, layers[i - 3].name}
    return frozenset(found)


def pooled(layer: Layer) -> bool:
    """Whether its output [N, C] or [N, C, 1, ...] has one position a sample."""
    return layer.kind in BODY_KINDS and all(size == 1 for size in layer.output_shape[2:])


@once
def in_order(m: Measurement) -> list[Layer]:
    """All layers in order of their first call."""
    return sorted(m.layers, key=lambda x: x.order)


@once
def parameters_by_name(m: Measurement) -> dict[str, Parameter]:
    """Every parameter under each of its names; a tied one has several."""
    return {name: p for p in m.parameters for name in (p.name, *p.aliases)}


@once
def holders(m: Measurement) -> dict[str, Layer]:
    """The first layer that holds each parameter, by the parameter's first name."""
    known = parameters_by_name(m)
    result: dict[str, Layer] = {}
    for layer in in_order(m):
        for name in layer.parameters:
            if name in known:
                result.setdefault(known[name].name, layer)
    return result


def is_matrix(p: Parameter) -> bool:
    """Whether it is a proper weight: at least two axes longer than 1. Biases, gains and LayerScales are not."""
    return sum(size > 1 for size in p.shape) >= 2


def weight(layer: Layer, parameters: Mapping[str, Parameter]) -> Parameter | None:
    """The plain weight of a linear or conv layer; None when it has none of its own, or a reparametrised one."""
    for name in layer.parameters:
        p = parameters.get(name)
        if p is not None and name.rpartition(".")[2] == "weight" and len(p.shape) >= 2:
            return p
    return None


def bias(layer: Layer, parameters: Mapping[str, Parameter]) -> Parameter | None:
    return next((parameters[n] for n in layer.parameters if n.rpartition(".")[2] == "bias" and n in parameters), None)


def gain(layer: Layer, parameters: Mapping[str, Parameter]) -> float | None:
    """sqrt(fan_in) * std of the layer's weights at the start: the factor on the rms of independent, centred inputs.

    None if that says nothing: a frozen, constant or reparametrised weight, or an unknown fan-in.
    """
    p = weight(layer, parameters)
    if p is None or not layer.fan_in or not p.trainable or constant_at_start(p):
        return None
    return float(layer.fan_in**0.5 * p.std)


def constant_at_start(p: Parameter) -> bool:
    """Whether all entries are equal before the first step, but for the rounding of mean and standard deviation."""
    return p.std <= 1e-6 * abs(p.mean)


def output_side(m: Measurement, activation: Layer) -> bool:
    """Whether an activation belongs to an output: it follows a head, or no layer with weights runs after it."""
    weighted = [x for x in m.layers if x.kind in BODY_KINDS]
    before = max((x for x in weighted if x.order < activation.order), key=lambda x: x.order, default=None)
    return activation.head or (before is not None and before.head) or all(x.order < activation.order for x in weighted)


def by_site(calls: Iterable[Sited]) -> list[list[Sited]]:
    """Layers, or normalizations, grouped by the expression that creates them. Those without a known site form one group."""
    groups: dict[Location | None, list[Sited]] = {}
    for call in calls:
        groups.setdefault(call.site, []).append(call)
    return list(groups.values())


def names(layers: Iterable[Layer]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers)


def settled_step(m: Measurement, least: int = 3) -> int | None:
    """The first measured step by which zero-initialised branches have started to move; None when none was measured."""
    return next((step for step in sorted(m.measured_steps) if step >= least), None)


def layer_site(m: Measurement, name: str) -> Location | None:
    """Where a layer is created."""
    layer = m.layer(name)
    return layer.site if layer else None


def head_site(m: Measurement) -> Location | None:
    """The expression that creates the last head that has a known place."""
    return next((x.site for x in reversed(m.layers) if x.head and x.site), None)


def usual_normalization(m: Measurement, layers: Sequence[Layer]) -> str:
    """The normalization for layers without one: batch normalization for vectors and images where batches are large enough."""
    tokens = any(x.kind == "linear" and len(x.output_shape) > 2 for x in layers)
    if tokens or m.data.batch_size < SMALL_BATCH:
        return "GroupNorm" if all(x.kind == "conv" for x in layers) else "LayerNorm"
    return "BatchNorm"


def hidden_activations(m: Measurement, functions: Collection[str]) -> list[Layer]:
    """Activations of these functions that are neither gates nor on the way from the last layer to the loss."""
    return [x for x in in_order(m) if x.kind == "activation" and x.function in functions and not x.gate and not output_side(m, x)]


def usual_activation(layers: Sequence[Layer]) -> str | None:
    """The activation that most often follows these layers."""
    counts = Counter(x.activation for x in layers if x.activation)
    return counts.most_common(1)[0][0] if counts else None
