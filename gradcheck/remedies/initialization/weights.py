"""Initial weights: He, LeCun, Xavier, orthogonal, each with the gain of the activation that follows; zero biases."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from gradcheck.analysis.activations import gain_for
from gradcheck.analysis.layer_groups import body, constant_at_start, gain, parameters_by_name, usual_activation
from gradcheck.analysis.wording import counted, number
from gradcheck.remedies.definition import RemedyDefinition, initial
from gradcheck.remedies.layer_selection import is_tuned, listed, weight_names, weighted_layers, whole
from gradcheck.remedies.modules.surgery import module_at, parameter_at
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

HEAD_GAINS = (0.05, 3.0)  # a head with weights outside of it is initialised again along with the body
HEAD_GAIN = 1.0

Draw = Callable[[torch.Tensor, float, torch.Generator], None]  # fills a weight [out, in, ...] for a gain


@dataclass(frozen=True)
class WeightMatrix:
    """A weight and how to see it as [out, in, ...]: inputs per output unit after the first axis."""

    parameter: nn.Parameter
    bias: nn.Parameter | None
    view: Callable[[torch.Tensor], torch.Tensor]  # of a float32 tensor of the parameter's shape; shares its memory
    head: bool = False


def weights_of(treated: TreatedWorkload, fix: Fix) -> Iterator[WeightMatrix]:
    """The weights that a fix names. Raises Inapplicable."""
    heads = str(fix.settings.get("heads", "")).split(",")
    transposed = str(fix.settings.get("transposed", "")).split(",")
    parameters = dict(treated.model.named_parameters(remove_duplicate=False))
    for name in fix.layers:
        if name in parameters:
            yield WeightMatrix(parameter_at(treated, name), None, _last_first if name in transposed else _as_it_is)
        else:
            module = module_at(treated, name)
            own = getattr(module, "bias", None)
            yield WeightMatrix(_weight(module, name), own if isinstance(own, nn.Parameter) else None, _view(module), name in heads)


def _weight(module: nn.Module, name: str) -> nn.Parameter:
    if nn.utils.parametrize.is_parametrized(module, "weight") or hasattr(module, "weight_g"):
        raise Inapplicable(f"the weight of {name} is computed from others (weight or spectral normalization)")
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() < 2:
        raise Inapplicable(f"{name} has no weight matrix of its own")
    return weight


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _last_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(-1, -2)


def _first_second(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(0, 1)


def _view(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Convolutions store [out, in / groups, ...], transposed ones [in, out / groups, ...], Conv1D of GPT-2 [in, out]."""
    if isinstance(module, _ConvNd) and module.transposed:
        if module.groups > 1:
            raise Inapplicable("it is a transposed convolution in groups")
        return _first_second
    return _last_first if type(module).__name__ == "Conv1D" else _as_it_is


# ------------------------------------------------------------------------------- formulas


def fan_in(weight: torch.Tensor) -> int:
    """Inputs per output unit of [out, in, ...]."""
    return weight[0].numel()


def he_normal(weight: torch.Tensor, gain: float, generator: torch.Generator) -> None:
    weight.normal_(0.0, gain / math.sqrt(fan_in(weight)), generator=generator)


def xavier_uniform(weight: torch.Tensor, gain: float, generator: torch.Generator) -> None:
    positions = weight[0][0].numel()
    bound = gain * math.sqrt(6.0 / (fan_in(weight) + weight.shape[0] * positions))
    weight.uniform_(-bound, bound, generator=generator)


def orthogonal(weight: torch.Tensor, gain: float, generator: torch.Generator) -> None:
    """Rows, or columns where there are fewer, orthonormal times the gain."""
    flat = torch.empty(weight.shape[0], fan_in(weight), device="cpu")
    nn.init.orthogonal_(flat, gain=gain, generator=generator)
    weight.copy_(flat.view(weight.shape))


