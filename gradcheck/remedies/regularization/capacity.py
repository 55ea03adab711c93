"""Treatments of size: a narrower or shallower network, and larger batches."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from gradcheck.measure.checks.without_regularization import void
from gradcheck.remedies.definition import optimizing, rebuilding
from gradcheck.remedies.layer_selection import is_tuned
from gradcheck.remedies.modules.surgery import require_running, rewired, swap
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.step import first_tensor
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, joined

WIDTH, BATCHES = 0.5, 4
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@rebuilding(
    "smaller-network",
    "a smaller network",
    "Hastie et al. 2009, The Elements of Statistical Learning, section 7.3",
    checkpoint="shapes of nearly all parameters change: checkpoints do not load",
    wording="make every hidden layer {width:.2g} times as wide",
)
def smaller_network(finding: Finding | None, m: Measurement) -> list[Fix]:
    weighted = [x for x in m.layers if x.kind in ("linear", "conv")]
    if len(weighted) < 2 or is_tuned(m):
        return []
    return [smaller_network.with_settings(finding, width=WIDTH)]


@smaller_network.applies
def narrow(treated: TreatedWorkload, p: Fix) -> None:
    """Removes units of every hidden layer; the remaining weights are scaled so that outputs keep their variance.

    The first layer keeps its inputs and the last one its outputs. Raises Inapplicable for models whose code fixes their widths.
    """
    before, called = _trial_run(treated)
    if len(called) < 2:
        raise Inapplicable("it has no hidden layer whose width can change")
    made = dict(_narrowed(treated.model, called[0], called[-1], float(p.settings["width"])))
    with rewired(treated):
        for name, module in made.items():
            swap(treated, name, module)
    if _trial_run(treated)[0] != before:
        raise Inapplicable("its output changes shape with the width of its layers")


def _trial_run(treated: TreatedWorkload) -> tuple[tuple[int, ...], list[str]]:
    """Shape of what the model returns in a training step, and its linear and convolution layers in order of their first call."""
    shapes: list[tuple[int, ...]] = []
    called: dict[str, None] = {}

    def watch(twin: TreatedWorkload) -> None:
        twin.model.register_forward_hook(lambda *a: shapes.append(tuple(first_tensor(a[-1]).shape)))
        for name, module in twin.model.named_modules():
            if isinstance(module, Weighted):
                module.register_forward_hook(lambda *_, name=name: void(called.setdefault(name)))

    require_running(treated, watch)
    return (shapes[0] if shapes else ()), list(called)


def _narrowed(model: nn.Module, first: str, last: str, factor: float) -> Iterator[tuple[str, nn.Module]]:
    """Every layer with a width, under its name, as it is to be."""
    for name, module in model.named_modules():
        make = next((f for kinds, f in _MAKERS if isinstance(module, kinds)), None)
        if make is not None:
            yield name, make(module, name == first, name == last, factor)
        elif list(module.parameters(recurse=False)):
            raise Inapplicable(f"{type(module).__name__} {name} has weights whose sizes it cannot change")


def _width(size: int, factor: float) -> int:
    return max(1, round(size * factor))


def _weighted(module: Any, first: bool, last: bool, factor: float) -> nn.Module:
    if "weight" not in module._parameters:
        raise Inapplicable("it has reparametrised weights")
    linear = isinstance(module, nn.Linear)
    inputs, outputs = (module.in_features, module.out_features) if linear else (module.in_channels, module.out_channels)
    depthwise = not linear and module.groups > 1
    new_in = inputs if first else _width(inputs, factor)
    new_out = outputs if last else _width(outputs, factor)
    if depthwise and not (module.groups == inputs == outputs):
        raise Inapplicable("it has grouped convolutions")
    rows, columns = module.weight.detach()[:new_out], 1 if depthwise else new_in
    weight = rows[:, :columns] * (module.weight.shape[1] / columns) ** 0.5
    new: Any = copy.copy(module)  # keeps padding, strides and what a subclass adds
    new._parameters = dict(module._parameters)
    new.weight = nn.Parameter(weight.clone(), requires_grad=module.weight.requires_grad)
    new.bias = nn.Parameter(module.bias.detach()[:new_out].clone()) if module.bias is not None else None
    if linear:
        new.in_features, new.out_features = new_in, new_out
    else:
        new.in_channels, new.out_channels, new.groups = new_in, new_out, new_in if depthwise else 1
    result: nn.Module = new
    return result


def _batch_norm(module: Any, _first: bool, _last: bool, factor: float) -> nn.Module:
    return type(module)(_width(module.num_features, factor), module.eps, module.momentum, module.affine, module.track_running_stats)


def _layer_norm(module: nn.LayerNorm, _first: bool, _last: bool, factor: float) -> nn.Module:
    if len(module.normalized_shape) > 1:
        raise Inapplicable("a LayerNorm over several axes fixes their sizes")
    return nn.LayerNorm(_width(module.normalized_shape[0], factor), module.eps, module.elementwise_affine)


def _group_norm(module: nn.GroupNorm, _first: bool, _last: bool, factor: float) -> nn.Module:
    channels = _width(module.num_channels, factor)
    groups = next(g for g in range(min(module.num_groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, module.eps, module.affine)


_MAKERS: tuple[tuple[Any, Callable[..., nn.Module]], ...] = (
    (Weighted, _weighted),
    (PER_CHANNEL, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
)


# -------------------------------------------------------------------------------------- depth


@rebuilding(
    "shallower-network",
    "a shallower network",
    "Huang et al. 2016, Deep Networks with Stochastic Depth",
    checkpoint="blocks are left out and the others renumbered: checkpoints do not load",
)
def shallower_network(finding: Finding | None, m: Measurement) -> list[Fix]:
    if sum(x.kind in ("linear", "conv", "recurrent", "attention") for x in m.layers) < 4 or is_tuned(m):
        return []
    return [shallower_network.fix("leave out every second of the blocks that repeat", finding)]


@shallower_network.applies
def drop_blocks(treated: TreatedWorkload, _: Fix) -> None:
    """Of each row of equal blocks in an nn.Sequential or nn.ModuleList, every second one. Raises Inapplicable where nothing repeats."""
    before = _trial_run(treated)[0]
    dropped = 0
    with rewired(treated):
        for module in list(treated.model.modules()):
            if isinstance(module, nn.Sequential | nn.ModuleList):
                children = list(module)
                keep = _thinned([_signature(x) for x in children])
                dropped += len(children) - len(keep)
                module._modules.clear()
                module._modules.update({str(i): children[k] for i, k in enumerate(keep)})
        if not dropped:
            raise Inapplicable("no block repeats in an nn.Sequential or nn.ModuleList")
    if _trial_run(treated)[0] != before:
        raise Inapplicable("its output changes shape with its depth")


def _signature(module: nn.Module) -> tuple[Any, ...]:
    """What makes two blocks equal: their kind, settings, and the shapes of their parameters."""
    return type(module), repr(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _thinned(signatures: list[tuple[Any, ...]]) -> list[int]:
    """Indices without every second repetition of the longest row of equal blocks; a block is up to four modules long."""
    best = (0, 0, 0)  # modules in the row, where it starts, length of a block
    for length in range(1, 5):
        for start in range(len(signatures) - 2 * length + 1):
            block, count = signatures[start : start + length], 1
            while signatures[start + count * length : start + (count + 1) * length] == block:
                count += 1
            weighted = any(shapes for *_, shapes in block)
            if count > 1 and weighted and (count * length, -length) > (best[0], -best[2]):
                best = (count * length, start, length)
    total, start, length = best
    inside = [i for i in range(total) if (i // length) % 2 == 0] if length else []
    return [*range(start), *(start + i for i in inside), *range(start + total, len(signatures))]


# ----------------------------------------------------------------------------- larger batches


@optimizing(
    "larger-batch",
    "larger batches",
    "McCandlish et al. 2018, An Empirical Model of Large-Batch Training",
    wording="take one step for {batches} batches together: larger batches, or accumulated gradients",
)
def larger_batch(finding: Finding | None, m: Measurement) -> list[Fix]:
    count = min(BATCHES, m.data.batches)
    return [larger_batch.with_settings(finding, batches=count)] if count > 1 else []


@larger_batch.applies
def enlarge(treated: TreatedWorkload, p: Fix) -> None:
    """Joins so many batches to one. What is left over at the end is joined too."""
    batches, count = list(treated.workload.batches), int(p.settings["batches"])
    treated.workload.batches = [joined(batches[i : i + count]) for i in range(0, len(batches), count)]


REMEDIES = (smaller_network, shallower_network, larger_batch)
