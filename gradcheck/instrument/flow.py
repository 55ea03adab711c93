"""Which tensors were computed from the results of which calls, whether gradient goes along or not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch

from gradcheck.workload.identity_table import IdentityTable
from gradcheck.workload.tensors import tensors_in

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
