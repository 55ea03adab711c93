"""Gradient and activation over depth: two lines with their ranges, on logarithmic scales, one above the other."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from markupsafe import Markup

from gradcheck.analysis.depth import gradient_trend, nets
from gradcheck.analysis.layer_groups import BODY_KINDS, body
from gradcheck.analysis.wording import number
from gradcheck.judge.registry import builtin_rules
from gradcheck.report.formatting import clean
from gradcheck.report.html.axes import Axis, crossing, log_axis, path
from gradcheck.report.html.markup import SIGNS, coordinate, join, tag
from gradcheck.types.finding import Finding
from gradcheck.types.layers import Layer, Snapshot
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report

Number = float | None  # None: not measured
FEWEST = 4  # body layers, for the gradient rules to see a trend


@dataclass(frozen=True)
class Course:
    """One quantity over depth: at the first measured step, at the last one, and its range over all of them."""

    first: tuple[Number, ...]
    last: tuple[Number, ...]
    lowest: tuple[Number, ...]
    highest: tuple[Number, ...]

    @property
    def sizes(self) -> list[float]:
        """All values that a logarithmic scale can show."""
        columns = (self.first, self.lowest, self.highest)
        return [v for column in columns for v in column if v is not None and v > 0 and math.isfinite(v)]


def shown_layers(m: Measurement) -> list[Layer]:
    """Layers of the charts and the table: all that were measured except containers, which only pass on what others made."""
    return sorted((x for x in m.layers if x.kind != "container"), key=lambda x: x.order)


def columns(layers: Sequence[Layer]) -> list[int]:
    """Positions of the layers that have a depth: no functions that are called all over the forward pass, and only measured layers."""
    return [i for i, x in enumerate(layers) if x.snapshots and not (x.calls > 1 and ":" in x.name)]


def gradient(snapshot: Snapshot) -> Number:
    """||dL/d(output)||, as the gradient rules take it."""
    stats = snapshot.gradient
    return None if stats is None or not stats.count else stats.norm if stats.finite else math.inf


def output(snapshot: Snapshot) -> Number:
    """Root mean square of the output."""
    stats = snapshot.output
    return None if stats is None or not stats.count else stats.rms if stats.finite else math.inf


def zeros(snapshot: Snapshot) -> Number:
    return None if snapshot.output is None else snapshot.output.zeros


def course(layers: Sequence[Layer], value: Callable[[Snapshot], Number], units: Mapping[int, float] | None = None) -> Course:
    """The course of a quantity. `units`: what it is divided by, by step; steps that are not in it are left out. None: nothing."""
    series = [
        [v / (units[s.step] if units else 1.0) for s in x.snapshots if (units is None or s.step in units) and (v := value(s)) is not None]
        for x in layers
    ]
    return Course(
        tuple(s[0] if s else None for s in series),
        tuple(s[-1] if s else None for s in series),
        tuple(min((v for v in s if 0 < v < math.inf), default=None) for s in series),
        tuple(max((v for v in s if v < math.inf), default=None) for s in series),
    )


def last_gradients(m: Measurement) -> Mapping[int, float] | None:
    """By step, the gradient norm of the last body layer that has one at the start: what the rules compare the others with.

    None when there are too few such layers for the rules to judge.
    """
    judged = body(m)
    ends = [{s.step: g for s in x.snapshots if (g := gradient(s)) is not None and 0 < g < math.inf} for x in judged]
    started = [e for e in ends if e and min(e) == m.measured_steps[0]]
    return started[-1] if len(started) >= FEWEST else None


def allowed_decades(report: Report) -> float:
    """Decades that the gradient may change over depth: the limit that a finding names, else the rule's own."""
    named = [e.limit for f in report.findings if f.code in ("GRAD001", "GRAD002") for e in f.evidence if e.unit == "decades"]
    own = next(rule.limits["total"].value for rule in builtin_rules() if rule.code == "GRAD001")
    return next((x for x in named if x is not None), own)


