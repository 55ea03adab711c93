"""The first pass, watched more closely than the others: loss calls, softmaxes, broadcasts, what enters, and where gradient is cut off."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.instrument import handwritten_loss, loss_calls, similarities, zero_derivatives
from gradcheck.instrument import recorded_calls as seen
from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.types.location import Location
from gradcheck.types.losses import BroadcastMix
from gradcheck.types.measurement import Entering
from gradcheck.workload.device import on_host
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import IdentityTable, tensors_in

_NOTHING: frozenset[int] = frozenset()


class Flow:
    """`follow` every call in its order; marks are numbers that the caller gives to results.

    The mark of a real number ends where it is turned into integers: these choose, and have no derivative anyway.
    """

    def __init__(self) -> None:
        self._marks: IdentityTable[torch.Tensor, frozenset[int]] = IdentityTable()
        self._whole: set[int] = set()  # marks of integers

    def follow(self, given: Any, output: Any, mark: int | None = None) -> None:
        """The results carry the marks of what they were computed from, and `mark`."""
        if mark is None and not self._marks:
            return
        marks = self.of(tensors_in(given, 2)) | ({mark} if mark is not None else _NOTHING)
        if not marks:
            return
        into = given if output is None else output  # an assignment to part of a tensor, which is the first that it is given
        for tensor in itertools.islice(tensors_in(into, 2), 1 if output is None else None):
            if not tensor.is_floating_point() and not tensor.is_complex():
                self._whole |= {mark} if mark is not None else _NOTHING
                self._marks[tensor] = marks & self._whole
            else:
                self._marks[tensor] = marks

    def of(self, tensors: Iterable[torch.Tensor]) -> frozenset[int]:
        return _NOTHING.union(*(self._marks.get(t) or _NOTHING for t in tensors))


_SOFTMAX = {
    F.softmax: False,
    torch.softmax: False,
    torch.Tensor.softmax: False,
    F.log_softmax: True,
    torch.log_softmax: True,
    torch.Tensor.log_softmax: True,
}
_ARITHMETIC = {
    f: name for name in ("sub", "add", "mul", "__rsub__") for home in (torch, torch.Tensor) if (f := getattr(home, name, None)) is not None
}
# Results that carry no values of their argument.
_SHAPE_ONLY = frozenset(
    "zeros_like ones_like empty_like rand_like randn_like randint_like full_like new_zeros new_ones new_empty new_full new_tensor "
    "register_hook requires_grad_ backward size dim".split()
)
_CUT_NAMES = {
    "__float__": "item",
    "__int__": "item",
    "__bool__": "bool",
    "__index__": "item",
    "tolist": "item",
    "argmin": "argmax",
    "argsort": "argmax",
}
_MOST_SOURCES = 64


@dataclass(eq=False)
class SeenSoftmax:
    layer: str
    site: Location | None
    shape: tuple[int, ...]
    axis: int
    implicit: bool
    log: bool
    node: Any


@dataclass(eq=False)
class SeenCut:
    """Calls at one place whose arguments carry gradient and whose results do not."""

    operation: str
    layer: str
    site: Location | None
    nodes: list[Any] = field(default_factory=list)
    leaves: list[torch.Tensor] = field(default_factory=list)
    reaches: bool = False  # the loss was computed from the results


class FirstPassRecorder(ActivationRecorder):
    """Taps that also see what only the first pass needs."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__(names, functions=True)
        self.losses: list[loss_calls.SeenLoss] = []
        self.softmaxes: list[SeenSoftmax] = []
        self.mixes: list[BroadcastMix] = []
        self.cuts: dict[Any, SeenCut] = {}
        self.seen: list[seen.Seen] = []
        self.operations: list[handwritten_loss.SeenOperation] = []
        self.differences: list[handwritten_loss.SeenDifference] = []
        self.zeros: list[zero_derivatives.SeenZero] = []
        self.entrances = Entrances()
        self.similarities = similarities.Similarities()
        self.scrambles = similarities.Scrambles()
        self._flow = Flow()
        self._made: dict[int, torch.Tensor] = {}  # tensors without gradient that were computed from weights, by their id

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.recording:
            return function(*args, **kwargs)
        if function in loss_calls.LOSSES:
            return self._loss(function, args, kwargs)
        if function in TAKERS:
            self.entrances.look(function, args, self.module_name, lambda: location_of_frame(caller()))
        output = self._watched(function, types, args, kwargs)
        if function in _SOFTMAX:
            self._softmax(function, args, kwargs, output)
        elif function in _ARITHMETIC and not self.stack:
            self._mix(function, args, output)
        self._by_hand(function, args, output)
        self.similarities.look(function, args, kwargs, output, lambda: location_of_frame(caller()))
        self.scrambles.look(getattr(function, "__name__", ""), args, output, lambda: location_of_frame(caller()))
        module = self.stack[-1][0] if self.stack else None
        zero = zero_derivatives.seen(function, args, output, module, self.module_name, lambda: location_of_frame(caller()))
        self.zeros += [zero] if zero is not None else []
        graded = isinstance(output, torch.Tensor) and output.requires_grad  # then nothing is cut off
        cut = None if graded else self._cut(function, args, kwargs, output)
        self._flow.follow((args, kwargs), output, id(cut) if cut is not None else None)
        if not graded:
            self._note_made(function, args, kwargs, output)
        return output

    def _note_made(self, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        made = [t for t in tensors_in(output, 2) if not t.requires_grad]
        if made and getattr(function, "__name__", "") not in _SHAPE_ONLY and any(map(self._is_made, tensors_in((args, kwargs), 2))):
            self._made |= {id(t): t for t in made}

    def _is_made(self, tensor: torch.Tensor) -> bool:
        return tensor.requires_grad or id(tensor) in self._made

    def _watched(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Makes the call and notes what `seen` knows of it, and the exception if it raises one."""
        noted = None
        if self.stack:
            place = self.stack[-1][0], self.module_name
            try:
                noted = seen.before(function, args, kwargs, *place, lambda: location_of_frame(caller()))
            except Exception as error:  # this says nothing about what the call itself will do
                self.failures[f"{self.module_name}:{getattr(function, '__name__', '')}"] = f"{type(error).__name__}: {error}"
        try:
            output = super().__torch_function__(function, types, args, kwargs)
        except Exception as error:
            if isinstance(noted, seen.SeenNorm):
                noted.raised = f"{type(error).__name__}: {error}"
                self.seen.append(noted)
            raise
        if noted is not None:
            seen.after(noted, output)
            self.seen.append(noted)
        return output

    def _by_hand(self, function: Any, args: Any, output: Any) -> None:
        """What a loss that is written by hand may consist of."""
        noted: Any = None
        if function in handwritten_loss.OPERATIONS:
            noted = handwritten_loss.operation(function, args, output, self.module_name, lambda: location_of_frame(caller()))
            self.operations += [noted] if noted is not None else []
        elif function in handwritten_loss.SUBTRACTIONS and not self.stack:
            noted = handwritten_loss.difference(args, output, lambda: location_of_frame(caller()))
            self.differences += [noted] if noted is not None else []

    def _loss(self, function: Any, args: Any, kwargs: Any) -> Any:
        seen = loss_calls.seen(function, args, kwargs, location_of_frame(caller()))
        if seen is not None:
            seen.target_made = seen.target is not None and self._is_made(seen.target)
            self.losses.append(seen)
        try:
            output = function(*args, **kwargs)
        except Exception as error:
            if seen is not None:
                seen.raised = f"{type(error).__name__}: {error}"
            raise
        if seen is not None and isinstance(output, torch.Tensor):
            seen.watch(output)
        self._flow.follow((args, kwargs), output)
        return output

    def _softmax(self, function: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        rank = output.dim()
        implicit = dim is None
        if implicit:  # torch's own rule for a missing dim
            dim = 0 if rank in (0, 1, 3) else 1
        if not isinstance(dim, int) or rank == 0:
            return
        site = location_of_frame(caller())
        seen = SeenSoftmax(self.module_name, site, tuple(output.shape), dim % rank, implicit, _SOFTMAX[function], output.grad_fn)
        self.softmaxes.append(seen)

    def _mix(self, function: Any, args: Any, output: Any) -> None:
        """[N, 1] with [N] or [1, N] gives [N, N]: a target that lost, or an output that kept, its last axis."""
        pair = [a for a in args[:2] if isinstance(a, torch.Tensor)]
        if len(pair) != 2 or not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return
        if sum(a.requires_grad for a in pair) != 1:
            return  # all pairs of one tensor's entries, as in ranking losses: a target never carries gradient
        shapes = [tuple(a.shape) for a in pair]
        one, other = sorted(shapes, key=len)
        dropped = len(other) == len(one) + 1 and other[-1] == 1 and one and other[:-1] == one and one[-1] > 1
        turned = len(one) == 2 and one[::-1] == other and one != other and 1 in one
        if (dropped or turned) and output.requires_grad:
            site = location_of_frame(caller())
            self.mixes.append(BroadcastMix(_ARITHMETIC[function].strip("_"), site, shapes[0], shapes[1], tuple(output.shape)))

    def ends_in(self, loss: torch.Tensor) -> None:
        """Tells the cuts that the loss was computed from."""
        marks = self._flow.of([loss])
        for cut in self.cuts.values():
            cut.reaches = id(cut) in marks

    def _cut(self, function: Any, args: Any, kwargs: Any, output: Any) -> SeenCut | None:
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", "")
            if name != "data":
                return None
        if name in _SHAPE_ONLY:
            return None
        carries = isinstance(output, (torch.Tensor, float)) or name in ("numpy", "item", "tolist", "__bool__", "__int__", "__float__")
        if not carries or any(t.requires_grad for t in tensors_in(output, 2)):
            return None
        sources = [t for t in tensors_in((args, kwargs), 2) if t.requires_grad]
        if not sources:
            return None
        operation = _CUT_NAMES.get(name, name)
        if not torch.is_grad_enabled():
            operation = "no_grad"
        elif isinstance(output, torch.Tensor) and not output.is_floating_point() and operation not in ("argmax", "detach", "data"):
            operation = "bool" if output.dtype == torch.bool else "int-cast"
        site = location_of_frame(caller())
        cut = self.cuts.setdefault((operation, self.module_name, site), SeenCut(operation, self.module_name, site))
        if len(cut.nodes) + len(cut.leaves) < _MOST_SOURCES:
            cut.nodes.extend(t.grad_fn for t in sources if t.grad_fn is not None)
            cut.leaves.extend(t for t in sources if t.is_leaf)
        return cut


_CHANNELS = {F.conv1d: 1, F.conv2d: 1, F.conv3d: 1}  # axis of the features, where it is not the last one
TAKERS = {F.linear, *_CHANNELS}
FEWEST = 8  # values of a feature


class Entrances:
    """Calls of linear and convolution layers whose weights are trained and whose input carries no gradient."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[torch.Tensor, tuple[int, ...], Location | None]] = {}  # the numbers of `read`, where they lie
        self._frozen = False  # a layer that is not trained has run: its outputs are not data

    @torch.no_grad()
    def look(self, function: Any, args: Any, layer: str, site: Callable[[], Location | None]) -> None:
        if len(args) < 2 or self._frozen or not all(isinstance(a, torch.Tensor) for a in args[:2]):
            return
        given, weight = args[0], args[1]
        if not weight.requires_grad and not given.requires_grad:
            self._frozen = True
        plain = given.is_floating_point() and given.layout is torch.strided and given.dim() > 1
        if layer in self._seen or given.requires_grad or not weight.requires_grad or not plain:
            return
        features = given.detach().float().movedim(_CHANNELS.get(function, -1), -1).flatten(0, -2)
        if len(features) < FEWEST:
            return
        stds = features.std(0, correction=0)
        loudest, place = stds.max(0)
        column = features.index_select(1, place.reshape(1)).squeeze(1)
        share = (stds > loudest / 10).float().mean()
        numbers = torch.stack([torch.isfinite(features).all().float(), loudest, column.mean(), column.min(), column.max(), share])
        self._seen[layer] = numbers, tuple(given.shape), site()

    def read(self) -> tuple[Entering, ...]:
        found = []
        numbers = on_host([n for n, _, _ in self._seen.values()])
        for (layer, (_, shape, site)), read in zip(self._seen.items(), numbers, strict=True):
            finite, *rest = read.tolist()
            found += [Entering(layer, site, shape, *rest)] if finite else []
        return tuple(found)
