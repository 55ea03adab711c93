"""Layer-sequential unit variance: weights divided, in forward order, by the standard deviation of what they give."""

import ast
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradcheck.analysis.activations import SIGMOID_LIKE
from gradcheck.analysis.layer_groups import constant_at_start, parameters_by_name, usual_activation, weight
from gradcheck.analysis.wording import counted
from gradcheck.remedies.data.write_batches import sources
from gradcheck.remedies.definition import initial
from gradcheck.remedies.editing.context import Context, Writer, in_lines
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.helper import apply_to_model, home
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import defined, names_in
from gradcheck.remedies.editing.statements import insert_definition
from gradcheck.remedies.initialization.weights import WeightMatrix, fill, orthogonal, weights_of
from gradcheck.remedies.layer_selection import body_layers, is_tuned, listed, weight_names
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


@initial("lsuv-init", "unit variance, layer by layer (LSUV)", "Mishkin and Matas 2016, All You Need Is a Good Init")
def lsuv_init(finding: Finding | None, m: Measurement) -> list[Fix]:
    """All body layers: what one of them gives is what the next one takes."""
    if is_tuned(m) or usual_activation(body_layers(m)) in SIGMOID_LIKE:
        return []
    known = parameters_by_name(m)
    layers = [x for x in body_layers(m) if not (x.residual and (p := weight(x, known)) is not None and constant_at_start(p))]
    names, transposed = weight_names(m, layers)
    if not names:
        return []
    text = (
        f"divide the weights of {counted(len(names), 'layer')}, in forward order, by the standard deviation of their output "
        "until that is 1 (LSUV); zero biases"
    )
    settings = {"transposed": listed(transposed)} if transposed else {}
    return [lsuv_init.fix(text, finding, layers=tuple(names), settings=settings)]


@lsuv_init.applies
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


def _normalise(twin: TreatedWorkload, weight: WeightMatrix) -> None:
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


REMEDIES = (lsuv_init,)


NAME = "scale_to_unit_variance"


def rescale(p: Fix, context: Context) -> None:
    draft = home(context)
    for name in p.layers:
        if context.layer(name).type in ("LSTM", "GRU", "RNN") or ":" in name:
            raise Unwritable(f"{name} has no single weight that could be divided")
    inputs = _inputs(context, draft)
    _define(context, draft)
    names = in_lines([f'"{x}"' for x in p.layers], "()")
    apply_to_model(context, f"{NAME}(model, {inputs}, {names})", "Layer-sequential unit variance (LSUV, Mishkin and Matas 2016).")


def _inputs(context: Context, draft: Draft) -> str:
    """An expression for a batch of inputs, out of global names that are there when the model is made."""
    if len(context.measurement.data.inputs) != 1 or {x.dtype for x in context.measurement.parameters} - {"float32"}:
        raise Unwritable("the model takes several inputs, or others than float32")
    made = context.at(context.root)[1].lineno
    for source in sources(context):
        if source.draft is not draft or source.held_out or source.node.lineno > made:
            continue
        if source.batches:
            return f"{source.batches}[0][0]"
        if source.tensors and source.tensors[0] in _globals(draft):
            return f"{source.tensors[0]}[:{context.measurement.data.batch_size}]"
    raise Unwritable("the inputs have no global name in the file that makes the model")


def _globals(draft: Draft) -> set[str]:
    return names_in(*(t for statement in draft.tree.body if isinstance(statement, ast.Assign) for t in statement.targets))


def _define(context: Context, draft: Draft) -> None:
    if defined(draft, NAME) is not None:
        return
    module, tensor, no_grad = (spelled(draft, f"torch.{x}") for x in ("nn.Module", "Tensor", "no_grad"))
    code = f'''
@{no_grad}()
def {NAME}(model: {module}, inputs: {tensor}, names: tuple[str, ...]) -> None:
    """Divides weights, in forward order, by the standard deviation of what they give, and zeroes the biases."""
    outputs: list[{tensor}] = []
    for layer in map(model.get_submodule, names):
        if layer.bias is not None:
            layer.bias.zero_()
    for layer in map(model.get_submodule, names):
        hook = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
        for _ in range(10):
            outputs.clear()
            model(inputs)
            deviation = outputs[0].std()
            if deviation == 0 or abs(deviation - 1) < 0.05:
                break
            layer.weight.div_(deviation)
        hook.remove()
'''
    insert_definition(draft, context.at(context.root)[1], code)


WRITERS: dict[str, Writer] = {"lsuv-init": rescale}
