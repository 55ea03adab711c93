"""How long the runs of a trial may be, and how many seeds each of its rounds gets, within the remaining budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

MOST_STEPS = 1000
ENOUGH_STEPS = 500  # a plan with fewer seeds is taken before runs get shorter than this
FEWEST_STEPS = 30
COSTLIER = 1.3  # cost of a treated run relative to an untreated one, copy and reserve included
FEWEST_SEEDS = 3
SPARSE = 15  # steps to a validation, in a run of 300 steps


@dataclass(frozen=True)
class Plan:
    """Every entry runs on `first` seeds; the better half on `second` more; `finalists` of them, fresh, on `seeds` others."""

    steps: int
    first: int
    second: int
    finalists: int
    seeds: int
    together: int = 1  # combinations of finalists
    variants: bool = True  # whether other strengths are tried, too

    def runs(self, entries: int, variants: int = 0) -> int:
        """Runs in all, the untreated ones among them. `variants`: other strengths, of which the better half is tried."""
        half = -(-entries // 2)
        strengths = -(-variants // 2) if self.variants else 0
        screening = self.first * (entries + 1 + strengths) + self.second * (half + 1)
        return screening + self.seeds * (1 + min(self.finalists, entries) + self.together)


# Richest first. With fewer than six seeds in the final a t interval is too wide to be of use.
SHAPES = (
    Plan(0, 2, 2, 6, 10, 2),
    Plan(0, 2, 2, 5, 8, 2),
    Plan(0, 1, 2, 5, 8, 2),
    Plan(0, 1, 2, 4, 8, 1),
    Plan(0, 1, 1, 3, 7, 1),
    Plan(0, 1, 1, 3, 6, 0),
    Plan(0, 1, 0, 3, 6, 0, variants=False),
    Plan(0, 1, 0, 2, 6, 0, variants=False),
)


@dataclass(frozen=True)
class Planner:
    """Plans for so many entries and their other strengths. `steps` of a run and `seeds` of the final: what the user has set."""

    entries: int
    variants: int = 0
    steps: int | None = None
    seeds: int | None = None

    def plan(self, seconds: float, step_seconds: float) -> Plan:
        """The richest plan whose runs are long enough, else the poorest. The user's own settings stay."""
        chosen = SHAPES[0]
        for shape in (replace(shape, seeds=self.seeds or shape.seeds) for shape in SHAPES):
            affordable = int(seconds / max(step_seconds * COSTLIER * shape.runs(self.entries, self.variants), 1e-9))
            chosen = replace(shape, steps=self.steps or max(FEWEST_STEPS, min(MOST_STEPS, affordable)))
            if affordable >= (self.steps or ENOUGH_STEPS):
                break
        return chosen