def updates(m: Measurement) -> Mapping[str, dict[int, float]]:
    """By layer and step: the largest update-to-weight ratio of its weights (not biases), as the optimizer moved them."""
    ratios: dict[str, dict[int, float]] = {}
    for p in m.parameters:
        if len(p.shape) < 2:
            continue
        mine = ratios.setdefault(p.layer, {})
        for step in p.steps:
            if step.update_ratio is not None:
                mine[step.step] = max(mine.get(step.step, 0.0), step.update_ratio)
    return ratios


def affected(finding: Finding, layers: Sequence[Layer]) -> list[int]:
    """Positions of the layers that a finding names: themselves, or the layers of its parameters or below its containers."""
    exact = set(finding.layers)
    if "" in exact:
        return []
    holders = {name.rpartition(".")[0] for name in exact} if not exact & {x.name for x in layers} else set()
    return [i for i, x in enumerate(layers) if x.name in exact or x.name in holders or not exact.isdisjoint(_containers(x.name))]


def _containers(name: str) -> list[str]:
    """What a layer is below: "a" and "a.b" for "a.b:1"."""
    return [name[:i] for i, sign in enumerate(name) if sign in ".:"]


def marks(report: Report, layers: Sequence[Layer]) -> dict[int, Finding]:
    """The most severe finding at each position, consequences included."""
    found: dict[int, Finding] = {}
    for finding in report.findings:  # most severe first
        for i in affected(finding, layers):
            found.setdefault(i, finding)
    return found


WIDTH, LEFT, RIGHT = 1000.0, 92.0, 988.0  # of the picture; of its plots
LANE, GAP = 15.0, 26.0
HEIGHTS = (190.0, 130.0)  # of the two plots
MOST_LANES = 5
MOST_NAMES = 26  # labels under a chart
LONGEST_NAME = 18
LETTER = 6.7  # width of one in a label
FEW = 80  # layers of which each gets a dot


def column(i: int, n: int) -> float:
    """The middle of layer i's column."""
    return LEFT + (i + 0.5) / n * (RIGHT - LEFT)


def depth_chart(report: Report, layers: Sequence[Layer], prefix: str) -> tuple[Markup, float]:
    """The picture, and how high it is above the names. Its columns, one per layer, are as wide as those of the heatmap below it."""
    n = len(layers)
    ends = last_gradients(report.measurement)
    flow, signal = course(layers, gradient, ends), course(layers, output)
    decades = allowed_decades(report)
    lanes, carriers = _lanes(report, layers), _carriers(layers)
    top = 26 + LANE * len(lanes)
    edges = [10**-decades, 10**decades] if ends else []
    middle = top + HEIGHTS[0] + GAP
    first = log_axis([*flow.sizes, *edges], top + HEIGHTS[0], top)
    second = log_axis(signal.sizes, middle + HEIGHTS[1], middle)
    bottom = middle + HEIGHTS[1]
    content = [
        *_lane_marks(lanes, n),
        *_panel(first, "gradient norm ‖∂L/∂h‖" + (", relative to the last layer's" if ends else ""), _zone(decades, first) if ends else ()),
        *_lines(flow, first, "gradient", carriers),
        *_panel(second, "output, root mean square", ()),
        *_lines(signal, second, "output", carriers),
        tag("g", _names_below(layers, bottom), id=f"{prefix}names"),
        tag("line", class_="cursor", x1=LEFT, x2=LEFT, y1=top, y2=bottom),
    ]
    height = bottom + height_of_names(layers)
    return picture(content, height, "Gradient and activation over depth", _described(report, layers)), bottom


def picture(content: Sequence[Markup], height: float, title: str, description: str) -> Markup:
    """An SVG that also says in words what it shows."""
    words = [tag("title", title), tag("desc", description)]
    return tag("svg", words, content, viewBox=f"0 0 {coordinate(WIDTH)} {coordinate(height)}", role="img", class_="chart")


