"""Whether the losses of one rank lie apart from those of the others: over the same steps, with the same weights, only the data differ."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradcheck.types.gauges import RankLevel


@dataclass
class _Rank:
    own: float = 0.0  # sums over the steps, as the next three
    others: float = 0.0
    apart: float = 0.0
    squares: float = 0.0


@dataclass
class RankLevels:
    """Fed with the losses of each step that all ranks took."""

    steps: int = 0
    _ranks: dict[int, _Rank] = field(default_factory=dict)

    def note(self, losses: Mapping[int, float]) -> None:
        """`losses`: by rank. Steps whose losses are not all finite are left out."""
        if len(losses) < 2 or not all(map(math.isfinite, losses.values())):
            return
        self.steps += 1
        total = math.fsum(losses.values())
        for rank, own in losses.items():
            seen = self._ranks.setdefault(rank, _Rank())
            others = (total - own) / (len(losses) - 1)
            seen.own += own
            seen.others += others
            seen.apart += own - others
            seen.squares += (own - others) ** 2

    def furthest(self) -> RankLevel | None:
        """The rank whose losses lie furthest above those of the others, or below; of two the one with the higher losses."""
        known = [self._level(rank, seen) for rank, seen in self._ranks.items()]
        return max(known, key=lambda x: (abs(x.own - x.others), x.own)) if known and self.steps > 1 else None

    def _level(self, rank: int, seen: _Rank) -> RankLevel:
        mean = seen.apart / self.steps
        error = math.sqrt(max(seen.squares / self.steps - mean * mean, 0.0) / self.steps)
        score = abs(mean) / error if error > 0 else math.inf if mean else 0.0
        return RankLevel(rank, self.steps, seen.own / self.steps, seen.others / self.steps, min(score, 1e9))
