"""Numbers without gradient that a loss should learn from but that say nothing: differences of equals, losses without weights, new noise.

What the loop computes before the loss (rewards, advantages, a teacher's own loss) is not computed again with the loss: it is seen here.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gradcheck.capture.births import Marks
from gradcheck.capture.events import BackwardPass
from gradcheck.capture.nodes import Constant, Node, Ref, nodes_behind
from gradcheck.instrument.loss_calls import LOSSES
from gradcheck.types.location import Location
from gradcheck.types.loop import SilentTerm
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


PASSES = 8  # that have to agree
_SUMS = frozenset("add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__".split())


def silent_terms(silent: Silent, passes: Iterable[BackwardPass]) -> tuple[SilentTerm, ...]:
    """Parts that there is nothing to learn from in any pass: factors that vanish, losses without weights, new noise as target."""
    taped = [p for p in passes if p.ref is not None]
    if len(taped) < PASSES:
        return ()
    found: dict[tuple[str, Location | None], list[Mark]] = {}
    for one in taped:
        nodes = list(nodes_behind(one.nodes))
        read = {id(c) for n in nodes if n.call not in LOSSES for c in n.constants()}  # by the model
        marks = {(m.kind, m.site): m for n in nodes for m in _marks(silent, n, read)}
        for key, mark in marks.items():
            found.setdefault(key, []).append(mark)
    return tuple(_term(marks, len(taped)) for marks in found.values() if len(marks) == len(taped))


def _marks(silent: Silent, node: Node, read: Set[int]) -> Iterable[Mark]:
    name = getattr(node.call, "__name__", "")
    if node.grad and node.call in LOSSES:
        unread = (c for c in node.constants() if id(c) not in read)
        drawn = ((c, m) for c in unread if (m := silent.of_record(c)) is not None and m.kind == "drawn")
        yield from (m for c, m in drawn if tuple(c.value.shape) in silent.mixed)
    if not node.grad or not (name in PRODUCTS or name in _SUMS):
        return
    for value in node.inputs():
        mark = silent.of_record(value.node if isinstance(value, Ref) else value) if isinstance(value, (Constant, Ref)) else None
        if mark is not None and mark.kind != "drawn" and ((mark.kind == "equals") == (name in PRODUCTS)) and not _carries(value):
            yield mark


def _carries(value: Constant | Ref) -> bool:
    return isinstance(value, Ref) and value.index not in value.node.values


def _term(marks: Sequence[Mark], passes: int) -> SilentTerm:
    low, high = min(m.low for m in marks), max(m.high for m in marks)
    return SilentTerm(marks[0].kind, marks[0].operation, marks[0].site, passes, low, high)
