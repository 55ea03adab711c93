"""Where the rows of the loop's tensors come from: what they were cut out of, and what gave them other axes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gradcheck.capture.structures import is_plain
from gradcheck.workload.tensors import IdentityTable

_SOURCES = frozenset(("__getitem__", "index_select", "narrow"))
# What keeps every entry of a tensor, in other axes or of another dtype.
_SAME_ENTRIES = frozenset(
    "view reshape flatten unflatten permute transpose swapaxes movedim t T mT contiguous clone detach to type long int float double half "
    "bfloat16 bool cpu cuda squeeze unsqueeze".split()
)
_TURNS = frozenset("permute transpose swapaxes movedim t T".split())


@dataclass(frozen=True, eq=False)
class Moved:
    """How a constant came from another one that holds the same entries."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    version: int  # of the other one
    rows: bool  # the first axis is another one than some constant's before it


class Rows:
    """`follow` the calls that make constants, in their order."""

    def __init__(self) -> None:
        self._rows: IdentityTable[torch.Tensor, tuple[int, bool]] = IdentityTable()
        self._moved: IdentityTable[torch.Tensor, Moved] = IdentityTable()

    def note(self, tensor: torch.Tensor, rows: int, *, chosen: bool) -> None:
        """The first axis of `tensor` holds some of `rows` entries; `chosen`: one by one."""
        self._rows[tensor] = rows, chosen

    def of(self, tensor: torch.Tensor) -> tuple[int | None, bool]:
        """Entries of the tensor that it was cut out of, where that is known, and whether its rows were picked one by one."""
        return self._rows.get(tensor) or (_base_rows(tensor), False)

    def way(self, tensor: torch.Tensor) -> Moved | None:
        return self._moved.get(tensor)

    def follow(self, name: str, function: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        source = args[0]
        whole = name == "__getitem__" and _keeps_rows(args[1])
        if name in _SOURCES and not whole and not _looks_up(name, source, args[1:]):
            self.note(output, source.shape[0], chosen=_picks(name, args, kwargs))
        elif (whole or name in _SAME_ENTRIES) and output is not source:
            before = self.way(source)
            rows = output.shape[:1] != source.shape[:1] or name in _TURNS
            self._moved[output] = Moved(function, args, kwargs, source._version, rows or (before is not None and before.rows))
            known = self._rows.get(source)
            if known is not None and not rows:
                self._rows[output] = known


def _keeps_rows(index: Any) -> bool:
    first = index[0] if isinstance(index, tuple) and index else index
    return first is Ellipsis or (isinstance(first, slice) and first == slice(None))


def _looks_up(name: str, source: torch.Tensor, index: Any) -> bool:
    """Whether a list of numbers translates others, as it gives nodes of a graph new ones. Stretches of it are samples."""
    table = name == "__getitem__" and source.dim() == 1 and isinstance(index[0], torch.Tensor) and index[0].dim() > 1
    return table and not index[0].is_floating_point() and bool((index[0].diff() != 1).any())


def _picks(name: str, args: Any, kwargs: Any) -> bool:
    """Whether rows are picked one by one, rather than cut out as a stretch."""
    if name == "__getitem__":
        index = args[1]
        return isinstance(index, list) or (hasattr(index, "shape") and len(index.shape) == 1)
    return name == "index_select" and (args[1] if len(args) > 1 else kwargs.get("dim")) == 0


def _base_rows(tensor: torch.Tensor) -> int | None:
    """Rows of the tensor that this one is a slice of."""
    base = tensor._base if is_plain(tensor) else None
    if base is None or not tensor.dim() or not base.dim() or base.shape[1:] != tensor.shape[1:]:
        return None
    return base.shape[0]
