"""The course of a logged number: levels, noise, spikes, where it parts from another one; and spikes as they come."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from gradcheck.analysis.update_sizes import update_ratio
from gradcheck.analysis.wording import number, percent
from gradcheck.types.gauges import Spike
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import LogColumn

NORMAL = 1.4826  # standard deviation of normal numbers over their median distance from the median
FEWEST = 20  # points before one that can be called a spike
WINDOW = 50  # points that tell the level and the noise around a point
WIDTH = 3  # points in a row that make a spike
STRETCH = 10  # points in a row whose median is a level of its own: noise hides no shift of it
SUDDEN = 0.5  # of a shift, over the stretch right before: a steady rise has a third there
OF_MEDIAN = 1.25  # standard error of a median, over that of a mean of normal numbers
CLEAR = 3.0  # standard deviations above a level that no longer belong to it
ENDS = 0.1  # of a curve, at either end, that is its level there


@dataclass(frozen=True)
class CurveSpike:
    """A value far above those before it."""

    step: float
    value: float
    level: float  # before it
    score: float  # distance from the level, in standard deviations of the points before it
    back: float | None  # step at which the curve is near that level again; None: it does not come back
    lasts: bool = False  # STRETCH points or more


def noise(values: Sequence[float]) -> float:
    """Standard deviation of the values around their own course, by the differences of neighbours: a slope does not count."""
    steps = [abs(b - a) for a, b in pairwise(values)]
    return NORMAL * median(steps) / math.sqrt(2) if steps else 0.0


def level_error(values: Sequence[float]) -> float:
    """Standard error of a level, which is a median over a tenth of the curve."""
    return OF_MEDIAN * noise(values) / math.sqrt(max(1, round(ENDS * len(values))))


def first_jump(curve: LogColumn, times: float, after: int, gap: float = math.inf) -> tuple[float, float, float] | None:
    """Step, value, and the highest value before it, of the first point that lies so many times above all before it.

    `after`: points at the start that do not count; `gap`: steps since the point before, at most.
    """
    peak = max(curve.values[:after], default=0.0)
    for i in range(after, len(curve.values)):
        value = curve.values[i]
        if 0 < times * peak < value and (i == 0 or curve.steps[i] - curve.steps[i - 1] <= gap):
            return curve.steps[i], value, peak
        peak = max(peak, value)
    return None


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last tenth."""
    count = max(1, round(ENDS * len(values)))
    return median(values[:count]), median(values[-count:])


