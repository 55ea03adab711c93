"""Histograms of the outputs and gradients of layers with findings: how many entries have which magnitude."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain

from markupsafe import Markup

from gradcheck.report.formatting import clean
from gradcheck.report.html.axes import SUPERSCRIPTS, crossing
from gradcheck.report.html.markup import coordinate, name, tag
from gradcheck.report.html.signal import marks
from gradcheck.report.spark import evenly
from gradcheck.types.layers import Layer, Snapshot, TensorStats
from gradcheck.types.report import Report

MOST = 6
WIDTH, BASE, TOP, LEFT, RIGHT = 320.0, 104.0, 22.0, 8.0, 312.0
DECADE = math.log2(10)
HALF = -24  # exponent below which float16 has nothing left but 0


def chosen_layers(report: Report, layers: Sequence[Layer]) -> Sequence[Layer]:
    """Layers with findings and histograms, at most MOST of them, evenly spread over the depth."""
    return evenly([layers[i] for i in sorted(marks(report, layers)) if any(_histograms(s) for s in layers[i].snapshots)], MOST)


def _histograms(s: Snapshot) -> list[TensorStats]:
    return [t for t in (s.output, s.gradient) if t is not None and t.exponent_counts]


def distribution(layer: Layer) -> Markup:
    """One layer: the first measured step filled, the last one as a line."""
    shots = [s for s in layer.snapshots if _histograms(s)]
    ends = (shots[0], shots[-1])
    every = list(chain.from_iterable(_histograms(s) for s in ends))
    low = min(t.exponent_low for t in every) - 1
    high = max(t.exponent_low + len(t.exponent_counts) for t in every) + 1
    scale = (RIGHT - LEFT) / (high - low)
    content = [*_axis(low, high, scale)]
    for s, style in zip(ends, ("filled", "outline"), strict=True):
        for stats, kind in ((s.output, "output"), (s.gradient, "gradient")):
            if stats is not None and stats.exponent_counts:
                content.append(tag("path", class_=f"{style} {kind}", d=_outline(stats, low, scale, style == "filled")))
    title = f"outputs and gradients of {clean(layer.name) or 'the model'} at steps {ends[0].step} and {ends[1].step}"
    picture = tag("svg", tag("title", title), content, viewBox=f"0 0 {coordinate(WIDTH)} 124", role="img")
    return tag("figure", tag("figcaption", tag("b", name(layer.name)), " ", tag("span", layer.type, class_="soft")), picture)


def _axis(low: int, high: int, scale: float) -> Iterator[Markup]:
    first, last = math.ceil(low / DECADE), math.floor(high / DECADE)
    stride = max(1, -(-(last - first) // 6))
    if low < HALF:
        yield tag("rect", class_="zone", x=LEFT, y=TOP, width=(min(HALF, high) - low) * scale, height=BASE - TOP)
        yield tag("text", "0 in float16", class_="zone-name", x=LEFT, y=TOP - 5)
    yield tag("line", class_="tick-mark", x1=LEFT, x2=RIGHT, y1=BASE, y2=BASE)
    places = {k: LEFT + (k * DECADE - low) * scale for k in range(first, last + 1, stride)}
    yield tag("path", class_="grid", d=crossing(places.values(), TOP, BASE, upright=True))
    yield from (tag("text", "10" + str(k).translate(SUPERSCRIPTS), class_="tick middle", x=x, y=BASE + 15) for k, x in places.items())


def _outline(stats: TensorStats, low: int, scale: float, closed: bool) -> str:
    """Steps of the shares of entries, the most frequent exponent at full height."""
    tallest = max(stats.exponent_counts)
    x = LEFT + (stats.exponent_low - low) * scale
    parts = [f"M{coordinate(x)} {coordinate(BASE)}"]
    for count in stats.exponent_counts:
        x += scale
        parts.append(f"V{round(BASE - (BASE - TOP) * 0.94 * count / tallest)}H{coordinate(x)}")
    return "".join(parts) + f"V{coordinate(BASE)}" + ("Z" if closed else "")
