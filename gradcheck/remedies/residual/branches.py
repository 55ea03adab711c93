"""Residual branches: added around plain blocks, scaled down, or started at zero."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import torch
from torch import nn

from gradcheck.analysis.activations import DYING, SCALING, SIGMOID_LIKE
from gradcheck.analysis.layer_groups import in_order, parameters_by_name, usual_activation
from gradcheck.analysis.wording import counted, number
from gradcheck.remedies.definition import initial, rebuilding
from gradcheck.remedies.layer_selection import body_layers, is_tuned
from gradcheck.remedies.modules.surgery import module_at, require_running, rewired, wrap
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

ENDING = ("linear", "conv", "norm")
SHORTCUT = re.compile(r"skip|shortcut|downsample|bypass|identity", re.IGNORECASE)


class Residual(nn.Module):
    """x + scale * block(x), for a block whose output has the shape of its input."""

    def __init__(self, block: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.block = block
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.block(x)


# ------------------------------------------------------------------------------ add-residual


@rebuilding(
    "add-residual",
    "residual connections around the blocks",
    "He et al. 2016, Deep Residual Learning; De and Smith 2020, Batch Normalization Biases Residual Blocks",
    checkpoint="keys change: the weights of a block move to `<block>.block`; checkpoints of the old architecture do not fit",
)
def add_residual(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Around each block of a stack of alike ones; where there are no blocks, around each layer that keeps its width."""
    if any(x.residual for x in m.of_kind("linear", "conv", "norm", "container")):
        return []
    blocks = list(_alike_blocks(m))
    if not blocks and usual_activation(body_layers(m)) not in SIGMOID_LIKE:
        blocks = _square_layers(m)
    if len(blocks) < 2:
        return []
    scale = len(blocks) ** -0.5
    text = f"add its input to the output of {counted(len(blocks), 'block')}, each scaled by {number(scale)} = 1 / sqrt({len(blocks)})"
    return [add_residual.fix(text, finding, layers=tuple(blocks), settings={"scale": round(scale, 4)})]


@add_residual.applies
def apply_add_residual(treated: TreatedWorkload, fix: Fix) -> None:
    """Wraps blocks whose output has the shape of their input; the others stay. Raises Inapplicable when fewer than two have."""
    scale = float(fix.settings.get("scale", 1.0))
    fitting = [name for name in fix.layers if name in _shape_keeping(treated, fix.layers)]
    if len(fitting) < 2:
        raise Inapplicable("there are no two blocks whose output has the shape of their input")
    with rewired(treated):
        for name in fitting:
            wrap(treated, name, lambda block: Residual(block, scale).train(block.training))


def _shape_keeping(treated: TreatedWorkload, names: Sequence[str]) -> set[str]:
    """Blocks that take one tensor and give one of the same shape, in one forward pass of a copy."""
    kept, seen = dict.fromkeys(names, True), set()

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            seen.add(name)
            same = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor)
            kept[name] &= same and args[0].shape == output.shape  # type: ignore[attr-defined]

        module.register_forward_hook(hook, with_kwargs=True)

    def watch_all(twin: TreatedWorkload) -> None:
        for name in names:
            watch(name, module_at(twin, name))

    require_running(treated, watch_all)
    return {name for name in names if kept[name] and name in seen}


def _alike_blocks(m: Measurement) -> Iterator[str]:
    """Innermost containers that follow each other in one parent, of one type and one output shape."""
    containers = [x for x in in_order(m) if x.kind == "container" and x.name and _holds_weights(m, x.name)]
    innermost = [x for x in containers if not any(y.name.startswith(f"{x.name}.") for y in containers)]
    for _, group in groupby(innermost, key=lambda x: (x.name.rpartition(".")[0], x.type, x.output_shape)):
        blocks = list(group)
        width = _width_before(m, blocks[0])
        for i, block in enumerate(blocks):
            if i > 0 or width in (None, block.output_shape[-1] if len(block.output_shape) != 4 else block.output_shape[1]):
                yield block.name


def _holds_weights(m: Measurement, name: str) -> bool:
    return any(x.name.startswith(f"{name}.") for x in m.of_kind("linear", "conv"))


