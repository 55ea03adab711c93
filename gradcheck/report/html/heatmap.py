"""Layers by steps: one row of colours per measured step, for a statistic that the reader chooses."""

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.report.html.depth import LEFT, RIGHT, WIDTH, Number, gradient, height_of_names, output, picture, updates, zeros
from gradcheck.report.html.markup import join, tag
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement

Color = tuple[int, int, int]


def data_url(rows: Sequence[bytes], palette: Sequence[Color], transparent: int) -> str:
    """A PNG of `rows` of palette indices as a data: URL. `transparent`: the index that shows what is behind."""
    width, height = len(rows[0]), len(rows)
    alpha = bytes(0 if i == transparent else 255 for i in range(transparent + 1))
    png = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", bytes(channel for color in palette for channel in color))
        + _chunk(b"tRNS", alpha)
        + _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + b64encode(png).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


MISSING, ZERO, BROKEN, FIRST = 0, 1, 2, 3  # palette: not measured, exactly 0, NaN or infinite, and the scale from FIRST to 255
# Viridis (matplotlib, CC0), nine of its colours; between them linear in sRGB.
VIRIDIS: tuple[Color, ...] = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)
SHADES = 48  # in the picture
ROW, LEGEND, TOP = 17.0, 180.0, 40.0


@dataclass(frozen=True)
class Statistic:
    """A statistic of every layer at every measured step: `rows[step][layer]`."""

    name: str
    title: str
    unit: str
    rows: tuple[tuple[Number, ...], ...]
    low: float  # of the scale: log10 of the value when `log`
    high: float
    log: bool

    def code(self, value: Number) -> int:
        """The palette's index of a value."""
        if value is None:
            return MISSING
        if not math.isfinite(value):
            return BROKEN
        if self.log and value <= 0:
            return ZERO
        x = math.log10(value) if self.log else value
        return FIRST + round((255 - FIRST) * (x - self.low) / (self.high - self.low))


def statistics(m: Measurement, layers: Sequence[Layer]) -> list[Statistic]:
    """Those with anything but zeros, the gradient first."""
    by_step = [{s.step: s for s in x.snapshots} for x in layers]
    ratios = updates(m)

    def of(value: Callable[..., Number]) -> tuple[tuple[Number, ...], ...]:
        return tuple(tuple(value(x[step]) if step in x else None for x in by_step) for step in m.measured_steps)

    update = tuple(tuple(ratios.get(x.name, {}).get(step) for x in layers) for step in m.measured_steps)
    choices = (
        _statistic("gradient", "gradient norm", "", of(gradient), True),
        _statistic("output", "output, root mean square", "", of(output), True),
        _statistic("update", "update to weight ratio", "", update, True),
        _statistic("zeros", "zeros in the output", "of the entries", of(zeros), False),
    )
    return [s for s in choices if s is not None]


def _statistic(name: str, title: str, unit: str, rows: tuple[tuple[Number, ...], ...], log: bool) -> Statistic | None:
    finite = [v for row in rows for v in row if v is not None and math.isfinite(v) and v > 0]
    if not finite:
        return None
    low, high = (math.log10(min(finite)), math.log10(max(finite))) if log else (0.0, 1.0)
    if high - low < (0.5 if log else 0):
        low, high = low - 0.25, high + 0.25
    return Statistic(name, title, unit, rows, low, high, log)


def palette() -> list[Color]:
    """Colours of `_coarse` codes."""
    scale = [_viridis(i / (SHADES - 1)) for i in range(SHADES)]
    return [(0, 0, 0), (120, 124, 130), (220, 38, 38), *scale]


def _coarse(code: int) -> int:
    """A code of the picture, which needs fewer shades than hovering needs values."""
    return code if code < FIRST else FIRST + (code - FIRST) * (SHADES - 1) // (255 - FIRST)


