"""From what was marked while the loop ran to the parts of its losses that say nothing in any pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradcheck.capture.events import BackwardPass
from gradcheck.capture.nodes import Constant, Node, Ref, nodes_behind
from gradcheck.capture.silent import PRODUCTS, Mark, Silent
from gradcheck.instrument.loss_calls import LOSSES
from gradcheck.types.location import Location
from gradcheck.types.loop import SilentTerm

PASSES = 8  # that have to agree
_SUMS = frozenset("add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__".split())


def silent_terms(silent: Silent, passes: Iterable[BackwardPass]) -> tuple[SilentTerm, ...]:
    """Parts that there is nothing to learn from in any pass: factors that vanish, losses without weights, new noise as target."""
    taped = [p for p in passes if p.ref is not None]
    if len(taped) < PASSES:
        return ()
    found: dict[tuple[str, Location | None], list[Mark]] = {}
    for one in taped:
        marks = {(m.kind, m.site): m for n in nodes_behind(one.nodes) for m in _marks(silent, n)}
        for key, mark in marks.items():
            found.setdefault(key, []).append(mark)
    return tuple(_term(marks, len(taped)) for marks in found.values() if len(marks) == len(taped))


def _marks(silent: Silent, node: Node) -> Iterable[Mark]:
    name = getattr(node.call, "__name__", "")
    if node.grad and node.call in LOSSES:
        drawn = ((c, m) for c in node.constants() if (m := silent.of_record(c)) is not None and m.kind == "drawn")
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