def _panel(axis: Axis, title: str, zones: Sequence[Markup]) -> Iterator[Markup]:
    yield from zones
    yield tag("path", class_="grid", d=crossing((axis(value) for value, _ in axis.ticks()), LEFT, RIGHT))
    yield from (tag("text", label, class_="tick end", x=LEFT - 8, y=axis(value) + 4) for value, label in axis.ticks())
    yield tag("text", title, class_="title", x=LEFT, y=axis.top - 6)


def _zone(decades: float, axis: Axis) -> list[Markup]:
    """What lies beyond the limits of vanishing-gradient (below) and exploding-gradient (above)."""
    low, high = axis(10**-decades), axis(10**decades)
    more = f"more than {number(decades)} decades"
    return [
        tag("rect", class_="zone", x=LEFT, y=low, width=RIGHT - LEFT, height=axis.bottom - low),
        tag("rect", class_="zone", x=LEFT, y=axis.top, width=RIGHT - LEFT, height=high - axis.top),
        tag("line", class_="limit", x1=LEFT, x2=RIGHT, y1=low, y2=low),
        tag("line", class_="limit", x1=LEFT, x2=RIGHT, y1=high, y2=high),
        tag("text", f"GRAD001 vanishing: {more} below the last layer", class_="zone-name end", x=RIGHT - 6, y=low + 13),
        tag(
            "text", f"GRAD002 exploding: {more} above it", class_="zone-name", x=LEFT + 6, y=high - 5 if high - axis.top > 13 else high + 12
        ),
    ]


def _carriers(layers: Sequence[Layer]) -> list[int]:
    """Positions of the layers that a line goes through: linear, conv and recurrent ones, which the rules judge; all if they are few."""
    found = [i for i, x in enumerate(layers) if x.kind in BODY_KINDS]
    return found if len(found) >= 2 else list(range(len(layers)))


def _lines(c: Course, axis: Axis, kind: str, carriers: Sequence[int]) -> Iterator[Markup]:
    """The band, the last and the first step as lines through the carriers, and all layers as dots where there is room."""
    n = len(c.first)
    low, high = [c.lowest[i] for i in carriers], [c.highest[i] for i in carriers]
    for run in _consecutive([k for k in range(len(carriers)) if low[k] and high[k]]):
        edge = [(column(carriers[k], n), axis(high[k] or 0.0)) for k in run]
        back = [(column(carriers[k], n), axis(low[k] or 0.0)) for k in reversed(run)]
        yield tag("path", class_=f"band {kind}", d=path([*edge, *back]) + "Z")
    for values, style in ((c.last, "line last"), (c.first, "line")):
        points = [(column(i, n), axis(v)) if (v := values[i]) and math.isfinite(v) else None for i in carriers]
        yield tag("path", class_=f"{style} {kind}", d=path(points))
    if n <= FEW:
        beside = sorted(set(range(n)).difference(carriers))
        yield tag("path", class_=f"dots {kind}", d=_dots(c, axis, carriers))
        yield tag("path", class_=f"dots beside {kind}", d=_dots(c, axis, beside)) if beside else Markup("")
    for i, value in enumerate(c.first):
        if value == 0:
            yield tag("text", "0", class_="mark", x=column(i, n), y=axis.bottom - 2)
        elif value is not None and not math.isfinite(value):
            yield tag("text", "✕", class_="mark", x=column(i, n), y=axis.top + 11)


def _dots(c: Course, axis: Axis, positions: Sequence[int]) -> str:
    """Lines of no length, which round caps turn into dots."""
    shown = [(i, v) for i in positions if (v := c.first[i]) and math.isfinite(v)]
    return "".join(f"M{coordinate(column(i, len(c.first)))} {coordinate(axis(v))}h0" for i, v in shown)


def _lanes(report: Report, layers: Sequence[Layer]) -> list[tuple[Finding, list[int]]]:
    """Findings that are about some of the layers, one lane a rule."""
    lanes: dict[str, tuple[Finding, set[int]]] = {}
    for finding in report.findings:
        at = affected(finding, layers)
        if at:
            lanes.setdefault(finding.code, (finding, set()))[1].update(at)
    return [(finding, sorted(at)) for finding, at in list(lanes.values())[:MOST_LANES]]


