"""Whether a trial was long enough: the untreated model's loss at the end of its training, and where it was heading."""

from __future__ import annotations

import math
from bisect import bisect_left

from gradcheck.types.trial import Curve, Entry

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
