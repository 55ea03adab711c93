"""The gauges of a watched run, in bounded memory: a series that is thinned out, the largest value, and the longest departure."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from gradcheck.analysis.curves import CLEAR, Level
from gradcheck.types.gauges import Departure, Gauge, Quantity
from gradcheck.types.location import Location

FEWEST = 8  # values that establish a level
SCORE = 10.0  # standard deviations: as log-loss-spikes
REACH = 3.0  # times the highest value before: likewise
ONLY_DEPARTED: frozenset[Quantity] = frozenset(("gradient",))  # their series are those of the parameters


@dataclass
class _Series:
    layer: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    before: Level = field(default_factory=Level)
    peak: tuple[float, int] = (-math.inf, 0)
    departure: Departure | None = None
    running: Departure | None = None
    _bound: float = 0.0  # above it a departure goes on

    def add(self, step: int, value: float, between: bool = False) -> None:
        """`between`: two measured steps, of which it is no further one."""
        self.steps.append(step)
        self.values.append(value)
        self.peak = max(self.peak, (value, step))
        if self.running is None:
            self._begin(step, value, between)
        elif value > self._bound:
            d = self.running
            score = max(d.score, d.score * (value - d.level) / (d.value - d.level))
            self.running = Departure(d.step, max(d.value, value), d.level, score, d.lasted + (not between), False)
        else:
            self._keep(True)
            self.running = None
        if self.running is None:
            self.before.add(value)

    def _begin(self, step: int, value: float, between: bool) -> None:
        if len(self.before.recent) < FEWEST or not self.before.left_behind(value, REACH):
            return
        level, size = self.before.value, self.before.size
        if size > 0 and value - level > SCORE * size:
            self.running, self._bound = Departure(step, value, level, (value - level) / size, int(not between), False), level + CLEAR * size

    def _keep(self, back: bool) -> None:
        d = self.running
        assert d is not None
        if self.departure is None or (d.lasted, d.score) >= (self.departure.lasted, self.departure.score):
            self.departure = Departure(d.step, d.value, d.level, d.score, d.lasted, back)

    def longest(self) -> Departure | None:
        known = [d for d in (self.departure, self.running) if d is not None]
        return max(known, key=lambda d: (d.lasted, d.score), default=None)


class Gauges:
    """Fed at each measured step."""

    def __init__(self) -> None:
        self._series: dict[tuple[Quantity, str], _Series] = {}

    def note(self, quantity: Quantity, name: str, layer: str, step: int, value: float, between: bool = False) -> None:
        """A non-finite value is ignored. `between`: it is of no measured step."""
        if math.isfinite(value):
            self._series.setdefault((quantity, name), _Series(layer)).add(step, value, between)

    def thin(self, kept: Collection[int]) -> None:
        for s in self._series.values():
            pairs = [(step, value) for step, value in zip(s.steps, s.values, strict=True) if step in kept]
            s.steps, s.values = [step for step, _ in pairs], [value for _, value in pairs]

    def largest(self, step: int) -> dict[tuple[Quantity, str], float]:
        """At one measured step, of each quantity and layer."""
        found: dict[tuple[Quantity, str], float] = {}
        for (quantity, _), s in self._series.items():
            if s.steps and s.steps[-1] == step:
                found[quantity, s.layer] = max(s.values[-1], found.get((quantity, s.layer), -math.inf))
        return found

    def records(self, sites: Mapping[str, Location | None]) -> Iterator[Gauge]:
        for (quantity, name), s in self._series.items():
            departure = s.longest()
            if departure is not None or quantity not in ONLY_DEPARTED:
                (peak, at), site = s.peak, sites.get(s.layer)
                yield Gauge(quantity, name, s.layer, tuple(s.steps), tuple(s.values), peak, at, departure, site)
