"""Scales of charts: values to pixels, with round ticks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gradcheck.analysis.wording import number
from gradcheck.report.html.markup import coordinate

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """A vertical scale: `bottom` and `top` in pixels (y grows downwards), `low` and `high` in values or their log10."""

    low: float
    high: float
    bottom: float
    top: float
    log: bool = True

    def __call__(self, value: float) -> float:
        """Pixels; values outside are placed on the edge."""
        x = value
        if self.log:
            x = math.log10(value) if value > 0 else self.low
        share = min(max((x - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.bottom + share * (self.top - self.bottom)

    def ticks(self) -> list[tuple[float, str]]:
        """(value, label), at most MOST_TICKS of them."""
        if self.log:
            low, high = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
            stride = max(1, -(-(high - low) // (MOST_TICKS - 1)))
            return [(10.0**k, "10" + str(k).translate(SUPERSCRIPTS)) for k in range(low, high + 1, stride)]
        step = _round_step((self.high - self.low) / MOST_TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [(k * step, number(k * step)) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def log_axis(values: Iterable[float], bottom: float, top: float) -> Axis:
    """Whole decades around the positive finite values; at least two of them."""
    logs = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    low, high = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (-1, 1)
    if high - low < 2:
        low, high = low - (high == low), high + 1
    return Axis(low, high, bottom, top)


def linear_axis(values: Iterable[float], bottom: float, top: float) -> Axis:
    """From zero, or from below the lowest where that is far from it, to above the highest."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if 0 < low < 0.7 * high:
        low = 0.0
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low if low == 0.0 else low - room, high + room, bottom, top, log=False)


def path(points: Iterable[tuple[float, float] | None]) -> str:
    """An SVG path through the points, each relative to the one before, which is shortest; None interrupts it."""
    parts: list[str] = []
    last: tuple[int, int] | None = None
    for point in points:
        if point is None:
            last = None
            continue
        here = round(10 * point[0]), round(10 * point[1])  # tenths, so that rounding does not add up
        parts.append(f"M{_pair(*here)}l" if last is None else _pair(here[0] - last[0], here[1] - last[1]) + " ")
        last = here
    return "".join(parts).replace(" -", "-").rstrip(" l")


def _pair(x: int, y: int) -> str:
    return f"{coordinate(x / 10)} {coordinate(y / 10)}"


def crossing(lines: Iterable[float], start: float, end: float, *, upright: bool = False) -> str:
    """A path of parallel lines across a plot."""
    form = "M{x} {start}V{end}" if upright else "M{start} {x}H{end}"
    return "".join(form.format(x=coordinate(x), start=coordinate(start), end=coordinate(end)) for x in lines)


def _round_step(size: float) -> float:
    unit = 10.0 ** math.floor(math.log10(size))
    return next(m * unit for m in (1, 2, 5, 10) if m * unit >= size * (1 - 1e-9))
