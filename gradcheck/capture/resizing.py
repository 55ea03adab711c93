"""A recorded call for another number of samples than it was recorded with: the numbers and tensors in it that count them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

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
