"""Numbers without gradient that a loss should learn from but that say nothing: differences of equals, losses without weights, new noise.

What the loop computes before the loss (rewards, advantages, a teacher's own loss) is not computed again with the loss: it is seen here.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
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
_CUTTING = frozenset("detach __get__ cpu to float double".split())
_DRAWS = frozenset("randn randn_like normal".split())
_MOVES = frozenset("view reshape flatten squeeze unsqueeze clone detach to cpu float double contiguous".split())


@dataclass(frozen=True)
class Mark:
    kind: Literal["equals", "no-weights", "drawn", "cut"]  # drawn: noise, yet unused; cut: made of derivatives without graph
    operation: str
    site: Location | None
    low: float = 0.0  # of the numbers that are equal
    high: float = 0.0
    frozen: bool = False  # made of weights alone that are not trained


@dataclass(frozen=True)
class ReadNumber:
    """A number that was taken out of a result with gradient."""

    serial: int
    value: float
    source: Ref
    site: Location | None


class Silent(Marks[Mark]):
    """`look` at every call in its order, `note` what stands for a tensor from now on; the marks of records are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: set[tuple[int, ...]] = set()  # shapes of noise that something was made of
        self.reads: list[ReadNumber] = []

    def read(self, node: Node, number: Any, place: Callable[[], Location | None]) -> None:
        """Notes what a call such as `item()` hands to Python, if it carries gradient or was just cut off."""
        source = node.args[0] if node.args else None
        while isinstance(source, Ref) and not _carries(source) and getattr(source.node.call, "__name__", "") in _CUTTING:
            source = source.node.args[0]
        if isinstance(number, float) and isinstance(source, Ref) and _carries(source) and len(self.reads) < MOST:
            self.reads.append(ReadNumber(node.serial, number, source, place()))

    def derive(self, derivatives: Iterable[Any], place: Location | None) -> None:
        """Notes what `torch.autograd.grad` gives without `create_graph`."""
        for tensor in derivatives:
            if isinstance(tensor, torch.Tensor):
                self.tensors[tensor] = Mark("cut", "torch.autograd.grad", place)

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
        elif (given := list(tensors_in(args, 2))) and all(self._is_frozen(t) for t in given):
            mark = Mark("no-weights", name.strip("_"), None, frozen=True)
        if mark is None and self.tensors:
            known = (m for t in tensors_in(args, 2) if (m := self.tensors.get(t)) is not None)
            mark = next((m for m in known if m.kind == "cut" or (name in _KEEPS and (m.kind != "drawn" or name in _MOVES))), None)
        if mark is not None:
            for tensor in results:
                self.tensors[tensor] = mark

    def _is_frozen(self, tensor: torch.Tensor) -> bool:
        if isinstance(tensor, torch.nn.Parameter):
            return not tensor.requires_grad
        mark = self.tensors.get(tensor)
        return mark is not None and mark.frozen

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
_SCALES = PRODUCTS | frozenset("div __truediv__ true_divide divide __div__ neg __neg__ mean sum squeeze view reshape".split())
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
    terms = [_term(marks, len(taped)) for marks in found.values() if len(marks) == len(taped)]
    return (*terms, *(SilentTerm("cut", name, site, len(taped)) for name, site in _cut_terms(silent, taped)))


FITTED = 1e-3  # residual of a straight line, relative to the range: float32 leaves 1e-5 where numbers vary by a hundredth of themselves


def _cut_terms(silent: Silent, passes: Sequence[BackwardPass]) -> Iterable[tuple[str, Location | None]]:
    """What cut off numbers that are added to the loss in every pass, and its place.

    Derivatives without graph; and numbers that were read, times a factor and shifted, where they are no part of the loss otherwise.
    """
    added: dict[tuple[Location | None, int], list[float]] = {}
    reads: dict[Location | None, list[float]] = {}
    derived: list[set[tuple[str, Location | None]]] = []
    since = -1
    for one in passes if silent.reads or silent.marked else ():
        assert one.ref is not None
        values, end = _added(one.ref), one.ref.node.serial
        for key, value in values.items():
            added.setdefault(key, []).append(float(value.value) if isinstance(value, Constant) else value)
        marks = (silent.of_record(value) for value in values.values())
        derived.append({(m.operation, m.site) for m in marks if m is not None and m.kind == "cut"})
        used = {(id(x.node), x.index) for n in nodes_behind(one.nodes) for x in n.inputs() if isinstance(x, Ref)}
        now = {r.site: r for r in silent.reads if since < r.serial < end and (id(r.source.node), r.source.index) not in used}
        for site, read in now.items():
            reads.setdefault(site, []).append(read.value)
        since = end
    every = [values for values in added.values() if len(values) == len(passes)]
    read_terms = [site for site, x in reads.items() if len(x) == len(passes) and any(_on_a_line(x, y) for y in every)]
    return [*(set.intersection(*derived) if derived else ()), *(("item", site) for site in read_terms)]


def _added(end: Ref) -> dict[tuple[Location | None, int], Constant | float]:
    """The numbers that are added on the way from a loss, by their places."""
    found: dict[tuple[Location | None, int], Constant | float] = {}
    pending, seen = [end.node], set[int]()
    while pending:
        node = pending.pop()
        name = getattr(node.call, "__name__", "")
        if id(node) in seen or name not in _SUMS | _SCALES or node.counts.get(0) != 1:
            continue
        seen.add(id(node))
        pending += [x.node for x in node.args if isinstance(x, Ref)]
        for value in node.args if name in _SUMS else ():
            if isinstance(value, float) or (isinstance(value, Constant) and value.value.numel() == 1):
                found[node.place, sum(place == node.place for place, _ in found)] = value
    return found


def _on_a_line(x: Sequence[float], y: Sequence[float]) -> bool:
    a, b = (torch.tensor(v, dtype=torch.float64, device="cpu") for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    if not bool(torch.isfinite(a + b).all()) or not bool(a.any()) or not bool(b.any()):
        return False
    return float((b - (a @ b) / (a @ a) * a).abs().max()) <= FITTED * float(b.abs().max())


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
        if mark is None or _carries(value):
            continue
        if mark.frozen:
            if name in _SUMS and node.counts.get(0) == 1 and not node.values and bool(_known(value).any()):
                yield replace(mark, site=node.place)
        elif mark.kind == ("equals" if name in PRODUCTS else "no-weights"):
            yield mark


def _known(value: Constant | Ref) -> torch.Tensor:
    return value.value if isinstance(value, Constant) else value.node.values[value.index]


def _carries(value: Constant | Ref) -> bool:
    return isinstance(value, Ref) and value.index not in value.node.values


def _term(marks: Sequence[Mark], passes: int) -> SilentTerm:
    low, high = min(m.low for m in marks), max(m.high for m in marks)
    return SilentTerm(marks[0].kind, marks[0].operation, marks[0].site, passes, low, high)
