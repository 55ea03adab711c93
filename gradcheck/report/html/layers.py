"""The table of layers: every number that the charts show, and what each layer costs."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.report.html.markup import join, name, tag, text
from gradcheck.report.html.signal import Number, gradient, marks, output, updates, zeros
from gradcheck.report.html.theme import SIGNS
from gradcheck.types.finding import Finding
from gradcheck.types.layers import Layer
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
