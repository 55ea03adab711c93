"""Marks on tensors and on what the tape keeps of them; and where non-finite numbers first appeared in what is computed without gradient."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch

from gradcheck.instrument.domain import reason
from gradcheck.measure.non_finite import FILLS
from gradcheck.types.location import Location
from gradcheck.types.training import NonFinite
from gradcheck.workload.tensors import IdentityTable, tensors_in

_MOVES = frozenset("view reshape flatten squeeze unsqueeze expand __getitem__ detach transpose permute t contiguous clone".split())
M = TypeVar("M")


class Marks(Generic[M]):
    """A tensor loses its mark when it is gone; a record of the tape, for good, has that of the tensor it stands for."""

    def __init__(self) -> None:
        self.tensors: IdentityTable[torch.Tensor, M] = IdentityTable()
        self._records: dict[int, tuple[Any, M]] = {}

    def note(self, record: Any, tensor: torch.Tensor) -> None:
        """`record` stands for the tensor from now on."""
        mark = self.tensors.get(tensor)
        if mark is not None:
            self._records.setdefault(id(record), (record, mark))

    @property
    def marked(self) -> bool:
        """Whether any record has a mark."""
        return bool(self._records)

    def of_record(self, record: Any) -> M | None:
        entry = self._records.get(id(record))
        return entry[1] if entry is not None else None


class Births(Marks[NonFinite]):
    """`look` at every call in order. A result computed from a non-finite number is traced back to where that number first appeared."""

    def look(self, name: str, args: Any, kwargs: Any, output: Any, place: Callable[[], Location | None]) -> None:
        if name in _MOVES and not self.tensors:
            return
        with torch._C.DisableTorchFunction():
            results = [t for t in tensors_in(output, 2) if t.is_floating_point() and not t.requires_grad and not _finite(t)]
            if not results:
                return
            given = list(tensors_in((args, kwargs), 2))
            birth = next((known for t in given if (known := self.tensors.get(t)) is not None), None)
            if birth is None and given and name not in FILLS and all(map(_finite, given)):
                kind = "nan" if any(bool(t.isnan().any()) for t in results) else "inf"
                birth = NonFinite("loop", name, "", place(), 0, kind, reason=reason(name, args, kwargs))  # type: ignore[arg-type]
            if birth is not None:
                for tensor in results:
                    self.tensors[tensor] = birth

    def of_all(self, records: Iterable[Any]) -> list[NonFinite]:
        return list(dict.fromkeys(birth for r in records if (birth := self.of_record(r)) is not None))


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        return True
    try:
        if tensor.dtype.itemsize > 1 and math.isfinite(tensor.detach().sum()):  # a quarter of the time; finite numbers may overflow
            return True
        return bool(torch.isfinite(tensor).all())
    except RuntimeError:  # it has no numbers to look at: on the meta device, or inside vmap
        return True
