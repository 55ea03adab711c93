"""Which axis of the recorded tensors holds the samples, and how many there are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradcheck.capture.nodes import Constant, Node, Ref
from gradcheck.capture.structures import is_plain
from gradcheck.instrument.loader_batches import shape_of

_RESHAPES = frozenset(("view", "reshape", "expand"))


def resized(name: str, args: tuple[Any, ...], size: int, count: int) -> tuple[Any, ...]:
    """The arguments of the function `name`, recorded with `size` samples, for `count` samples."""
    if name not in _RESHAPES or size == count:
        return args
    given = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    if not given or not all(isinstance(x, int) for x in given):
        return args
    shape = list(given)
    return (args[0], *(_expanded(shape, size, count) if name == "expand" else _reshaped(args[0], shape, size, count)))


def _expanded(shape: list[int], size: int, count: int) -> list[int]:
    return [shape[0] // size * count if shape[0] > 0 and shape[0] % size == 0 else shape[0], *shape[1:]]


def _reshaped(tensor: torch.Tensor, shape: list[int], size: int, count: int) -> list[int]:
    """Numbers that are multiples of `size`, and of its square, are scaled until the shape holds the tensor's entries.

    Trailing numbers that are the tensor's own axes are its features. The number of samples itself comes before its multiples.
    """
    leading = range(len(shape) - _own_axes(tensor.shape, shape))
    counting = sorted((i for i in leading if shape[i] > 0 and shape[i] % size == 0), key=lambda i: (shape[i] != size, i))
    if -1 in shape:  # it takes the samples, unless a number before it or another one is theirs
        return [n // size * count if i in counting[:1] and (i == 0 or n == size) else n for i, n in enumerate(shape)]
    recorded = list(shape)
    for power in (1, 2):
        for i in counting:
            if math.prod(shape) != tensor.numel() and recorded[i] % size**power == 0:
                shape[i] = recorded[i] // size**power * count**power
    return shape


def _own_axes(axes: Sequence[int], shape: Sequence[int]) -> int:
    """How many numbers at the end are the tensor's axes as they are."""
    pairs = list(zip(reversed(axes), reversed(shape), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def counter(tensor: torch.Tensor, size: int) -> Callable[[int], torch.Tensor] | None:
    """How a tensor that only counts `size` samples, or pairs of them, looks for another number; None when it holds anything else."""
    if size < 2 or not tensor.dim():
        return None
    with torch.no_grad():
        if tensor.shape == (size,) and not (tensor.is_floating_point() or tensor.dtype == torch.bool):
            same = torch.equal(tensor, torch.arange(size, dtype=tensor.dtype, device=tensor.device))
            return functools.partial(torch.arange, dtype=tensor.dtype, device=tensor.device) if same else None
        if tensor.shape == (size, size):
            make = functools.partial(_pairs, tensor[0, 0], tensor[0, 1])
            return make if torch.equal(tensor, make(size)) else None
    return None


def _pairs(own: torch.Tensor, other: torch.Tensor, count: int) -> torch.Tensor:
    """A matrix with one value for each sample with itself and another one for all other pairs."""
    return torch.where(torch.eye(count, dtype=torch.bool, device=own.device), own, other)


_SEQUENCES = (nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Layout:
    size: int  # samples in the batch
    axis: int = 0  # of the samples in what the first module is called with

    @classmethod
    def of(cls, nodes: Sequence[Node], axis: int = 0) -> Layout:
        given = first_given(nodes)
        stacked = _stacked(given) if given is not None else None
        if stacked is not None:
            return cls(stacked.value.shape[0])
        for node, tensor in _handed_in(nodes):
            single = node.call is None and tensor.dim() == 1 and tensor.is_floating_point()  # one sample without a batch axis
            return cls(1) if single else cls(shape_of(tensor)[axis if is_plain(tensor) else 0], axis)
        return cls(1)

    def axis_of(self, tensor: torch.Tensor) -> int | None:
        """The axis of the samples in a tensor; None when it holds none, or its rows cannot be taken one by one."""
        if not is_plain(tensor):
            return None
        if self.size == 1:
            return 0 if tensor.dim() > 1 else None
        axes = (self.axis, 0) if tensor.dim() > 1 else (0,)
        return next((a for a in axes if tensor.dim() > a and tensor.shape[a] == self.size), None)

    @staticmethod
    def behind(constant: Constant) -> bool:
        """Whether its samples are known to lie on the first axis of a constant that it was made from, and not on its own."""
        return not constant.chosen and constant.origin is not None and _stacked(constant) is not None


def first_given(nodes: Sequence[Node]) -> Constant | None:
    """The first constant that a module is called with, or, without a module, a function, best one whose rows are known to be samples."""
    given = [(n.call is not None, x) for n in nodes for x in n.inputs() if isinstance(x, Constant) and x.value.dim()]
    return min(given, key=lambda g: (g[0], g[0] and _stacked(g[1]) is None), default=(True, None))[1]


def _handed_in(nodes: Sequence[Node]) -> Iterator[tuple[Node, torch.Tensor]]:
    """Tensors that none of the calls made, with the call that takes each. Modules come first: what they are called with is the data."""
    made = {id(n) for n in nodes}
    for node in sorted(nodes, key=lambda n: n.call is not None):
        for x in node.inputs():
            kept = x.node.values.get(x.index) if isinstance(x, Ref) and id(x.node) not in made else None
            tensor = x.value if isinstance(x, Constant) else kept
            if tensor is not None and tensor.dim():
                yield node, tensor


def _stacked(constant: Constant) -> Constant | None:
    """The constant that it was made from, or itself, whose rows are known to be samples."""
    found: Any = constant
    while isinstance(found, Constant):
        if found.chosen:
            return found
        found = found.origin.args[0] if found.origin is not None else None
    return None


@contextmanager
def time_first_calls() -> Iterator[list[tuple[int, int]]]:
    """The first two axes of what layers are called with that take time first, while active."""
    shapes: list[tuple[int, int]] = []

    def look(module: nn.Module, args: Any) -> None:
        if isinstance(module, _SEQUENCES) and not module.batch_first and args and isinstance(args[0], torch.Tensor) and args[0].dim() == 3:
            shapes.append((args[0].shape[0], args[0].shape[1]))

    with register_module_forward_pre_hook(look):
        yield shapes


def samples_axis(nodes: Sequence[Node], calls: Sequence[tuple[int, int]]) -> int:
    """0, or 1 where the samples are known to lie there: [time, samples, ...] and [views, samples, ...].

    That is known if the data go into layers that take time first, and nothing says that samples are on the first axis (rows that were
    picked or stacked one by one, a target with as many rows); also if labels have as many rows as the second axis, and nothing else has as
    many as the first. `calls`: of `time_first_calls`.
    """
    given = first_given(nodes)
    if given is None or not is_plain(given.value) or given.value.dim() < 2 or _stacked(given) is not None:
        return 0
    first, second = given.value.shape[:2]
    if first == second:
        return 0
    constants = (x.value for n in nodes for x in n.inputs() if isinstance(x, Constant) and x is not given)
    others = [t for t in constants if is_plain(t) and t.dim()]
    rows = {t.shape[0] for t in others if t.dim() == 1 or tuple(t.shape[:2]) != (first, second)}
    if (first, second) in calls:
        return int(second in rows or first not in rows)
    return int(given.value.dim() > 2 and first not in rows and any(_labels(t, second) for t in others))


def _labels(tensor: torch.Tensor, count: int) -> bool:
    """Whether a tensor holds an integer for each of so many samples, and does not just count them."""
    whole = tensor.dim() == 1 and not (tensor.is_floating_point() or tensor.dtype == torch.bool)
    return whole and tensor.shape[0] == count and counter(tensor, count) is None
