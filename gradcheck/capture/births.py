"""Where numbers that are not finite came into being, in what the loop computes without gradient."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from gradcheck.instrument.domain import reason
from gradcheck.measure.non_finite import FILLS
from gradcheck.types.location import Location
from gradcheck.types.training import NonFinite
from gradcheck.workload.tensors import tensors_in


class Births:
    """`look` at every call in its order. What is computed from a number that is not finite goes back to that number's birth."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[weakref.ref[torch.Tensor], NonFinite]] = {}
        self._records: dict[int, tuple[Any, NonFinite]] = {}  # by id of what the tape keeps of a tensor

    def look(self, name: str, args: Any, kwargs: Any, output: Any, place: Callable[[], Location | None]) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            results = [t for t in tensors_in(output, 2) if t.is_floating_point() and not t.requires_grad and not _finite(t)]
            if not results:
                return
            given = list(tensors_in((args, kwargs), 2))
            birth = next((known for t in given if (known := self._of(t)) is not None), None)
            if birth is None and given and name not in FILLS and all(map(_finite, given)):
                kind = "nan" if any(bool(t.isnan().any()) for t in results) else "inf"
                birth = NonFinite("loop", name, "", place(), 0, kind, reason=reason(name, args, kwargs))  # type: ignore[arg-type]
            if birth is not None:
                for tensor in results:
                    self._tensors[id(tensor)] = weakref.ref(tensor), birth

    def note(self, record: Any, tensor: torch.Tensor) -> None:
        """`record` stands for the tensor from now on."""
        birth = self._of(tensor)
        if birth is not None:
            self._records.setdefault(id(record), (record, birth))

    def of(self, records: Iterable[Any]) -> list[NonFinite]:
        found = (self._records.get(id(r)) for r in records)
        return list(dict.fromkeys(entry[1] for entry in found if entry is not None))

    def _of(self, tensor: torch.Tensor) -> NonFinite | None:
        entry = self._tensors.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        return True
    try:
        return bool(torch.isfinite(tensor).all())
    except RuntimeError:  # it has no numbers to look at: on the meta device, or inside vmap
        return True
