"""Samples in what goes into a model and in what comes out: which axis they are on, replacing some, comparing the others; and which
operation lets them meet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.types.location import Location
from gradcheck.workload.device import wide
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.step import TARGET_NAMES, forward_of, split
from gradcheck.workload.tensors import tensors_in, tensors_of
from gradcheck.workload.training_copy import TrainingCopy

COUNTS = (7, 11, 5, 13, 9)  # samples to look at: the first number that is not the size of another axis
FEWEST = 3
MOST = 256  # samples that are looked at where the model does not take fewer


class _Caught(BaseException):
    """Ends a pass once the model's arguments are known."""


@dataclass(frozen=True)
class Inputs:
    """Arguments of the model, flat. `axes[i]` is the axis of the samples in leaf i, None where it has none."""

    leaves: tuple[Any, ...]
    spec: Any
    axes: tuple[int | None, ...]
    rows: int
    known: bool  # the axis is known: as many samples as the target has rows, or stacked by torch
    first: int  # the leaf that the layout was read from
    target: bool = False  # there is one, with a row for each sample
    per_position: bool = False  # the target has the first two axes of the input, so that either may hold the samples

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return pytree.tree_unflatten(list(self.leaves), self.spec)

    def run(self, model: nn.Module) -> Any:
        args, kwargs = self.arguments
        return model(*args, **kwargs)

    def taken(self, index: Sequence[int]) -> Inputs:
        """These samples, in this order."""
        leaves = []
        for leaf, axis in zip(self.leaves, self.axes, strict=True):
            leaves.append(leaf if axis is None else leaf.index_select(axis, torch.tensor(index, device=leaf.device)))
        return replace(self, leaves=tuple(leaves), rows=len(index))

    def along(self, axis: int) -> Inputs | None:
        """The same, taking the entries of another axis of the first leaf for the samples; None where it is too short."""
        size = self.leaves[self.first].shape[axis]
        if size < FEWEST:
            return None
        axes = tuple(axis if isinstance(x, torch.Tensor) and x.dim() > axis and x.shape[axis] == size else None for x in self.leaves)
        return replace(self, axes=axes, rows=size)

    def moved(self, replaced: Sequence[int], by: Sequence[int]) -> Inputs:
        """The samples `replaced` overwritten by the samples `by`."""
        index = list(range(self.rows))
        for old, new in zip(replaced, by, strict=True):
            index[old] = new
        return self.taken(index)

    def requiring_grad(self) -> Inputs:
        """Copies that require grad where they can."""
        return replace(self, leaves=tuple(_requiring_grad(x) for x in self.leaves))

    def differ(self, one: Inputs) -> bool:
        pairs = zip(self.leaves, one.leaves, strict=True)
        return any(isinstance(a, torch.Tensor) and not torch.equal(a, b) for a, b in pairs)


