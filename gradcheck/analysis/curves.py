"""The course of a logged number: levels, noise, spikes, where it parts from another one."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from gradcheck.types.log import Curve

NORMAL = 1.4826  # standard deviation of normal numbers over their median distance from the median
FEWEST = 20  # points before one that can be called a spike
WINDOW = 50  # points that tell the level and the noise around a point
WIDTH = 3  # points in a row that make a spike
CLEAR = 3.0  # standard deviations above a level that no longer belong to it
ENDS = 0.1  # of a curve, at either end, that is its level there


@dataclass(frozen=True)
class Spike:
    """A value far above those before it."""

    step: float
    value: float
    level: float  # before it
    score: float  # distance from the level, in standard deviations of the points before it
    back: float | None  # step at which the curve is near that level again; None: it does not come back


def noise(values: Sequence[float]) -> float:
    """Standard deviation of the values around their own course, by the differences of neighbours: a slope does not count."""
    steps = [abs(b - a) for a, b in pairwise(values)]
    return NORMAL * median(steps) / math.sqrt(2) if steps else 0.0


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last tenth."""
    count = max(1, round(ENDS * len(values)))
    return median(values[:count]), median(values[-count:])


def lowest(curve: Curve) -> tuple[float, float]:
    """Step and level of the lowest stretch of a tenth of the curve."""
    values, count = curve.values, max(1, round(ENDS * len(curve.values)))
    stride = max(1, count // 4)
    levels = [
        (median(values[i : i + count]), curve.steps[min(i + count, len(values)) - 1]) for i in range(0, len(values) - count + 1, stride)
    ]
    level, step = min(levels)
    return step, level


def spikes(curve: Curve, least: float, reach: float) -> list[Spike]:
    """Values more than `least` standard deviations above the level before them, and `reach` times as far above it as any of those.

    Neighbouring ones are one spike. A single value is a bad sample or heavy-tailed noise, not a spike. `curve`: finite.
    """
    values, ordered, recent = curve.values, list[float](), list[float]()
    found: list[Spike] = []
    index = 0
    while index < len(values):
        value = values[index]
        if len(recent) >= FEWEST:
            level = ordered[len(ordered) // 2]
            size = max(NORMAL * median(abs(v - level) for v in recent), noise(recent))
            above = value - level
            lasts = min(values[index : index + WIDTH]) > level + CLEAR * size and index + WIDTH <= len(values)
            if size > 0 and above > least * size and above > reach * (ordered[-1] - level) and lasts:
                back = _back(curve, index, level + CLEAR * size)
                found.append(Spike(curve.steps[index], value, level, above / size, curve.steps[back] if back is not None else None))
                index = back if back is not None else len(values)
                continue
        insort(ordered, value)
        recent.append(value)
        if len(recent) > WINDOW:
            del ordered[bisect_left(ordered, recent.pop(0))]
        index += 1
    return found


def _back(curve: Curve, index: int, level: float) -> int | None:
    """Where the curve is back at the level, with as many of the next points below it as above."""
    values = curve.values
    for i in range(index + 1, len(values)):
        if values[i] <= level and median(values[i : i + FEWEST]) <= level:
            return i
    return None


def resembling(curve: Curve, steps: Sequence[float]) -> list[float]:
    """The values of a curve at other steps: the nearest one before each."""
    places = (max(0, bisect_left(curve.steps, s + 1e-9) - 1) for s in steps)
    return [curve.values[i] for i in places]