def _lane_marks(lanes: Sequence[tuple[Finding, list[int]]], n: int) -> Iterator[Markup]:
    """A row per finding: bars over the layers that it names."""
    half = (RIGHT - LEFT) / n / 2
    for row, (finding, at) in enumerate(lanes):
        y = 8 + LANE * row
        yield tag("text", f"{SIGNS[finding.severity]} {finding.code}", class_=f"lane-name end {finding.severity}", x=LEFT - 8, y=y + 8)
        yield tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=y + 4, y2=y + 4)
        for run in _consecutive(at):
            x = column(run[0], n) - half
            width = max(column(run[-1], n) + half - x - 1, 2.0)
            bar = tag("title", f"{finding.name} ({finding.code})")
            yield tag("rect", bar, class_=f"lane {finding.severity}", x=x + 0.5, y=y, width=width, height=8, rx=2)


def _consecutive(indices: Sequence[int]) -> list[list[int]]:
    groups = groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0])
    return [[i for _, i in group] for _, group in groups]


def _short_names(layers: Sequence[Layer]) -> dict[int, str]:
    """Names for the space under a chart, by position: without their common prefix, cut at the front; every k-th of many layers."""
    names = [clean(x.name) or "(model)" for x in layers]
    parts = [name.split(".") for name in (min(names), max(names))]  # a prefix of these two is a prefix of all
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts[0][:-1], parts[1][:-1], strict=False)))
    shorter = [".".join(name.split(".")[common:]) for name in names]
    stride = -(-len(names) // MOST_NAMES)
    kept = {i: shorter[i] for i in range(0, len(names), stride)}
    return {i: name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :] for i, name in kept.items()}


def _upright(names: Mapping[int, str], n: int) -> bool:
    """Whether the names fit side by side."""
    return len(names) == n and max(map(len, names.values())) * LETTER < (RIGHT - LEFT) / n


def height_of_names(layers: Sequence[Layer]) -> float:
    names = _short_names(layers)
    return 26 if _upright(names, len(layers)) else 24 + 0.64 * LETTER * max(map(len, names.values()))


def _names_below(layers: Sequence[Layer], y: float) -> Markup:
    """Names of the layers under a chart, slanted if they do not fit side by side."""
    n, names = len(layers), _short_names(layers)
    upright = _upright(names, n)
    ticks = "".join(f"M{coordinate(column(i, n))} {coordinate(y)}v4" for i in names)
    turn = "" if upright else "rotate(-40)"
    labels = [
        tag("text", name, transform=f"translate({coordinate(column(i, n) + (0 if upright else 3))} {coordinate(y + 15)}){turn}")
        for i, name in names.items()
    ]
    return join(tag("path", class_="tick-mark", d=ticks), tag("g", labels, class_=f"ticks {'middle' if upright else 'end'}"))


def _described(report: Report, layers: Sequence[Layer]) -> str:
    """The picture in words."""
    known = [(x, g) for x in layers if x.snapshots and (g := gradient(x.snapshots[0])) is not None]
    if not known:
        return f"{len(layers)} layers; no gradient was measured."
    (first, start), (last, end) = known[0], known[-1]
    text = f"Over {len(layers)} layers the gradient norm goes from {number(start)} at {clean(first.name) or 'the model'} "
    text += f"to {number(end)} at {clean(last.name) or 'the model'} at the first measured step."
    several = nets(report.measurement)
    trend = gradient_trend(several[0])
    if trend.n > 2 and len(several) == 1:
        way = "shrinks" if trend.slope > 0 else "grows"
        text += f" From the output to the input it {way} by {number(abs(trend.slope))} decades per layer, {number(abs(trend.total))} in all"
        text += f" (limit of the rules: {number(allowed_decades(report))})."
    return text
