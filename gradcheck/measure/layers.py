"""Calls of all measured steps, merged into one record per layer."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.instrument import kinds, unit_activity
from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.graph_structure import Downstream
from gradcheck.instrument.tensor_statistics import merge
from gradcheck.measure.probe import FINAL_STEPS
from gradcheck.types.layers import Dormancy, Layer, Profile, Snapshot
from gradcheck.types.location import Location


@dataclass(eq=False)
class LayerAccumulator:
    """A layer while it is measured."""

    first: Call
    order: int
    calls: int = 0
    fate: Downstream = field(default_factory=Downstream)
    snapshots: list[Snapshot] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)  # effective samples at each measured step
    alive: list[torch.Tensor] = field(default_factory=list)  # at each measured step, as the next
    magnitudes: list[torch.Tensor] = field(default_factory=list)
    fan_in: int | None = None
    groups: int = 1


class Layers:
    """All layers, fed with the calls of one measured step after another."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerAccumulator] = {}
        self.batches: list[int] = []
        self.last = -1  # step

    def add(self, step: int, batch: int, calls: Iterable[Call], fates: Mapping[int, Downstream] | None) -> None:
        """Files the calls of a step. `fates` come with the first one."""
        self.batches.append(batch)
        self.last = step
        groups: dict[str, list[Call]] = {}
        for call in calls:
            groups.setdefault(call.name, []).append(call)
        for name, same in groups.items():
            layer = self.layers.get(name)
            if layer is None:
                layer = self.layers[name] = LayerAccumulator(same[0], len(self.layers))
                layer.fan_in, layer.groups = fan_in(same[0])
            layer.calls = max(layer.calls, len(same))
            if fates is not None:
                layer.fate = _joined([fates[id(c)] for c in same if id(c) in fates])
            layer.snapshots.append(_snapshot(step, same, layer.fate.head))
            self._units(layer, same)

    @property
    def heads(self) -> frozenset[str] | None:
        """Names of the head's layers; None before the first step."""
        return frozenset(name for name, layer in self.layers.items() if layer.fate.head) if self.layers else None

    def _several(self) -> bool:
        """Whether several nets run side by side."""
        return len(frozenset().union(*(x.fate.nets for x in self.layers.values()))) > 1

    @property
    def half(self) -> bool:
        """Whether some layer computes in float16."""
        return any(layer.first.dtype == "float16" for layer in self.layers.values())

    @staticmethod
    def _units(layer: LayerAccumulator, same: list[Call]) -> None:
        masks = [c.alive for c in same if c.alive is not None]
        sizes = [c.magnitudes for c in same if c.magnitudes is not None]
        if _same_units(sizes):
            layer.magnitudes.append(torch.stack(sizes).mean(0) if len(sizes) > 1 else sizes[0])
            layer.samples.append(sum(c.effective_samples for c in same))
        if _same_units(masks):
            layer.alive.append(torch.stack(masks).any(0) if len(masks) > 1 else masks[0])

    def records(self, sites: Mapping[str, Location | None], profiles: Mapping[str, Profile]) -> tuple[Layer, ...]:
        several = self._several()
        return tuple(self._noun(name, layer, sites, profiles, several) for name, layer in self.layers.items())

    def dormant(self) -> Iterator[tuple[str, float]]:
        """Layers, and the share of their units that were dormant in the last step. Gates are left out, which are small by design."""
        for name, layer in self.layers.items():
            if layer.magnitudes and layer.snapshots[-1].step == self.last and not layer.fate.gate:
                yield name, _dormant(layer.magnitudes[-1:]) / layer.magnitudes[-1].numel()

    def _dormancy(self, layer: LayerAccumulator) -> Dormancy | None:
        found = layer.magnitudes
        if not _same_units(found) or not all(bool(m.isfinite().all()) for m in found):
            return None
        batches = len(set(self.batches[-FINAL_STEPS:]))
        last, start = found[-FINAL_STEPS:], found[:2]
        return Dormancy(len(found[0]), _dormant(last), _dormant(start), sum(layer.samples[-FINAL_STEPS:]), batches)

    def _noun(
        self, name: str, layer: LayerAccumulator, sites: Mapping[str, Location | None], profiles: Mapping[str, Profile], several: bool
    ) -> Layer:
        first, fate = layer.first, layer.fate
        parameters: tuple[str, ...] = ()
        if first.module is not None:
            parameters = tuple(f"{name}.{n}" if name else n for n, _ in first.module.named_parameters(recurse=False))
        units = dead = at_start = None
        samples = batches = 0
        if _same_units(layer.alive):
            last = torch.stack(layer.alive[-FINAL_STEPS:]).any(0)
            start = torch.stack(layer.alive[:2]).any(0)
            units, dead, at_start = last.numel(), int((~last).sum()), int((~start).sum())
            samples = sum(layer.samples[-FINAL_STEPS:])
            batches = len(set(self.batches[-FINAL_STEPS:]))
        return Layer(
            name,
            first.type,
            first.kind,
            layer.order,
            layer.calls,
            first.shape,
            first.site or sites.get(name),
            parameters,
            first.function,
            fate.activation,
            fate.normalized,
            fate.residual,
            fate.gate,
            fate.head and first.kind in kinds.WEIGHTED_KINDS,
            fate.trained,
            layer.fan_in,
            layer.groups,
            units,
            dead,
            samples,
            batches,
            at_start,
            self._dormancy(layer),
            tuple(layer.snapshots),
            profiles.get(name),
            first.dtype,
            fate.depth,
            tuple(sorted(fate.nets)) if several else (),
        )


