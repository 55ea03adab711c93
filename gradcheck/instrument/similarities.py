"""Products of normalised matrices (cosines, or a wrong axis), and axes that `view` or `reshape` keeps in size and not in content."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.types.location import Location
from gradcheck.types.losses import Scramble
from gradcheck.types.measurement import Similarity
from gradcheck.workload.tensors import IdentityTable

_NORMS = frozenset(("norm", "linalg_norm", "linalg_vector_norm", "vector_norm"))
_DIVISIONS = frozenset(("div", "__truediv__", "true_divide", "divide"))
_TURNS = frozenset(("T", "mT", "t"))
_PARTS = frozenset(("chunk", "split"))
_PRODUCTS = frozenset(("matmul", "__matmul__", "mm"))


@dataclass(frozen=True)
class _Mark:
    """A matrix whose vectors along an axis have length 1; with `of`, it holds the lengths of that matrix's vectors instead."""

    axis: int
    site: Location | None
    first: bool  # it was the first axis, that of the samples, when they were normalised
    of: int | None = None


class Similarities:
    """`look` at every call in its order."""

    def __init__(self) -> None:
        self.found: list[Similarity] = []
        self.cosines: list[tuple[Any, Location | None]] = []  # autograd nodes of products that are, and where
        self._marks: IdentityTable[torch.Tensor, _Mark] = IdentityTable()

    def look(self, function: Any, args: Any, kwargs: Any, output: Any, site: Callable[[], Location | None]) -> None:
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", "")
        if function is F.normalize or name in _NORMS:
            self._normalised(function is F.normalize, args, kwargs, output, site)
        elif function is F.cosine_similarity and output.requires_grad:
            self.cosines.append((output.grad_fn, site()))
        elif self._marks and (name in _PRODUCTS or function is F.linear):
            self._product(args, output, 1 if function is F.linear else 0, site)
        elif self._marks and (name in _DIVISIONS or name in _TURNS or name in _PARTS):
            self._passed_on(name, args, output, site)

    def _normalised(self, whole: bool, args: Any, kwargs: Any, output: Any, site: Callable[[], Location | None]) -> None:
        given = args[0]
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 1 if whole else None)
        if isinstance(dim, int) and isinstance(given, torch.Tensor) and given.dim() == 2 and output.requires_grad:
            self._marks[output] = _Mark(dim % 2, site(), dim % 2 == 0, None if whole else id(given))

    def _passed_on(self, name: str, args: Any, output: Any, site: Callable[[], Location | None]) -> None:
        if name in _DIVISIONS:
            length = self._marks.get(args[1]) if len(args) > 1 else None
            if length is not None and length.of == id(args[0]):
                self._marks[output] = _Mark(length.axis, site(), length.first)
            return
        mark = self._marks.get(args[0])
        if mark is None or mark.of is not None:
            return
        for part in output if name in _PARTS else (output,):
            self._marks[part] = _Mark(1 - mark.axis, mark.site, mark.first) if name in _TURNS else mark

    def _product(self, args: Any, output: Any, axis: int, site: Callable[[], Location | None]) -> None:
        """Rows are multiplied with columns: the left factor should be normalised over axis 1, the right one over `axis`."""
        left, right = (self._marks.get(a) for a in args[:2])
        if left is None or right is None or left.of is not None or right.of is not None:
            return
        if left.axis == 1 and right.axis == axis:
            self.cosines.append((output.grad_fn, site()))
        rows, width = args[0].shape
        if left.first and right.first and left.axis == 0 and right.axis == 1 and rows == args[1].shape[1]:
            self.found.append(Similarity(left.site, (rows, width), tuple(output.shape)))


RESHAPES = frozenset(("view", "reshape"))


class Scrambles:
    """`look` at every call; one record for each place."""

    def __init__(self) -> None:
        self.found: dict[Location, Scramble] = {}

    def look(self, name: str, args: Any, output: Any, place: Callable[[], Location | None]) -> None:
        given = args[0] if args else None
        if name not in RESHAPES or not isinstance(given, torch.Tensor) or not given.is_floating_point():
            return
        before, after = tuple(given.shape), tuple(output.shape)
        axis = scrambled(before, after)
        site = place() if axis is not None else None
        if axis is not None and site is not None and site.detail is None:  # in code of the user
            self.found.setdefault(site, Scramble(name, site, before, after, axis))


def scrambled(before: Sequence[int], after: Sequence[int]) -> int | None:
    """The axis, not that of the samples, whose size is kept once and whose entries are not.

    Only where the cuts fit no splitting and joining of axes: of [8, 8, 24] as [24, 64] none of the new rows is made of whole old ones.
    Sizes that differ by 1 and change places are the shift of relative positions (Dai et al. 2019, Transformer-XL), which is meant.
    """
    if min(len(before), len(after)) < 3 or before[0] != after[0]:
        return None
    bounds = sorted({*accumulate(before[1:], mul), *accumulate(after[1:], mul)})
    if bounds[0] < 1 or all(b % a == 0 for a, b in pairwise(bounds)):
        return None
    for axis, size in enumerate(before[1:], 1):
        if size < 2 or before.count(size) > 1 or after.count(size) != 1:
            continue
        place = after.index(size)
        shifted = any(abs(size - other) == 1 and other in after[1:] for other in before[1:])
        if math.prod(before[axis + 1 :]) != math.prod(after[place + 1 :]) and not shifted:
            return axis
    return None
