"""The table of layers: every number that the charts show, what each layer costs, and histograms of those with findings."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.report.formatting import clean, evenly
from gradcheck.report.html.axes import SUPERSCRIPTS, crossing
from gradcheck.report.html.depth import Number, gradient, marks, output, updates, zeros
from gradcheck.report.html.markup import SIGNS, coordinate, join, name, tag, text
from gradcheck.types.finding import Finding
from gradcheck.types.layers import Layer, Snapshot, TensorStats
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report

FIRST = 50  # rows that are shown before all are asked for
SPARK_WIDTH, SPARK_HEIGHT = 56.0, 14.0
# Column -> what it means. Numbers are those of the first measured step.
COLUMNS: Mapping[str, str] = {
    "#": "position in the forward pass",
    "layer": "name, and the line that creates it",
    "type": "",
    "output": "shape of the output, the batch first",
    "parameters": "numbers that the layer holds itself",
    "gradient": "norm of dL/d(output) at the first step",
    "over steps": "the gradient norm over the measured steps, logarithmic",
    "rms": "root mean square of the output at the first step",
    "zeros": "share of the output that is exactly 0, in %",
    "dead": "share of the units that were never active, in %",
    "update": "update to weight ratio at the first step",
    "finding": "the most severe finding about the layer",
}
TEXTS = ("layer", "type", "output", "finding")  # columns that are aligned to the left


def layer_table(report: Report, layers: Sequence[Layer], prefix: str) -> Markup:
    """All layers in order of the forward pass. With more than FIRST of them, a checkbox shows the rest."""
    m, marked = report.measurement, marks(report, layers)
    cost, moved = _parameters(m), updates(m)
    rows = [_row(i, x, cost.get(x.name, 0), moved.get(x.name, {}), marked.get(i)) for i, x in enumerate(layers)]
    head = tag("tr", [tag("th", h, scope="col", title=says or None, class_=None if h in TEXTS else "n") for h, says in COLUMNS.items()])
    bodies = [tag("tbody", rows[:FIRST]), tag("tbody", rows[FIRST:], class_="rest") if rows[FIRST:] else None]
    table = tag("table", tag("thead", head), bodies, class_="layers-table", id=f"{prefix}layers-table")
    more = None
    if len(rows) > FIRST:
        box = tag("input", type="checkbox", class_="show-all")
        more = tag("label", box, f"show all {len(rows)} layers (the first {FIRST} are shown)", class_="all")
    label = f"Table of the layers of {report.target}"
    tools = tag("div", more, class_="tools")
    return join(tools, tag("div", table, class_="wide tall", tabindex=0, role="region", aria_label=label))


def _parameters(m: Measurement) -> dict[str, int]:
    counts: dict[str, int] = {}
    for p in m.parameters:
        counts[p.layer] = counts.get(p.layer, 0) + p.count
    return counts


def _row(i: int, x: Layer, parameters: int, moved: Mapping[int, float], finding: Finding | None) -> Markup:
    """A row. Cells are not closed, as HTML allows: with 1,000 layers that saves a tenth of the page."""
    start = x.snapshots[0] if x.snapshots else None
    flow = [g for s in x.snapshots if (g := gradient(s)) is not None]
    dead = 100 * x.dead_units / x.units if x.units and x.dead_units is not None else None
    share = zeros(start) if start else None
    site = f' title="{text(x.site.file)}:{x.site.line}"' if x.site else ""
    mark = f'<td class="{finding.severity}">{SIGNS[finding.severity]} {text(finding.code)}' if finding else "<td>"
    cells = (
        str(i),
        text("x".join(map(str, x.output_shape))),
        f"{parameters:,}" if parameters else "",
        _shown(flow[0] if flow else None),
        spark_line(flow),
        _shown(output(start) if start else None),
        _shown(100 * share if share is not None else None),
        _shown(dead),
        _shown(next(iter(moved.values()), None)),
    )
    first, rest = f"<td>{cells[0]}<td{site}>{name(x.name)}<td>{text(x.type)}", "".join(f"<td>{c}" for c in cells[1:])
    return Markup(f"<tr>{first}{rest}{mark}")


def _shown(value: Number) -> str:
    return "" if value is None else number(value)


def spark_line(values: Sequence[float]) -> Markup:
    """The course of a quantity, on a logarithmic scale of at least a decade. Zeros are at the bottom."""
    finite = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    if len(values) < 2 or not finite:
        return Markup("")
    low, high = min(finite), max(finite)
    room = max(high - low, 1.0)
    heights = [_height(v, low - (room - high + low) / 2, room) for v in values]
    step = round((SPARK_WIDTH - 2) / (len(values) - 1))
    moves = " ".join(f"{step} {b - a}" for a, b in pairwise(heights)).replace(" -", "-")
    return Markup(f'<svg><path d="M1 {heights[0]}l{moves}"/></svg>')


def _height(value: float, low: float, room: float) -> int:
    """Pixels from the top of a small line."""
    share = 0.0 if value <= 0 else 1.0 if not math.isfinite(value) else (math.log10(value) - low) / room
    return round(SPARK_HEIGHT - 2 - share * (SPARK_HEIGHT - 4))


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