def _same_units(found: Sequence[torch.Tensor]) -> bool:
    """Whether there are some, of one size: of an axis that changes its length, nodes of a graph, say, the entries are no units."""
    return bool(found) and all(x.shape == found[0].shape for x in found)


def _dormant(magnitudes: Sequence[torch.Tensor]) -> int:
    size = torch.stack(list(magnitudes)).mean(0)
    return int((size <= unit_activity.DORMANT * size.mean()).sum())


def _joined(fates: list[Downstream]) -> Downstream:
    """The fate of a layer that is called several times: whatever happens to any of its outputs."""
    if not fates:
        return Downstream()
    return Downstream(
        next((f.activation for f in fates if f.activation), None),
        any(f.normalized for f in fates),
        any(f.residual for f in fates),
        any(f.gate for f in fates),
        any(f.head for f in fates),
        any(f.trained for f in fates),
        min((f.depth for f in fates if f.depth is not None), default=None),
        frozenset().union(*(f.nets for f in fates)),
    )


def _snapshot(step: int, calls: list[Call], head: bool) -> Snapshot:
    return Snapshot(
        step,
        merge([c.output for c in calls if c.output is not None]),
        merge([g for c in calls for g in c.gradients]),
        _mean([c.saturated for c in calls]),
        _mean([c.sample_cosine for c in calls]) if head else None,
        _mean([c.token_cosine for c in calls]),
    )


def _mean(values: Sequence[torch.Tensor | None]) -> float | None:
    known = [number for v in values if v is not None and math.isfinite(number := v.item())]
    return sum(known) / len(known) if known else None


def fan_in(call: Call) -> tuple[int | None, int]:
    """Inputs per output unit, and groups, of a linear or convolution call."""
    module = call.module
    if isinstance(module, nn.modules.conv._ConvNd):
        kernel = module.weight
        if module.transposed:
            return kernel.shape[0] * kernel[0][0].numel() // module.groups, module.groups
        return kernel[0].numel(), module.groups
    weight: Any = call.weight if module is None else getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() < 2 or call.kind not in ("linear", "conv"):
        return None, 1
    if call.kind == "conv":
        return weight[0].numel(), 1
    if weight.dim() == 2 and weight.shape[0] == call.shape[-1] and weight.shape[1] != call.shape[-1]:
        return weight.shape[1], 1
    if weight.dim() == 2 and (module is None or call.type == "Conv1D") and weight.shape[1] == call.shape[-1]:
        return weight.shape[0], 1
    return weight.shape[-1], 1
