"""Numbers without gradient that a loss is to learn from, and that say nothing: differences of equals, losses of no weight, new noise.

What the loop computes before the loss (rewards, advantages, a teacher's own loss) is not computed again with the loss: it is seen here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gradcheck.instrument.loss_calls import LOSSES
from gradcheck.types.location import Location
from gradcheck.workload.tensors import tensors_in

EQUAL = 1e-6  # of the larger number: rounding of float32, also that of a mean over a few
MOST = 1 << 16  # entries of a difference that is looked at
_DIFFERENCES = frozenset("sub __sub__ __rsub__ subtract rsub".split())
PRODUCTS = frozenset("mul __mul__ __rmul__ multiply".split())
# What makes nothing of nothing.
_KEEPS = (
    PRODUCTS
    | frozenset("div __truediv__ true_divide divide __div__ neg __neg__ sum mean nansum nanmean nan_to_num view reshape flatten".split())
    | frozenset("squeeze unsqueeze expand repeat repeat_interleave __getitem__ index_select gather cat stack clone detach to cpu".split())
    | frozenset("float double contiguous chunk split".split())
)


_DRAWS = frozenset("randn randn_like normal".split())
_MOVES = frozenset("view reshape flatten squeeze unsqueeze clone detach to cpu float double contiguous".split())


@dataclass(frozen=True)
class Mark:
    kind: Literal["equals", "no-weights", "drawn"]  # drawn: noise that nothing was made of yet
    operation: str
    site: Location | None
    low: float = 0.0  # of the numbers that are equal
    high: float = 0.0


class Silent:
    """`look` at every call in its order, `note` what stands for a tensor from now on; the marks of records are kept."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[weakref.ref[torch.Tensor], Mark]] = {}
        self._records: dict[int, tuple[Any, Mark]] = {}
        self.mixed: set[tuple[int, ...]] = set()  # shapes of noise that something was made of

    def look(self, name: str, function: Any, args: Any, output: Any, place: Callable[[], Location | None]) -> None:
        if self._tensors and name not in _MOVES and function not in LOSSES:
            self._use_noise(args)
        if not isinstance(output, torch.Tensor) and name not in ("chunk", "split"):
            return
        results = [t for t in tensors_in(output, 1) if t.is_floating_point() and not t.requires_grad]
        if not results:
            return
        mark = None
        if function in LOSSES and results[0].numel() == 1:
            mark = Mark("no-weights", LOSSES[function], place())
        elif name in _DIFFERENCES:
            mark = self._equals(name, args, results[0], place)
        elif name in _DRAWS:
            mark = Mark("drawn", name, place())
        if mark is None and name in _KEEPS and self._tensors:
            known = (m for t in tensors_in(args, 2) if (m := self._of(t)) is not None)
            mark = next((m for m in known if m.kind != "drawn" or name in _MOVES), None)
        for tensor in results if mark is not None else ():
            self._tensors[id(tensor)] = weakref.ref(tensor), mark  # type: ignore[assignment]

    def _use_noise(self, args: Any) -> None:
        for tensor in tensors_in(args, 2):
            mark = self._of(tensor)
            if mark is not None and mark.kind == "drawn":
                self.mixed.add(tuple(tensor.shape))
                del self._tensors[id(tensor)]

    def _equals(self, name: str, args: Sequence[Any], result: torch.Tensor, place: Callable[[], Location | None]) -> Mark | None:
        pair = [a for a in args[:2] if isinstance(a, torch.Tensor)]
        if len(pair) != 2 or not result.numel() or result.numel() > MOST or any(t.requires_grad for t in pair):
            return None
        with torch._C.DisableTorchFunction(), torch.no_grad():
            low, high = torch.aminmax(pair[0]) if pair[0].numel() else (torch.zeros((), device="cpu"), torch.zeros((), device="cpu"))
            size = max(abs(float(low)), abs(float(high)))
            if not bool((result.abs() <= EQUAL * size).all()):
                return None
        return Mark("equals", name.strip("_"), place(), float(low), float(high))

    def note(self, record: Any, tensor: torch.Tensor) -> None:
        mark = self._of(tensor)
        if mark is not None:
            self._records.setdefault(id(record), (record, mark))

    def of(self, record: Any) -> Mark | None:
        entry = self._records.get(id(record))
        return entry[1] if entry is not None else None

    def _of(self, tensor: torch.Tensor) -> Mark | None:
        entry = self._tensors.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None
