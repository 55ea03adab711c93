"""Marks on tensors, and on what the tape keeps of them."""

from typing import Any, Generic, TypeVar

import torch

from gradcheck.workload.identity_table import IdentityTable

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

    def of_record(self, record: Any) -> M | None:
        entry = self._records.get(id(record))
        return entry[1] if entry is not None else None
