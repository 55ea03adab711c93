"""The first event at which two programs part by more than repeated runs of the first do; and what of one is which of the other: by name,
else by equal weights, else by order and shape.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher

from gradcheck.bisect.recording import Event, Print, RunRecording

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


def match(a: RunRecording, b: RunRecording) -> Matching:
    """By the events of the first step."""
    found = Matching()
    ones, others = (run.steps[0] if run.steps else [] for run in (a, b))
    for kinds, pairs in ((_OF_LAYERS[:1], found.calls), (_OF_PARAMETERS[:1], found.parameters), (_OF_BUFFERS[:1], found.buffers)):
        mine, theirs = ([e for e in events if e.kind in kinds] for events in (ones, others))
        left = _pairs(mine, theirs, pairs, a, b)
        for names, rest in zip((found.only_a, found.only_b), left, strict=True):
            names += dict.fromkeys(e.name or "(model)" for e in rest)
    return found


def _pairs(
    mine: list[Event], theirs: list[Event], pairs: dict[Call, Call], a: RunRecording, b: RunRecording
) -> tuple[list[Event], list[Event]]:
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


def _type(run: RunRecording, event: Event) -> str:
    """The class of a layer; the last part of a parameter's name."""
    facts = run.layers.get(event.name)
    return facts.type if facts is not None and event.kind == "forward" else event.name.rpartition(".")[2]


# The distance of B to the nearest run of A, over the largest among the runs of A so far, up to which it is noise. Measured: with gradients
# that carry random noise of 1e-6, eight bisections of equal programs over three steps find no difference. (heuristic)
TIMES = 8.0
# A tensor's distance is told relative to its own norm, or to this share of all of its kind in the step: a gradient that is zero except for
# rounding, as of a bias before a normalization, is not to part. (heuristic)
SHARE = 1e-6
# Runs of one program that are farther apart than this in their initial weights or in their batches do not do the same.
UNSEEDED = 1e-3
EXACT = 1e-13  # rounding of the projections
# Unit roundoff of the formats that layers compute in: where A is noisy, bits are not compared any more.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
GROUP = {"forward": "activations", "loss": "activations", "input": "activations", "backward": "gradients"}
GROUP |= {"gradient": "gradients", "edited": "gradients", "update": "updates", "state": "updates"}

Key = tuple[str, str, int]
ONLY = ("backward", "gradient", "edited", "update")  # kinds of which one without the other is a difference


@dataclass(frozen=True)
class Pair:
    """An event of A and what B has in its place; one of the two may be missing."""

    step: int
    a: Event | None
    b: Event | None
    distance: float | None  # None where one is missing, or where the shapes differ
    limit: float
    differs: bool

    @property
    def event(self) -> Event:
        """The one of A, if there is one."""
        found = self.a or self.b
        assert found is not None
        return found


@dataclass
class Comparison:
    matching: Matching
    pairs: list[Pair] = field(default_factory=list)
    cut: bool = False  # the batch is divided differently: activations were left out
    noisy: Pair | None = None  # the first event at which A parts from itself; `a` and `b` are of two of its runs
    noise: dict[int, float] = field(default_factory=dict)  # the largest among the runs of A, by step

    @property
    def parted(self) -> list[Pair]:
        return [p for p in self.pairs if p.differs]


def compare(runs: Sequence[RunRecording], b: RunRecording, tolerance: float = 0.0) -> Comparison:
    """`runs`: of A, two or more. `tolerance`: a relative distance that counts as none."""
    a = runs[0]
    found = Comparison(match(a, b))
    found.cut = _is_cut(a, b)
    weights = {e.name: e.print for e in (a.steps[0] if a.steps else ()) if e.kind == "weight"}
    top: dict[str, float] = {}
    for step in range(min(len(r.steps) for r in (*runs, b))):
        ones, others = indexed(a.steps[step]), indexed(b.steps[step])
        again = [indexed(r.steps[step]) for r in runs[1:]]
        norms = _norms(a.steps[step])
        exact = _note_noise(found, step, a.steps[step], again, norms, top)
        for one, other in _walk(a.steps[step], b.steps[step], ones, others, found.matching):
            event = one or other
            assert event is not None
            if found.cut and event.kind in ("input", "forward", "loss", "backward"):
                continue
            unit = 0.0 if event.key in exact else max(top.get(GROUP.get(event.kind, ""), 0.0), _rounding(event, weights))
            spare = [e for o in again if one is not None and (e := o.get(one.key)) is not None]
            found.pairs.append(_pair(step, one, other, spare, max(TIMES * unit, tolerance), norms))
    return found