def _normal(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    weight.normal_(0.0, std, generator=generator)


_DRAWS: dict[str, Draw] = {"he-init": he_normal, "lecun-init": he_normal, "xavier-init": xavier_uniform, "orthogonal-init": orthogonal}


# --------------------------------------------------------------------------------- applying


def apply(treated: TreatedWorkload, fix: Fix) -> None:
    """Redraws the named weights, the same ones on every copy, and sets their biases to zero."""
    settings, generator = fix.settings, torch.Generator().manual_seed(int(fix.settings.get("seed", 0)))
    name = str(settings.get("init", fix.treatment))
    draw = _DRAWS[name if name in _DRAWS else "he-init"]
    for weight in list(weights_of(treated, fix)):
        if "std" in settings:
            fill(weight, _normal, float(settings["std"]), generator)
        else:
            fill(weight, draw, HEAD_GAIN if weight.head else float(settings["gain"]), generator)


def fill(weight: WeightMatrix, draw: Draw, gain: float, generator: torch.Generator) -> None:
    """Draws on the CPU in float32, so that device and type make no difference."""
    fresh = torch.empty(weight.parameter.shape, device="cpu")
    draw(weight.view(fresh), gain, generator)
    with torch.no_grad():
        weight.parameter.copy_(fresh)
        if weight.bias is not None:
            weight.bias.zero_()


# ------------------------------------------------------------------------------ proposing


def propose_draw(treatment: RemedyDefinition, finding: Finding | None, m: Measurement) -> list[Fix]:
    """New weights for the faulty layers. Never for a model that was trained before."""
    if is_tuned(m):
        return []
    layers = _to_draw(finding, m)
    embeddings = [x for x in layers if x.kind == "embedding"]
    if embeddings:
        return [_for_embedding(treatment, x, finding) for x in embeddings]
    names, transposed = weight_names(m, layers)
    if not names:
        return []
    activation = usual_activation(layers)
    proper = gain_for(activation, len(body(m)))
    wanted = {"he-init": max(proper, 2**0.5), "lecun-init": 1.0, "xavier-init": 1.0}.get(treatment.name, proper)
    settings: dict[str, Setting] = {"gain": round(wanted, 4), "activation": activation or "linear"}
    heads = _faulty_heads(m) if whole(finding) else []
    if heads:
        settings["heads"] = listed(heads)
    if transposed:
        settings["transposed"] = listed(transposed)
    text = f"initialise the weights of {counted(len(names) + len(heads), 'layer')} with {_SPELLING[treatment.name]}"
    text += f", gain {number(wanted)} for {activation}" if activation else f", gain {number(wanted)}"
    return [treatment.fix(f"{text}, and zero biases", finding, layers=(*names, *heads), settings=settings)]


def _to_draw(finding: Finding | None, m: Measurement) -> list[Layer]:
    """The layers to redraw, without branches that start at zero on purpose and, in the body, without what no activation follows."""
    layers, parameters = weighted_layers(finding, m), parameters_by_name(m)
    if not whole(finding):
        return sorted([*layers, *_as_constant(finding, m, layers)], key=lambda x: x.order)

    def meant(x: Layer) -> bool:
        w = next((parameters[n] for n in x.parameters if n.rpartition(".")[2] == "weight" and n in parameters), None)
        if w is not None and constant_at_start(w) and (x.residual or x.gate):
            return False
        value = gain(x, parameters)
        return x.activation is not None or value is None or not 0.5 <= value <= 2.0

    return [x for x in layers if meant(x)]


def _as_constant(finding: Finding | None, m: Measurement, layers: list[Layer]) -> list[Layer]:
    """Of a finding about weights without variety: the other layers that have none either."""
    if finding is None or finding.code not in ("INIT005", "INIT006"):
        return []
    faulty = {p.layer for p in m.parameters if len(p.shape) >= 2 and _uniform(p)}
    return [x for x in m.layers if x.name in faulty and x.kind in ("linear", "conv") and not x.head and x not in layers]


def _uniform(p: Parameter) -> bool:
    start = p.at(0)
    return constant_at_start(p) or (start is not None and (start.duplicate_units or 0.0) > 0.5)


def _faulty_heads(m: Measurement) -> list[str]:
    parameters = parameters_by_name(m)
    heads = [x for x in m.layers if x.head and x.kind == "linear" and ":" not in x.name]
    gains = [(x.name, gain(x, parameters)) for x in heads]
    return [name for name, value in gains if value is not None and not HEAD_GAINS[0] <= value <= HEAD_GAINS[1]]


def _for_embedding(treatment: RemedyDefinition, layer: Layer, finding: Finding | None) -> Fix:
    std = max(0.02, layer.output_shape[-1] ** -0.5)
    text = f"initialise the embedding {layer.name} with standard deviation {number(std)}"
    return treatment.fix(text, finding, layers=(layer.name,), settings={"std": std})


_SPELLING = {
    "he-init": "kaiming_normal_",
    "lecun-init": "standard deviation 1 / sqrt(fan_in)",
    "xavier-init": "xavier_uniform_",
    "orthogonal-init": "orthogonal_",
    "break-symmetry": "kaiming_normal_",
}


def _drawing(name: str, title: str, citation: str) -> RemedyDefinition:
    @initial(name, title, citation)
    def drawn(finding: Finding | None, m: Measurement) -> list[Fix]:
        return propose_draw(drawn, finding, m)

    drawn.applies(apply)
    return drawn


REMEDIES = (
    _drawing("he-init", "He initialisation", "He et al. 2015, Delving Deep into Rectifiers"),
    _drawing("lecun-init", "LeCun initialisation", "LeCun et al. 1998, Efficient BackProp, section 4.6"),
    _drawing("xavier-init", "Xavier initialisation", "Glorot and Bengio 2010, Understanding the difficulty of training deep networks"),
    _drawing("orthogonal-init", "orthogonal initialisation", "Saxe et al. 2014, Exact solutions to the nonlinear dynamics of learning"),
    _drawing("break-symmetry", "random initial weights", "He et al. 2015; Goodfellow et al. 2016, Deep Learning, section 8.4"),
)
