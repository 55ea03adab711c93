"""Numbers without gradient that a loss should learn from but that say nothing: differences of equals, losses without weights, new noise.

What the loop computes before the loss (rewards, advantages, a teacher's own loss) is not computed again with the loss: it is seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gradcheck.capture.marks import Marks
from gradcheck.instrument.loss_calls import LOSSES
from gradcheck.types.location import Location
from gradcheck.workload.tensors import tensors_in

EQUAL = 1e-6  # of the larger number: rounding of float32, also that of a mean over a few
MOST = 1 << 16  # entries of a difference that is looked at
_DIFFERENCES = frozenset("sub __sub__ __rsub__ subtract rsub".split())
PRODUCTS = frozenset("mul __mul__ __rmul__ multiply".split())
# Functions that turn zeros into zeros.
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


class Silent(Marks[Mark]):
    """`look` at every call in its order, `note` what stands for a tensor from now on; the marks of records are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: set[tuple[int, ...]] = set()  # shapes of noise that something was made of

    def look(self, name: str, function: Any, args: Any, output: Any, place: Callable[[], Location | None]) -> None:
        if self.tensors and name not in _MOVES and function not in LOSSES:
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
        if mark is None and name in _KEEPS and self.tensors:
            known = (m for t in tensors_in(args, 2) if (m := self.tensors.get(t)) is not None)
            mark = next((m for m in known if m.kind != "drawn" or name in _MOVES), None)
        if mark is not None:
            for tensor in results:
                self.tensors[tensor] = mark

    def _use_noise(self, args: Any) -> None:
        for tensor in tensors_in(args, 2):
            mark = self.tensors.get(tensor)
            if mark is not None and mark.kind == "drawn":
                self.mixed.add(tuple(tensor.shape))
                self.tensors.pop(tensor)

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
