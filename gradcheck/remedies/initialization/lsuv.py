"""Layer-sequential unit variance: weights divided, in forward order, by the standard deviation of what they give."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradcheck.analysis.activations import SIGMOID_LIKE
from gradcheck.analysis.layer_groups import constant_at_start, parameters_by_name, usual_activation, weight
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.initialization.weights import CHECKPOINT, Weight, fill, orthogonal, weights_of
from gradcheck.remedies.layer_selection import body_layers, is_tuned, listed, several, weight_names
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.device import wide
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

TOLERANCE = 0.05  # of the standard deviation, around 1
ITERATIONS = 10  # as in the paper
PRODUCTS = frozenset(
    "linear bilinear matmul __matmul__ mm addmm bmm baddbmm einsum conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d".split()
)


class _Outputs(TorchFunctionMode):
    """Standard deviations of the first products of a forward pass that each weight takes part in, by its memory."""

    def __init__(self, weights: Mapping[int, nn.Parameter]) -> None:
        super().__init__()
        self.weights = weights
        self.stds: dict[int, float] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in PRODUCTS and isinstance(output, torch.Tensor):
            with torch._C.DisableTorchFunction():
                for key in self._taking_part(args, kwargs or {}):
                    self.stds.setdefault(key, float(wide(output.detach()).std(correction=0)))
        return output

    def _taking_part(self, args: Any, kwargs: Any) -> list[int]:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        return [key for a in tensors if (key := a.untyped_storage().data_ptr()) in self.weights]


def apply(treated: TreatedWorkload, fix: Fix) -> None:
    """Rescales on a copy in training mode, on the copy's first batch, and takes the weights over.

    A weight whose output does not vary at all is drawn orthogonal first. Raises Inapplicable when there is no forward pass to measure.
    """
    if not treated.workload.batches:
        raise Inapplicable("there is no batch to run")
    with preserve_rng(), torch.no_grad():
        twin = treated.copy()
        own, copies = list(weights_of(treated, fix)), list(weights_of(twin, fix))
        for weight in copies:
            if weight.bias is not None:
                weight.bias.zero_()
        for weight in copies:
            _normalise(twin, weight)
        for mine, scaled in zip(own, copies, strict=True):
            mine.parameter.copy_(scaled.parameter)
            if mine.bias is not None:
                mine.bias.zero_()


def _normalise(twin: TreatedWorkload, weight: Weight) -> None:
    for _ in range(ITERATIONS):
        std = output_std(twin, weight.parameter)
        if std is None:
            return  # it takes no part in the pass
        if not math.isfinite(std):
            raise Inapplicable("an output is not finite")
        if std < 1e-30:
            fill(weight, orthogonal, 1.0, torch.Generator().manual_seed(0))
        elif abs(std - 1) < TOLERANCE:
            return
        else:
            weight.parameter.div_(std)


def output_std(twin: TreatedWorkload, parameter: nn.Parameter) -> float | None:
    """Standard deviation of the first product of the parameter in a training step; None where it takes part in none."""
    mode = _Outputs({parameter.untyped_storage().data_ptr(): parameter})
    torch.manual_seed(0)  # dropout: the same units each time
    with mode:
        twin.workload.training_step(twin.model, twin.workload.batches[0])
    return next(iter(mode.stds.values()), None)


def propose(finding: Finding | None, m: Measurement) -> list[Fix]:
    """All body layers: what one of them gives is what the next one takes."""
    if is_tuned(m) or usual_activation(body_layers(m)) in SIGMOID_LIKE:
        return []
    known = parameters_by_name(m)
    layers = [x for x in body_layers(m) if not (x.residual and (p := weight(x, known)) is not None and constant_at_start(p))]
    names, transposed = weight_names(m, layers)
    if not names:
        return []
    text = (
        f"divide the weights of {several(len(names), 'layer')}, in forward order, by the standard deviation of their output "
        "until that is 1 (LSUV); zero biases"
    )
    settings = {"transposed": listed(transposed)} if transposed else {}
    return [REMEDIES[0].fix(text, finding, layers=tuple(names), settings=settings)]


REMEDIES: tuple[RemedyDefinition, ...] = (
    RemedyDefinition(
        "lsuv-init",
        "unit variance, layer by layer (LSUV)",
        "initialization",
        "safe",
        "Mishkin and Matas 2016, All You Need Is a Good Init",
        propose,
        apply,
        CHECKPOINT,
    ),
)
