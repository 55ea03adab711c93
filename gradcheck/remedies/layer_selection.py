"""Which layers of a measurement a treatment of the model is for."""

from collections.abc import Sequence

from gradcheck.analysis.layer_groups import body, in_order, parameters_by_name
from gradcheck.types.finding import Finding
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter

# Findings about the signal through the whole depth: their cure is one for all layers, not only for those that they name.
WHOLE_SIGNAL = frozenset(("GRAD001", "GRAD002", "ACT003", "ACT004", "INIT001", "INIT003", "INIT007", "NORM001", "NORM002", "LOSS005"))
MATRIX_PRODUCTS = ("matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "__matmul__")  # with the weight on the right: [in, out]


def is_tuned(m: Measurement) -> bool:
    """Whether a trained model is being tuned: its statistics say so, or most of it is frozen."""
    if m.pretrained:
        return True
    several = next((x.type for x in m.layers if x.name == ""), "") == "Models"  # of a script: each has its own name in front
    home = {p.name: p.name.partition(".")[0] if several else "" for p in m.parameters}
    trained = {home[p.name] for p in m.parameters if p.trainable}
    inside = [p for p in m.parameters if home[p.name] in trained]
    return 2 * sum(p.count for p in inside if not p.trainable) > sum(p.count for p in inside)


def whole(finding: Finding | None) -> bool:
    return finding is None or finding.code in WHOLE_SIGNAL


def body_layers(m: Measurement) -> list[Layer]:
    """Linear and convolution layers between input and head, in order of execution."""
    return [x for x in body(m) if x.kind in ("linear", "conv")]


def weighted_layers(finding: Finding | None, m: Measurement) -> list[Layer]:
    """The linear and convolution layers that a finding is about: those it names, or that feed the activations it names."""
    if whole(finding):
        return body_layers(m)
    assert finding is not None
    found: dict[str, Layer] = {}
    for layer in in_order(m):
        if layer.name not in finding.layers:
            continue
        own = [layer] if layer.kind in ("linear", "conv", "embedding") else feeders(m, layer)
        found |= {x.name: x for x in own}
    return made_with(m, list(found.values()))


def made_with(m: Measurement, layers: Sequence[Layer]) -> list[Layer]:
    """These layers and those that the same expressions create: an edit there changes all of them."""
    names, sites = {x.name for x in layers}, {(x.site, x.kind) for x in layers if x.site is not None and ":" not in x.name}
    return [x for x in in_order(m) if x.name in names or (x.site, x.kind) in sites]


def feeders(m: Measurement, layer: Layer) -> list[Layer]:
    """The linear or convolution layers before an activation; several where it is one place that is called several times."""
    weighted = [x for x in in_order(m) if x.kind in ("linear", "conv")]
    if layer.calls > 1:
        prefix = layer.name.partition(":")[0] if ":" in layer.name else layer.name.rpartition(".")[0]
        same = [x for x in weighted if x.activation == layer.function and x.name.startswith(prefix) and not x.head]
        if same:
            return same
    return [x for x in weighted if x.order < layer.order][-1:]


def functional_weights(m: Measurement, layer: Layer) -> list[Parameter]:
    """Weights of a functional call such as F.linear(x, self.w): matrices of its module that no layer of its own holds."""
    owner = layer.name.partition(":")[0]
    held = {name for x in m.layers if x.kind != "container" and ":" not in x.name and x.name != owner for name in x.parameters}
    prefix = f"{owner}." if owner else ""
    sizes = {layer.fan_in, layer.output_shape[-1] if layer.output_shape else None}
    own = [p for p in m.parameters if p.name.startswith(prefix) and p.name not in held and len(p.shape) >= 2]
    exact = [p for p in own if layer.kind == "conv" or set(p.shape) == sizes]
    return [p for p in own if min(p.shape[:2]) > 1] if layer.calls > 1 else exact


def weight_names(m: Measurement, layers: Sequence[Layer]) -> tuple[list[str], list[str]]:
    """How a fix names the weights of layers: modules by their name, functional weights by the parameter's.

    The second list has those that are stored [in, out]. Frozen and reparametrised weights are left out.
    """
    known, names, transposed = parameters_by_name(m), [], []
    for layer in layers:
        if ":" in layer.name:
            for p in functional_weights(m, layer):
                if p.trainable and p.name not in names:
                    names.append(p.name)
                    if layer.type in MATRIX_PRODUCTS:
                        transposed.append(p.name)
        else:
            path = f"{layer.name}.weight" if layer.name else "weight"
            if path in layer.parameters and path in known and known[path].trainable and len(known[path].shape) >= 2:
                names.append(layer.name)
    return names, transposed


def listed(names: Sequence[str]) -> str:
    """A list of names as one setting."""
    return ",".join(names)