def _requiring_grad(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    copy = leaf.detach().clone()
    return copy.requires_grad_() if copy.is_floating_point() or copy.is_complex() else copy


def inputs_of(copied: TrainingCopy, batch: Any, *, collated: bool = False) -> Inputs | None:
    """The arguments of the model's first call in a training step, and the layout of samples in them; None when it is not called.

    `collated`: samples are certainly on the first axis. Otherwise this axis is assumed, or the one that is as long as the target.
    """
    caught: list[Any] = []

    def catch(module: nn.Module, args: Any, kwargs: Any) -> None:
        caught.append((args, kwargs))
        raise _Caught

    with suppress(_Caught), copied.model.register_forward_pre_hook(catch, with_kwargs=True, prepend=True), torch.no_grad():
        copied.loss(batch)
    return _layout(caught[0], _target(copied.model, batch), collated) if caught else None


def _target(model: nn.Module, batch: Any) -> torch.Tensor | None:
    found = split(batch, model)[1]
    return next((t for t in tensors_of(found) if t.dim()), None)


def _layout(arguments: Any, target: torch.Tensor | None, collated: bool) -> Inputs | None:
    leaves, spec = pytree.tree_flatten(arguments)
    tensors = [(i, x) for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.dim() and x.numel()]
    if not tensors or any(x.layout is not torch.strided for _, x in tensors):
        return None
    first, tensor = next((t for t in tensors if t[1].dim() > 1), tensors[0])  # labels may be handed over before what they are of
    axis, rows = 0, tensor.shape[0]
    by_target = target is not None and target.shape[0] in tensor.shape
    if by_target and target is not None and rows != target.shape[0] and not collated:
        axis, rows = tensor.shape.index(target.shape[0]), target.shape[0]
    axes: list[int | None] = [None] * len(leaves)
    for i, x in tensors:
        fitting = [a for a, size in enumerate(x.shape) if size == rows]
        if i == first or len(fitting) == 1 or (fitting and x.dim() > 2 and fitting[0] == axis):
            axes[i] = axis if axis in fitting else fitting[0]  # a matrix [rows, rows] is a mask or an adjacency matrix
    sequence = tensor.dim() == (3 if tensor.is_floating_point() else 2)
    per_position = not collated and sequence and target is not None and target.dim() >= 2 and target.shape[:2] == tensor.shape[:2]
    return Inputs(
        tuple(leaves), spec, tuple(axes), rows, by_target or collated, first, target is not None and target.shape[0] == rows, per_position
    )


def count_for(inputs: Inputs) -> int:
    """How many samples to look at."""
    others = set()
    for leaf, axis in zip(inputs.leaves, inputs.axes, strict=True):
        if isinstance(leaf, torch.Tensor):
            others |= {s for a, s in enumerate(leaf.shape) if a != axis}
    return next((c for c in COUNTS if c < inputs.rows and c not in others), inputs.rows)


def swaps(rows: int, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For the first `count` samples of a batch: which to replace, and by which others.

    The first and last among them, and one that no reversal maps to another.
    """
    replaced = tuple(sorted({0, count // 2 - 1, count - 1})) if count >= 5 else tuple(sorted({0, count - 1}))
    kept = [i for i in range(count) if i not in replaced]
    spare = list(range(count, rows)) or kept
    return replaced, tuple(spare[i % len(spare)] for i in range(len(replaced)))


def as_rows(output: torch.Tensor, count: int, kept: Sequence[int]) -> list[torch.Tensor]:
    """The output as [count, -1], in float64: in every way that it may hold `count` samples. [] when there is none.

    Of further axes of that size, where samples meet each other, only the entries of the `kept` ones stay.
    """
    x = torch.view_as_real(output) if output.is_complex() else output
    axes = [a for a, size in enumerate(x.shape) if size == count]
    if axes:
        return [_along(x, axis, [a for a in axes if a != axis], kept) for axis in axes]
    if x.dim() and x.shape[0] and x.shape[0] % count == 0:
        inner = x.shape[0] // count
        grouped = x.reshape(count, inner, -1), x.reshape(inner, count, -1).transpose(0, 1)
        return [wide(g.reshape(count, -1)) for g in grouped]
    return []


def _along(x: torch.Tensor, axis: int, others: Sequence[int], kept: Sequence[int]) -> torch.Tensor:
    for a in others:
        x = x.index_select(a, torch.tensor(kept, device=x.device))
    return wide(x.movedim(axis, 0).reshape(x.shape[axis], -1))


@dataclass(frozen=True)
class OutputChange:
    """Root mean squares over entries: of the output, of its change in the replaced samples, and in the other sample that changed most."""

    size: float
    own: float
    others: float

    @property
    def mixed(self) -> float:
        """The change of the others relative to the samples' own; 0 when it drowns in float32's rounding."""
        return self.others / max(self.own, self.others) if self.others > 1e-5 * self.size else 0.0


def change(before: torch.Tensor, after: torch.Tensor, count: int, replaced: Sequence[int]) -> OutputChange | None:
    """What replacing samples changed in an output; None when it has no row for each sample."""
    if before.shape != after.shape:
        return None
    kept = [i for i in range(count) if i not in replaced]
    found = []
    for a, b in zip(as_rows(before, count, kept), as_rows(after, count, kept), strict=True):
        rows = (b - a).square().mean(1).sqrt()
        size = float(a[torch.isfinite(a)].square().mean().sqrt()) if a.numel() else 0.0
        rows = torch.nan_to_num(rows, nan=0.0)
        found.append(OutputChange(size, float(rows[list(replaced)].square().mean().sqrt()), float(rows[kept].max())))
    return min(found, key=lambda c: (c.mixed, -c.own), default=None)  # time of equal length shows no change at all


@contextmanager
def shuffled(model: nn.Module, order: Sequence[int], rows: int, leaf: int | None = None) -> Iterator[None]:
    """While active, the model gets these of its samples, in this leaf of its arguments alone, or in all but labels."""
    names = forward_of(model).positional

    def shuffle(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if leaf is not None:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            leaves[leaf] = _reordered(leaves[leaf], order, rows)
            return pytree.tree_unflatten(leaves, spec)
        new = tuple(a if i < len(names) and names[i] in TARGET_NAMES else _reordered(a, order, rows) for i, a in enumerate(args))
        named = {k: v if k in TARGET_NAMES else _reordered(v, order, rows) for k, v in kwargs.items()}
        return new, named

    with model.register_forward_pre_hook(shuffle, with_kwargs=True):
        yield


def _reordered(value: Any, order: Sequence[int], rows: int) -> Any:
    def one(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or rows not in x.shape[:2]:
            return x
        return x.index_select(list(x.shape[:2]).index(rows), torch.tensor(order, device=x.device))

    return pytree.tree_map(one, value)


T = TypeVar("T")
State = Literal["same", "own", "mixed", "spread"]  # spread: changed, and without an axis for the samples

# Statistics over the batch, on which hand-written normalizations and discriminators rest.
STATISTICS = frozenset(
    "mean var std var_mean std_mean sum nansum norm vector_norm batch_norm native_batch_norm instance_norm max min amax amin aminmax "
    "median nanmedian mode quantile logsumexp".split()
)
RANKS = frozenset("sort argsort topk kthvalue unique unique_consecutive bincount histc nonzero searchsorted bucketize".split())
# Operations that move entries and compute nothing.
MOVES = frozenset(
    "view reshape flatten unflatten permute transpose swapaxes t movedim __getitem__ __get__ roll flip expand repeat tile stack cat chunk "
    "split contiguous squeeze unsqueeze unbind index_select gather as_strided unfold resize_".split()
)
PRODUCTS = frozenset(
    "matmul __matmul__ bmm mm baddbmm addmm einsum linear scaled_dot_product_attention multi_head_attention_forward "
    "_native_multi_head_attention tensordot _transformer_encoder_layer_fwd".split()
)
ROUNDING = 1e-5  # relative change that float32 explains


@dataclass(frozen=True)
class Culprit:
    operation: str
    layer: str
    site: Location | None
    carries: bool  # gradient passes through it
    floating: bool
    shape: tuple[int, ...]  # of its first argument

    @property
    def meant(self) -> Literal["statistics", "relation", "routing"] | None:
        """What such mixing is usually for. Matrix products are judged by `relates`."""
        name = self.operation.rstrip("_")
        if name in STATISTICS:
            return "statistics"
        if self.operation in MOVES or name in MOVES:
            return None
        return "routing" if name in RANKS or not self.floating or not self.carries else None


class Seen(ActivationRecorder, ABC):
    """Sees every operation and the module that it runs in; takes no statistics."""

    def _module_call(self, *details: Any) -> None:
        """Modules are only followed."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if self.recording and self.stack and name not in ("size", "dim", "__setattr__", "register_hook"):
            self.seen_operation(name, (args, kwargs or {}), output)
        return output

    @abstractmethod
    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        """An operation has run: its name, its arguments, its result."""


class Remembering(Seen, Generic[T]):
    """What is kept of the results of every operation, in order."""

    def __init__(self, names: Mapping[int, str], keep: Callable[[torch.Tensor], T]) -> None:
        super().__init__(names)
        self.keep = keep
        self.results: list[tuple[str, list[T]]] = []

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        self.results.append((name, [self.keep(t.detach()) for t in tensors_in(output)]))


class _Comparing(Seen):
    """Holds the results against those of another pass, up to the first in which samples have met."""

    def __init__(
        self, names: Mapping[int, str], before: Sequence[tuple[str, list[torch.Tensor]]], count: int, replaced: Sequence[int]
    ) -> None:
        super().__init__(names)
        self.before, self.count = before, count
        self.kept = [i for i in range(count) if i not in replaced]
        self.index = 0
        self.spread: dict[int, tuple[torch.Tensor, Culprit]] = {}
        self.culprit: Culprit | None = None
        self.lost = False  # the passes took different ways

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        if self.lost or self.culprit is not None:
            return
        expected = self.before[self.index] if self.index < len(self.before) else ("", [])
        self.index += 1
        results = list(tensors_in(output))
        self.lost = expected[0] != name or [t.shape for t in expected[1]] != [t.shape for t in results]
        if self.lost:
            return
        sources = list(tensors_in(given))
        origin = next((self.spread[id(t)][1] for t in sources if id(t) in self.spread), None)
        for old, new in zip(expected[1], results, strict=True):
            state = self._state(old, new)
            if state in ("mixed", "spread"):
                blamed = origin or self._blame(name, sources, new)
                if state == "mixed":
                    self.culprit = blamed
                    return
                self.spread[id(new)] = (new, blamed)

    def _blame(self, name: str, sources: Sequence[torch.Tensor], result: torch.Tensor) -> Culprit:
        shape = tuple(sources[0].shape) if sources else ()
        floating = result.is_floating_point() or result.is_complex()
        return Culprit(name, self.module_name, location_of_frame(caller()), result.requires_grad, floating, shape)

    def _state(self, old: torch.Tensor, new: torch.Tensor) -> State:
        a, b = (torch.nan_to_num(wide(t.detach())) if not t.is_complex() else wide(torch.view_as_real(t.detach())) for t in (old, new))
        size = float(a.abs().max()) if a.numel() else 0.0
        differs = (a - b).abs() > ROUNDING * max(size, 1e-30)
        if not bool(differs.any()):
            return "same"
        axes = [k for k, s in enumerate(a.shape) if s == self.count]
        if len(axes) > 1:
            return "own"  # samples against samples: what becomes of that decides
        if axes:
            others = differs.index_select(axes[0], torch.tensor(self.kept, device=a.device))
            return "mixed" if bool(others.any()) else "own"
        if a.dim() and a.shape[0] and a.shape[0] % self.count == 0:
            inner = a.shape[0] // self.count
            by_sample = differs.reshape(self.count, inner, -1)[self.kept], differs.reshape(inner, self.count, -1)[:, self.kept]
            return "mixed" if all(bool(d.any()) for d in by_sample) else "own"
        return "spread"


def culprit(model: nn.Module, before: Any, after: Any, count: int, replaced: Sequence[int], dice: Any) -> Culprit | None:
    """The first operation whose result for a sample depends on others, from the arguments of two passes (`rows.Inputs`)."""
    names = {id(m): name for name, m in model.named_modules()}
    remembering = Remembering(names, torch.clone)
    before, after = before.requiring_grad(), after.requiring_grad()
    with torch.enable_grad():
        dice.throw()
        with remembering:
            before.run(model)
        comparing = _Comparing(names, remembering.results, count, replaced)
        dice.throw()
        with comparing:
            after.run(model)
    return comparing.culprit


def relates(found: Culprit, count: int) -> bool:
    """Whether a product of matrices relates whole samples to each other, rather than positions of other samples by mistake.

    It is a mistake if there are also positions to work on: [samples, positions, features] where [positions, samples, features]
    is expected.
    """
    if found.operation not in PRODUCTS:
        return False
    inner = [s for s in found.shape[:-1] if s != count]
    return all(s == 1 for s in inner)