def _width_before(m: Measurement, block: Layer) -> int | None:
    """Inputs of the first linear layer of a block; None where that is not the block's width."""
    first = next((x for x in in_order(m) if x.name.startswith(f"{block.name}.") and x.kind in ("linear", "conv")), None)
    return first.fan_in if first is not None and first.kind == "linear" else None


def _square_layers(m: Measurement) -> list[str]:
    """Layers of a flat stack whose output has the shape of what they take, as far as shapes of outputs tell."""
    body = [x for x in in_order(m) if x.kind in ("linear", "conv") and not x.head]
    same = [b for a, b in pairwise(body) if a.output_shape == b.output_shape]
    return [x.name for x in same if ":" not in x.name and (x.kind == "conv" or x.fan_in == x.output_shape[-1])]


# ---------------------------------------------------------------------------- branches there are


@initial(
    "residual-scaling",
    "smaller residual branches",
    "Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3; Zhang et al. 2019, Fixup",
)
def residual_scaling(finding: Finding | None, m: Measurement) -> list[Fix]:
    ends = [x.name for x, _ in branch_ends(m)]
    if is_tuned(m) or len(ends) < 2:
        return []
    scale = len(ends) ** -0.5
    text = f"multiply the last weights of each of the {len(ends)} residual branches by {number(scale)} = 1 / sqrt({len(ends)})"
    return [residual_scaling.fix(text, finding, layers=tuple(ends), settings={"scale": round(scale, 4)})]


@residual_scaling.applies
def scale_branches(treated: TreatedWorkload, fix: Fix) -> None:
    """Multiplies the last weights of each branch, and their biases."""
    _multiply(treated, fix, float(fix.settings["scale"]))


@initial(
    "zero-branch-init",
    "residual branches that start at zero",
    "Zhang et al. 2019, Fixup Initialization; Goyal et al. 2017, Accurate, Large Minibatch SGD, section 5.1",
)
def zero_branch_init(finding: Finding | None, m: Measurement) -> list[Fix]:
    ends = branch_ends(m)
    if is_tuned(m) or len(ends) < 2 or any(shut for _, shut in ends):
        return []  # after a zero a ReLU passes no gradient: such a branch would never start to learn
    text = f"start the last weights of each of the {len(ends)} residual branches at zero"
    return [zero_branch_init.fix(text, finding, layers=tuple(x.name for x, _ in ends))]


@zero_branch_init.applies
def zero_branches(treated: TreatedWorkload, fix: Fix) -> None:
    """Starts each branch at zero; its last weights then learn first."""
    _multiply(treated, fix, 0.0)


def _multiply(treated: TreatedWorkload, fix: Fix, factor: float) -> None:
    with torch.no_grad():
        for name in fix.layers:
            module = module_at(treated, name)
            if nn.utils.parametrize.is_parametrized(module, "weight") or hasattr(module, "weight_g"):
                raise Inapplicable(f"the weight of {name} is computed from others")
            own = [p for p in (module._parameters.get("weight"), module._parameters.get("bias")) if p is not None]
            if not own:
                raise Inapplicable(f"{name} has no weight of its own")
            for p in own:
                p.mul_(factor) if factor else p.zero_()


def branch_ends(m: Measurement) -> list[tuple[Layer, bool]]:
    """The last layer with weights of each residual branch, and whether a ReLU follows it inside the branch.

    Projections of the bypass are left out, and what feeds the first sum.
    """
    known, layers = parameters_by_name(m), in_order(m)
    found: dict[str, tuple[Layer, bool]] = {}
    for i, x in enumerate(layers):
        if not x.residual or x.kind == "container" or SHORTCUT.search(x.name):
            continue
        end, shut = x, False
        if x.kind == "activation" and x.function in SCALING:
            end = next((y for y in reversed(layers[:i]) if y.kind in ENDING), x)
            if end.residual:
                continue  # the activation comes after the sum
            shut = x.function in DYING
        if end.kind in ENDING and any(n in known and known[n].trainable for n in end.parameters):
            found.setdefault(end.name, (end, shut))
    ends = list(found.values())
    extra = len(ends) - sum(len(s.layers) for s in m.streams)
    return ends[min(extra, len(m.streams)) :] if extra > 0 else ends


REMEDIES = (add_residual, residual_scaling, zero_branch_init)
