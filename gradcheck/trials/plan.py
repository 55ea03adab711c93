"""How long the runs of a trial may be, how many seeds each of its rounds gets, and whether that was long enough."""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from gradcheck.types.trial import Curve, Entry

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


LAST = 0.25  # of the run
LONGER = 4.0  # times as long: how far a fall is continued
# heuristic: a lowest point near the end may be the noise of the validation; one that lies so much lower than all before is a fall
FALL = 1.0  # smallest differences that count


def compared(entry: Entry) -> Curve:
    """The losses that a trial compares: the validation losses, if there are any."""
    return entry.validation if entry.validation.median else entry.training


def still_falling(entry: Entry, relevant: float) -> bool:
    """Whether the loss reached its lowest point in the last quarter, clearly (by `relevant`) below everything before."""
    c = compared(entry)
    if len(c.steps) < 2 or not all(map(math.isfinite, c.median)):
        return False
    before = [v for s, v in zip(c.steps, c.median, strict=True) if s <= (1 - LAST) * c.steps[-1]]
    late = c.median[len(before) :]
    return bool(before and late) and min(late) <= min(before) - FALL * relevant and c.median[-1] <= min(before)


def leads_to(entry: Entry) -> float:
    """The loss after a training LONGER times as long, if its fall keeps slowing down as over the last two quarters of this one."""
    c = compared(entry)
    half, late, end = (_at(c, share) for share in (1 - 2 * LAST, 1 - LAST, 1.0))
    slowing = min(1.0, (late - end) / (half - late)) if half > late else 1.0
    return end - sum((late - end) * slowing**i for i in range(1, 1 + round((LONGER - 1) / LAST)))


def gets_further(entry: Entry, base: Entry) -> bool:
    """Whether a treated training ended at a loss that the untreated one would not reach by going on."""
    c = compared(entry)
    judged_alike = entry.effect is not None and entry.effect.lower_is_better
    return judged_alike and bool(c.median) and math.isfinite(c.median[-1]) and c.median[-1] < leads_to(base)


def _at(c: Curve, share: float) -> float:
    """The median at a share of the steps, between two points on the line through them."""
    step = share * c.steps[-1]
    i = min(max(bisect_left(c.steps, step), 1), len(c.steps) - 1)
    (s, t), (a, b) = c.steps[i - 1 : i + 1], c.median[i - 1 : i + 1]
    return a + (b - a) * (step - s) / (t - s)