def _note_noise(
    found: Comparison, step: int, events: Sequence[Event], again: Sequence[dict[Key, Event]], norms: dict[str, float], top: dict[str, float]
) -> set[Key]:
    """Raises `top`, the largest noise of each group so far, by what the runs of A show in a step. The events before any noise: their
    bits are compared."""
    exact = set[Key]()
    for event in events:
        floor = SHARE * norms[event.kind]
        own = [(_noise(event, other.get(event.key), floor), other.get(event.key)) for other in again]
        most, other = max(own, key=lambda x: x[0], default=(0.0, None))
        if most and found.noisy is None:
            found.noisy = Pair(step, event, other, most if math.isfinite(most) else None, 0.0, True)
        if found.noisy is None:
            exact.add(event.key)
        group = GROUP.get(event.kind, event.kind)
        top[group] = max(top.get(group, 0.0), most)
        found.noise[step] = max(found.noise.get(step, 0.0), most)
    return exact


def _rounding(event: Event, weights: Mapping[str, Print]) -> float:
    """Relative, of one result. An update is the difference of two weights, which were rounded."""
    weight = weights.get(event.name)
    if event.kind != "update" or weight is None or not event.print.norm:
        return ROUNDING.get(event.print.dtype, EXACT)
    return ROUNDING.get(weight.dtype, EXACT) * weight.norm / event.print.norm


def indexed(events: Sequence[Event]) -> dict[Key, Event]:
    """By key. If a gradient is not changed after the last backward pass, the step takes it as it is."""
    found: dict[Key, Event] = {("edited", e.name, 0): replace(e, kind="edited", call=0) for e in events if e.kind == "gradient"}
    return found | {e.key: e for e in events}


def _pair(step: int, one: Event | None, other: Event | None, spare: Sequence[Event], limit: float, norms: dict[str, float]) -> Pair:
    if one is None or other is None:
        there = one or other
        assert there is not None
        return Pair(step, one, other, None, limit, there.print.norm > max(SHARE, limit) * norms.get(there.kind, 0.0))
    floor = SHARE * norms.get(one.kind, norms.get("gradient", 0.0))
    distances = [d for e in (one, *spare) if (d := distance(e.print, other.print, floor)) is not None]
    if not distances:
        return Pair(step, one, other, None, limit, True)
    nearest = min(distances)
    return Pair(step, one, other, nearest, limit, nearest > max(limit, EXACT))


def _walk(
    mine: Sequence[Event], theirs: Sequence[Event], ones: dict[Key, Event], others: dict[Key, Event], matching: Matching
) -> Iterator[tuple[Event | None, Event | None]]:
    """A's events with B's counterparts, in A's order; events that only B has come where they come in B."""
    keys = {e.key: k for e in mine if (k := matching.key(e)) is not None and k in others}
    back = {k: key for key in ones if (k := matching.key(ones[key])) is not None}
    taken = set(keys.values())
    names = {k[1] for k in taken}
    behind: dict[Key | None, list[Event]] = {}
    last: Key | None = None
    for event in theirs:
        if event.key in taken:
            last = event.key
        elif event.kind in ONLY and event.name in names:
            behind.setdefault(last, []).append(event)
    known = {e.name for e in mine if e.key in keys}
    yield from ((ones.get(back.get(e.key, e.key)), e) for e in behind.get(None, ()))
    for event in mine:
        if event.key in keys:
            yield event, others[keys[event.key]]
            yield from ((ones.get(back.get(e.key, e.key)), e) for e in behind.get(keys[event.key], ()))
        elif event.kind in ONLY and event.name in known:
            yield event, None


def distance(a: Print, b: Print, floor: float = 0.0) -> float | None:
    """Relative to the larger norm, or to `floor`: 0 for equal ones, None where the shapes differ, infinity where one is not finite."""
    if a.shape != b.shape:
        return None
    if a.digest and a.digest == b.digest and a.dtype == b.dtype:
        return 0.0
    apart = math.sqrt(sum((x - y) ** 2 for x, y in zip(a.sketch, b.sketch, strict=True)) / len(a.sketch))
    size = max(a.norm, b.norm, floor)
    return math.inf if not math.isfinite(apart) or not math.isfinite(size) else apart / size if size else 0.0


def _noise(event: Event, other: Event | None, floor: float) -> float:
    if other is None:
        return math.inf if event.kind in ONLY and event.print.norm > floor else 0.0
    found = distance(event.print, other.print, floor)
    return math.inf if found is None else found


def _norms(events: Sequence[Event]) -> dict[str, float]:
    squares: dict[str, float] = {}
    for e in events:
        squares[e.kind] = squares.get(e.kind, 0.0) + (e.print.norm**2 if math.isfinite(e.print.norm) else 0.0)
    return {kind: math.sqrt(s) for kind, s in squares.items()}


def _is_cut(a: RunRecording, b: RunRecording) -> bool:
    """Whether the batch of a step is divided differently: over other processes, or into other passes."""
    inputs = [[e.print.shape for e in run.steps[0] if e.kind == "input"] if run.steps else [] for run in (a, b)]
    first = [{s[0] for s in shapes if s} for shapes in inputs]
    return a.world != b.world or (len(inputs[0]) != len(inputs[1]) and first[0] != first[1])