def _viridis(share: float) -> Color:
    place = share * (len(VIRIDIS) - 1)
    i = min(int(place), len(VIRIDIS) - 2)
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(VIRIDIS[i], VIRIDIS[i + 1], strict=True))
    return red, green, blue


def heatmap(m: Measurement, layers: Sequence[Layer], choices: Sequence[Statistic], prefix: str, names_at: float) -> Markup:
    """The picture with all statistics in it, of which the page shows the chosen one.

    `names_at`: where the chart ends below which the layers' names are drawn.
    """
    height = ROW * len(m.measured_steps)
    labels = tag("use", href=f"#{prefix}names", y=TOP + height - names_at)
    room = height_of_names(layers)
    steps = [tag("text", f"step {s}", class_="tick end", x=LEFT - 8, y=TOP + ROW * (i + 0.72)) for i, s in enumerate(m.measured_steps)]
    frame = tag("rect", class_="frame", x=LEFT, y=TOP, width=RIGHT - LEFT, height=height)
    views = [tag("g", *_view(s, height, prefix), class_=f"stat {s.name}") for s in choices]
    cursor = tag("line", class_="cursor", x1=LEFT, x2=LEFT, y1=TOP, y2=TOP + height)
    words = f"{len(layers)} layers at steps {', '.join(map(str, m.measured_steps))}. The table of layers has the numbers of the first step."
    return picture(
        [_gradient(prefix), *views, frame, *steps, labels, cursor], TOP + height + room, "Statistics of the layers over the training", words
    )


def _gradient(prefix: str) -> Markup:
    """The scale's colours, for the legends."""
    stops = [tag("stop", offset=i / (len(VIRIDIS) - 1), stop_color=f"rgb{color}") for i, color in enumerate(VIRIDIS)]
    return tag("linearGradient", stops, id=f"{prefix}viridis")


def _view(s: Statistic, height: float, prefix: str) -> Iterator[Markup]:
    rows = [bytes(_coarse(s.code(v)) for v in row) for row in s.rows]
    options = {"preserveAspectRatio": "none", "href": data_url(rows, palette(), MISSING), "class_": "cells"}
    yield tag("image", x=LEFT, y=TOP, width=RIGHT - LEFT, height=height, **options)
    yield from _legend(s, prefix)


def _legend(s: Statistic, prefix: str) -> Iterator[Markup]:
    """A strip of the scale with its ends, top right; and what its other colours mean, where they occur."""
    x = WIDTH - LEGEND - 80
    low, high = (10**s.low, 10**s.high) if s.log else (s.low, s.high)
    yield tag("text", s.title, class_="title", x=LEFT, y=20)
    yield tag("text", number(low, 2), class_="tick end", x=x - 6, y=20)
    yield tag("rect", x=x, y=11, width=LEGEND, height=10, fill=f"url(#{prefix}viridis)")
    yield tag("text", number(high, 2), class_="tick", x=x + LEGEND + 6, y=20)
    codes = {s.code(v) for row in s.rows for v in row}
    notes = ((ZERO, "grey: exactly 0"), (BROKEN, "red: NaN or infinite"), (MISSING, "blank: not measured"))
    shown = [text for code, text in notes if code in codes]
    if shown:
        yield tag("text", " · ".join(shown), class_="tick end", x=RIGHT, y=34)


def encoded(s: Statistic) -> str:
    """The palette's indices, step by step, in base64: what hovering reads."""
    return b64encode(b"".join(bytes(min(max(s.code(v), 0), 255) for v in row) for row in s.rows)).decode()


def chooser(choices: Sequence[Statistic], prefix: str) -> Markup:
    """Radio buttons; the style sheet shows what belongs to the checked one, so that it works without scripts."""
    buttons = []
    for i, s in enumerate(choices):
        box = tag("input", type="radio", name=f"{prefix}stat", value=s.name, checked=i == 0, class_=f"choose-{s.name}")
        buttons.append(tag("label", box, s.title))
    return tag("fieldset", tag("legend", "statistic"), join(buttons), class_="choices")