def lowest(curve: LogColumn) -> tuple[float, float]:
    """Step and level of the lowest stretch of a tenth of the curve."""
    values, count = curve.values, max(1, round(ENDS * len(curve.values)))
    stride = max(1, count // 4)
    levels = [
        (median(values[i : i + count]), curve.steps[min(i + count, len(values)) - 1]) for i in range(0, len(values) - count + 1, stride)
    ]
    level, step = min(levels)
    return step, level


class Level:
    """The level and the noise of the numbers so far: of the last `WINDOW` of them. What is far above is asked for, and not added."""

    def __init__(self) -> None:
        self.recent: list[float] = []
        self._ordered: list[float] = []

    def add(self, value: float) -> None:
        insort(self._ordered, value)
        self.recent.append(value)
        if len(self.recent) > WINDOW:
            del self._ordered[bisect_left(self._ordered, self.recent.pop(0))]

    @property
    def value(self) -> float:
        return self._ordered[len(self._ordered) // 2]

    @property
    def size(self) -> float:
        """Standard deviation, told by medians."""
        level = self.value
        return max(NORMAL * median(abs(v - level) for v in self.recent), noise(self.recent))

    @property
    def falls(self) -> bool:
        """Whether the numbers come down by more than their noise: those before were higher for that reason alone."""
        half = len(self.recent) // 2
        return median(self.recent[:half]) - median(self.recent[half:]) > CLEAR * noise(self.recent)

    def left_behind(self, value: float, reach: float, late: bool = False) -> bool:
        """Whether a value lies `reach` times as far above the level as any of the numbers, or of the later half of them."""
        level = self.value
        highest = max(self.recent[len(self.recent) // 2 :]) if late else self._ordered[-1]
        return value - level > reach * (highest - level)


def spikes(curve: LogColumn, least: float, reach: float, stretches: bool = False) -> list[CurveSpike]:
    """Values more than `least` standard deviations above the level before them, and `reach` times as far above it as any of those.

    `stretches`: also STRETCH values whose median is, by its standard error, so far above, and above the medians before. Neighbouring
    ones are one spike. A single value is a bad sample or heavy-tailed noise, not a spike. `curve`: finite.
    """
    values, before = curve.values, Level()
    found: list[CurveSpike] = []
    index = 0
    while index < len(values):
        score = _jump(values, index, before, least, reach, stretches) if len(before.recent) >= FEWEST else 0.0
        if score:
            back = _back(curve, index, before.value + CLEAR * before.size)
            end, place = (back, curve.steps[back]) if back is not None else (len(values), None)
            highest = max(values[index : index + WIDTH])
            found.append(CurveSpike(curve.steps[index], highest, before.value, score, place, stretches and end - index >= STRETCH))
            index = end
            continue
        before.add(values[index])
        index += 1
    return found


def _jump(values: Sequence[float], index: int, before: Level, least: float, reach: float, stretches: bool) -> float:
    """Score of the jump at a point, 0 for none."""
    value, few, level = values[index], values[index : index + WIDTH], before.value
    if len(few) < WIDTH or min(few) <= level:
        return 0.0
    falls = before.falls
    far = before.left_behind(value, reach, falls)
    size = noise(before.recent) if falls else before.size
    if min(size, before.size) <= 0 or not (stretches or far):
        return 0.0
    if value - level > least * size and far and min(few) > level + CLEAR * size:
        return (value - level) / size
    ahead = values[index : index + STRETCH]
    if not stretches or len(ahead) < STRETCH:
        return 0.0
    shift, sudden = median(ahead) - level, median(ahead) - median(before.recent[-STRETCH:])
    score = shift / before.size * math.sqrt(STRETCH) / OF_MEDIAN
    if score <= least or sudden < SUDDEN * shift:
        return 0.0
    highest = max(median(before.recent[i : i + STRETCH]) for i in range(len(before.recent) - STRETCH + 1))
    return score if shift > reach * (highest - level) else 0.0


def _back(curve: LogColumn, index: int, level: float) -> int | None:
    """Where the curve is back at the level, with as many of the next points below it as above."""
    values = curve.values
    for i in range(index + 1, len(values)):
        if values[i] <= level and median(values[i : i + FEWEST]) <= level:
            return i
    return None


def resembling(curve: LogColumn, steps: Sequence[float]) -> list[float]:
    """The values of a curve at other steps: the nearest one before each."""
    places = (max(0, bisect_left(curve.steps, s + 1e-9) - 1) for s in steps)
    return [curve.values[i] for i in places]


def thirds(curve: LogColumn) -> tuple[float, float] | None:
    """Factors by which a positive number grew over the second and over the last third of a curve.

    None of fewer than nine points, or two in a third: the first steps of a run, which are all measured, say nothing of a later third.
    """
    pairs = list(zip(curve.steps, curve.values, strict=True))
    if len(pairs) < 3 * WIDTH or not all(v > 0 for v in curve.values):
        return None
    first, last = curve.steps[0], curve.steps[-1]
    bounds = [first + (last - first) * third / 3 for third in (1, 2, 3)]
    parts = [[v for s, v in pairs if low <= s <= high] for low, high in pairwise((first, *bounds))]
    if min(map(len, parts)) < 2:
        return None
    levels = [median(part[-WIDTH:]) for part in parts]
    return levels[1] / levels[0], levels[2] / levels[1]


SCORE, REACH = 10.0, 3.0  # as for the losses of a log (LOG003), whose sources say why
AT_ONCE = 0.5, 0.33  # of the highest value that follows; of the rise, that it comes down again: as in LOG002
SMALL = 0.1  # of a weight: an update that no calibrated run diverged with at once (OPT001)
RATE = 10.0, 5  # as log-rate-jumps


def changed_at_once(m: Measurement) -> CurveSpike | None:
    """A jump of a watched run's loss that its steps did not make: the data, the labels or the loss changed there.

    Weights that run away do so from step to step. This one is at its height at once, after small updates, and the steps bring it down.
    """
    course = m.course
    if not m.probe.live or course is None or course.loss is None or course.rate is None or first_jump(course.rate.finite, *RATE, gap=1):
        return None
    curve = course.loss.finite
    for spike in spikes(curve, SCORE, REACH):
        at = bisect_left(curve.steps, spike.step)
        after = curve.values[at:]
        first = max(after[: 1 + (spike.step - curve.steps[at - 1] > 1)])  # of means over several steps, one holds only a part of it
        down = len(after) < WINDOW or first - ends(after)[1] > AT_ONCE[1] * (first - spike.level)
        if spike.back is None and down and first >= AT_ONCE[0] * max(after) and (update_ratio(m, spike.step) or 1.0) < SMALL:
            return spike
    return None


RENEWED = 10  # values after which the limits are reckoned again: a loop may take thousands of steps a second
NAMED = 3  # samples
LEAST = 0.01  # of a loss, for a sample to be named


@dataclass
class SpikeScore:
    """Fed one value after another. Values that are not finite, and those of a spike, are reported once, at the first."""

    level: float = math.nan
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _above: float = math.inf  # what is a spike
    _calm: float = math.inf  # what no longer is
    _left: int = 0  # values until the limits are reckoned again
    _inside: int = 0  # values of the present spike
    _broken: bool = False

    def stands_out(self, value: float) -> bool:
        """Whether a spike begins with this value."""
        if not math.isfinite(value):
            new, self._broken = not self._broken, True
            if new and self._recent:
                self._renew()
            return new
        self._broken = False
        if self._inside:
            self._inside += 1
            if value > self._calm and self._inside <= WINDOW:
                return False
            if self._inside > WINDOW:  # it stays: a level of its own
                self._recent.clear()
                self._above = self._calm = math.inf
                self._left = 0
            self._inside = 0
        recent = self._recent
        if recent and value > recent[-1] and value > max(recent):  # what is not above all of them is no spike
            if self._left <= 0:
                self._renew()
            if value > self._above:
                self._inside = 1
                return True
        recent.append(value)
        self._left -= 1
        return False

    def _renew(self) -> None:
        values = list(self._recent)
        self.level = median(values)
        if len(values) < FEWEST:
            return
        self._left = RENEWED
        size = max(NORMAL * median(abs(v - self.level) for v in values), noise(values))
        self._calm = self.level + CLEAR * size
        self._above = self.level + max(SCORE * size, REACH * (max(values) - self.level)) if size > 0 else math.inf


def told(spike: Spike) -> str:
    """In a line: the step, the batch, the tensor, the layer, the place."""
    before = f" (before: {number(spike.level)})" if math.isfinite(spike.level) else ""
    parts = [f"step {spike.step}: {spike.what} {number(spike.value)}{before}"]
    if spike.bad_batch:
        parts.append("its batch holds values that are not finite")
    parts += [_samples(spike)] if spike.size is not None else []
    if spike.tensor:
        share = f", {percent(spike.share)} of the gradient" if spike.share is not None else ", whose gradient is not finite"
        parts.append(f"{spike.tensor}{share}{f' ({spike.site})' if spike.site is not None else ''}")
    parts += [f"kept in {spike.file}"] if spike.file else []
    return "; ".join(parts)


def _samples(spike: Spike) -> str:
    worst = [(i, share) for i, share in spike.worst if share >= LEAST]
    if worst:
        named = [(spike.samples[i] if i < len(spike.samples) else f"{i} of the batch", share) for i, share in worst]
        return "most of it by " + ", ".join(f"sample {n} ({percent(share)})" for n, share in named)
    if not spike.samples:
        return f"{spike.size} samples, whose indices the loader does not say"
    more = f" and {spike.size - NAMED} more" if spike.size is not None and spike.size > NAMED else ""
    return f"samples {', '.join(map(str, spike.samples[:NAMED]))}{more}"
