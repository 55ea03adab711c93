"""Products of matrices that are normalised: cosines, which lie between -1 and 1, or none, where another axis was normalised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.types.location import Location
from gradcheck.types.measurement import Similarity
from gradcheck.workload.identity_table import IdentityTable

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
