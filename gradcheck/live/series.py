"""Numbers of a run of any length, in bounded memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gradcheck.types.training import UNBINNED

MOST = 1024  # bins behind them; when there are twice as many, neighbours are joined
EARLY, LATE = 4, 6  # measured steps that are always kept


@dataclass
class DownsampledSeries:
    """The first numbers as they came, the later ones as means over equally many steps each; one that is not finite makes its mean so."""

    count: int = 0
    last: float = math.nan
    first: list[float] = field(default_factory=list)
    bins: list[float] = field(default_factory=list)
    width: int = 1  # numbers in a bin
    _sum: float = 0.0
    _filled: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.last = value
        if len(self.first) < UNBINNED:
            self.first.append(value)
            return
        self._sum += value
        self._filled += 1
        if self._filled == self.width:
            self.bins.append(self._sum / self.width)
            self._sum, self._filled = 0.0, 0
            if len(self.bins) >= 2 * MOST:
                self.bins = [(a + b) / 2 for a, b in zip(self.bins[::2], self.bins[1::2], strict=True)]
                self.width *= 2

    def values(self) -> tuple[float, ...]:
        """In order. The last one is the last number itself if that is not finite: a run that ends like this must say so."""
        rest = [self._sum / self._filled] if self._filled else []
        if rest and not math.isfinite(self.last):
            rest = [self.last]
        return (*self.first, *self.bins, *rest)

    def steps(self) -> tuple[float, ...]:
        """Of each of `values`: the last step of its bin."""
        first, ends = len(self.first), range(len(self.first) + self.width - 1, self.count, self.width)
        rest = [self.count - 1] if self._filled else []
        return tuple(map(float, (*range(first), *ends[: len(self.bins)], *rest)))


def thinned(steps: Sequence[int], most: int) -> frozenset[int]:
    """Which of the measured steps are kept: the first, the last, and every second of those between when there are too many."""
    if len(steps) <= most:
        return frozenset(steps)
    return frozenset((*steps[:EARLY], *steps[EARLY:-LATE:2], *steps[-LATE:]))
