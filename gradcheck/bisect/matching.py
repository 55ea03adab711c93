"""Which layer, parameter and call of one program is which of the other: by name, else by equal weights, else by order and shape."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from gradcheck.bisect.recording import Event, Recording

Call = tuple[str, int]  # name, and the number of the call in a step
_OF_LAYERS = ("forward", "backward")
_OF_PARAMETERS = ("weight", "gradient", "edited", "update")
_OF_BUFFERS = ("buffer", "state")


@dataclass
class Matching:
    """From A's names to B's. What is in none of the maps keeps its name."""

    calls: dict[Call, Call] = field(default_factory=dict)
    parameters: dict[Call, Call] = field(default_factory=dict)
    buffers: dict[Call, Call] = field(default_factory=dict)
    only_a: list[str] = field(default_factory=list)  # layers, parameters and buffers
    only_b: list[str] = field(default_factory=list)

    def key(self, event: Event) -> tuple[str, str, int] | None:
        """The key in B of an event in A; None for one that has no counterpart there."""
        if event.kind in _OF_LAYERS:
            found = self.calls.get((event.name, event.call)) or self._later(event)
            return None if found is None else (event.kind, *found)
        known = self.parameters if event.kind in _OF_PARAMETERS else self.buffers if event.kind in _OF_BUFFERS else None
        if known is None:
            return event.key if event.kind != "input" else (event.kind, self.calls.get((event.name, 0), (event.name, 0))[0], event.call)
        found = known.get((event.name, 0))
        return None if found is None else (event.kind, found[0], event.call)

    def _later(self, event: Event) -> Call | None:
        """A call beyond those of the first step."""
        first = self.calls.get((event.name, 0))
        return None if first is None else (first[0], event.call)


def match(a: Recording, b: Recording) -> Matching:
    """By the events of the first step."""
    found = Matching()
    ones, others = (run.steps[0] if run.steps else [] for run in (a, b))
    for kinds, pairs in ((_OF_LAYERS[:1], found.calls), (_OF_PARAMETERS[:1], found.parameters), (_OF_BUFFERS[:1], found.buffers)):
        mine, theirs = ([e for e in events if e.kind in kinds] for events in (ones, others))
        left = _pairs(mine, theirs, pairs, a, b)
        for names, rest in zip((found.only_a, found.only_b), left, strict=True):
            names += dict.fromkeys(e.name or "(model)" for e in rest)
    return found


def _pairs(mine: list[Event], theirs: list[Event], pairs: dict[Call, Call], a: Recording, b: Recording) -> tuple[list[Event], list[Event]]:
    """Fills `pairs`; what is left over on either side."""
    weights = bool(mine) and mine[0].kind == "weight"
    mine, theirs = _by_key(mine, theirs, pairs)
    if weights:
        mine, theirs = _in_order(mine, theirs, pairs, [_bits(e) for e in mine], [_bits(e) for e in theirs])
    kinds = [[(_type(run, e), e.print.shape) for e in events] for run, events in ((a, mine), (b, theirs))]
    mine, theirs = _in_order(mine, theirs, pairs, *kinds)
    return _in_order(mine, theirs, pairs, [e.print.shape for e in mine], [e.print.shape for e in theirs])


def _by_key(mine: list[Event], theirs: list[Event], pairs: dict[Call, Call]) -> tuple[list[Event], list[Event]]:
    """Those of one name; if their shapes differ, that is reported later."""
    names = {(e.name, e.call) for e in mine} & {(e.name, e.call) for e in theirs}
    pairs.update((n, n) for n in names)
    return [e for e in mine if (e.name, e.call) not in names], [e for e in theirs if (e.name, e.call) not in names]


def _in_order(
    mine: list[Event], theirs: list[Event], pairs: dict[Call, Call], ones: Sequence[Hashable], others: Sequence[Hashable]
) -> tuple[list[Event], list[Event]]:
    blocks = SequenceMatcher(None, ones, others, autojunk=False).get_matching_blocks()
    taken_a, taken_b = set[int](), set[int]()
    for block in blocks:
        for i in range(block.size):
            one, other = mine[block.a + i], theirs[block.b + i]
            pairs[one.name, one.call] = other.name, other.call
            taken_a.add(block.a + i)
            taken_b.add(block.b + i)
    return [e for i, e in enumerate(mine) if i not in taken_a], [e for i, e in enumerate(theirs) if i not in taken_b]


def _bits(event: Event) -> tuple[Hashable, ...]:
    return event.print.digest, event.print.shape


def _type(run: Recording, event: Event) -> str:
    """The class of a layer; the last part of a parameter's name."""
    facts = run.layers.get(event.name)
    return facts.type if facts is not None and event.kind == "forward" else event.name.rpartition(".")[2]
