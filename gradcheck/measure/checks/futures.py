"""Which operation lets places of a sequence see later ones: two passes that differ after some place, compared operation by operation. They
differ in the tokens there, or in the number of places.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gradcheck.instrument.activation_recorder import caller
from gradcheck.measure.checks.sample_mixing import ROUNDING, Seen
from gradcheck.types.location import Location
from gradcheck.workload.device import wide
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in

State = Literal["same", "own", "seen", "without places"]
# In "own" what lies up to the place is as it was, in "seen" it has changed along every axis that may hold the places.


@dataclass(frozen=True)
class Opening:
    """Where later places are first seen."""

    layer: str
    operation: str
    site: Location | None
    pooled: bool  # through something without places: a summary of the sequence


@dataclass(frozen=True)
class _Print:
    """Sums that tell whether a tensor has changed: as a whole, and up to a place, for each axis that may hold the places."""

    shape: tuple[int, ...]
    whole: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    longer: bool  # some axis holds the places and more: padded at its ends, or beside other tokens


class _Printing(Seen):
    """Takes the prints of every operation's results, with `length` places, of which the first `alike` are the same in both passes, or,
    where that is negative, the last ones."""

    def __init__(self, names: Mapping[int, str], length: int, alike: int) -> None:
        super().__init__(names)
        self.length, self.alike = length, alike

    def prints(self, output: Any) -> list[_Print]:
        return [_print(t.detach(), self.length, self.alike) for t in tensors_in(output)]


class _Remembering(_Printing):
    def __init__(self, names: Mapping[int, str], length: int, alike: int) -> None:
        super().__init__(names, length, alike)
        self.results: list[tuple[str, list[_Print]]] = []

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        self.results.append((name, self.prints(output)))


class _Comparing(_Printing):
    """Follows what has changed from operation to operation. `pooling`: what has no places has to be the same, too."""

    def __init__(self, names: Mapping[int, str], length: int, alike: int, before: list[tuple[str, list[_Print]]], pooling: bool) -> None:
        super().__init__(names, length, alike)
        self.before, self.index, self.pooling = before, 0, pooling
        self.changed: dict[int, tuple[torch.Tensor, Opening]] = {}  # results, and where their change comes from
        self.found: Opening | None = None  # of the last one, which is on the way to the output
        self.lost = False  # the passes took different paths

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        expected = self.before[self.index] if self.index < len(self.before) else ("", [])
        self.index += 1
        now = self.prints(output) if not self.lost else []
        self.lost = self.lost or expected[0] != name or [len(p.shape) for p in expected[1]] != [len(p.shape) for p in now]
        if self.lost:
            return
        origins = [self.changed[id(t)][1] for t in tensors_in(given) if id(t) in self.changed]
        origin = min(origins, key=lambda o: o.pooled, default=None)
        most = max((t.numel() for t in tensors_in(given)), default=0)
        for tensor, old, new in zip(tensors_in(output), expected[1], now, strict=True):
            state = _state(old, new)
            padded = state == "without places" and new.longer and tensor.numel() >= most
            if state in ("same", "own") or (origin is None and padded):
                continue
            pooled = state == "without places"
            blamed = origin or Opening(self.module_name, name, location_of_frame(caller()), pooled)
            self.changed[id(tensor)] = (tensor, blamed)
            if self.pooling or not pooled:
                self.found = blamed


def _print(x: torch.Tensor, length: int, alike: int) -> _Print:
    upto = abs(alike)
    start = length - upto if alike < 0 else 0
    if x.is_complex():
        x = torch.view_as_real(x)
    with torch._C.DisableTorchFunction():
        x = torch.nan_to_num(wide(x), posinf=0.0, neginf=0.0)
        axes = [k for k, size in enumerate(x.shape) if size == length]
        parts = [_sums(x.narrow(k, start, upto).movedim(k, 0)) for k in axes]
        if len(axes) > 1:  # places against places: what is made of those that came later decides
            block = x
            for k in axes:
                block = block.narrow(k, start, upto)
            parts.append(_sums(block.movedim(axes[0], 0)))
        if not axes and x.dim() and x.shape[0] and x.shape[0] % length == 0:
            inner = x.shape[0] // length
            parts.append(_sums(x.reshape(inner, length, -1)[:, start : start + upto].transpose(0, 1)))
            parts.append(_sums(x.reshape(length, inner, -1)[start : start + upto]))
        return _Print(tuple(x.shape), _sums(x.reshape(1, -1)), tuple(parts), any(length < s <= 2 * length for s in x.shape))


def _sums(x: torch.Tensor) -> torch.Tensor:
    """The sum of each row, and that of the magnitudes."""
    flat = x.reshape(len(x), -1)
    return torch.stack((flat.sum(1), flat.abs().sum(1)))


def _state(old: _Print, new: _Print) -> State:
    if _alike(old.whole, new.whole):
        return "same"
    if not old.parts or not new.parts:
        return "without places"
    pairs = ((a, b) for a in old.parts for b in new.parts if a.shape == b.shape)  # other axes may be as long by chance
    return "own" if any(_alike(a, b) for a, b in pairs) else "seen"


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a - b).abs() <= ROUNDING * a[1].abs().max().clamp_min(1e-30)).all())


def opening(
    step: Callable[[bool], Any], names: Mapping[int, str], lengths: tuple[int, int], alike: int, *, pooling: bool = False
) -> Opening | None:
    """The first operation whose result in the first `alike` places, the last ones where it is negative, depends on the others.

    `step(changed)` makes a pass; `lengths`: places in it as it is, and changed. With `pooling` results without places count as well.
    """
    remembering = _Remembering(names, lengths[0], alike)
    with remembering:
        step(False)
    comparing = _Comparing(names, lengths[1], alike, remembering.results, pooling)
    with comparing:
        step(True)
    return comparing.found


def site_of(place: Opening, model: nn.Module, sites: Mapping[str, Location | None]) -> Location | None:
    """Where a module of torch is created, if that decides what its places see; otherwise the call, as for attention with its mask."""
    module = dict(model.named_modules()).get(place.layer)
    called = isinstance(module, (nn.MultiheadAttention, nn.Transformer))
    built = module is not None and type(module).__module__.startswith("torch.nn.modules") and not called
    return (sites.get(place.layer) if built else None) or place.site
