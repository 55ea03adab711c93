"""A watched run over its steps: loss, gradient norm, learning rate and gauges, each with the limits of its rules."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.judge.registry import builtin_rules
from gradcheck.report.formatting import clean
from gradcheck.report.html.axes import linear_axis, log_axis, path
from gradcheck.report.html.curves import BOTTOM, HUES, LEFT, LOG_FROM, RIGHT, TOP, WIDTH, extremes, grid
from gradcheck.report.html.markup import coordinate, join, tag
from gradcheck.types.gauges import Gauge, Quantity
from gradcheck.types.report import Report
from gradcheck.types.training import UNBINNED

SHOWN = len(HUES)  # curves in a chart
NEAR = 0.1  # of a limit: what stays below it is drawn without the limit, which would press it flat


class _Chart(NamedTuple):
    quantity: Quantity
    title: str
    rule: str = ""  # whose limit is drawn
    limit: str = ""
    lowest: bool = False  # shown are the gauges with the lowest last values, else those with the highest peaks
    per_gauge: bool = False  # the limit is a share of an equal part: of the gauges of a layer


_CHARTS = (
    _Chart("attention-logit", "Largest attention logit", "WATCH003", "logit"),
    _Chart("attention-entropy", "Attention entropy, of log(keys)", lowest=True),
    _Chart("second-moment-lag", "g² over Adam's second moment, root mean", "WATCH001", "lag"),
    _Chart("stream", "Size of what normalizations are given"),
    _Chart("expert-load", "Load of experts", "WATCH005", "dead", lowest=True, per_gauge=True),
    _Chart("dormant-share", "Dormant units", "ACT007", "share"),
    _Chart("effective-rank", "Effective rank of the output layer's features", lowest=True),
    _Chart("log-z", "log Z of the output layer", "WATCH004", "log_z"),
    _Chart("loss-scale", "Factor of the GradScaler", "WATCH008", "scale"),
)


def gauges(report: Report) -> Markup | None:
    """None when nothing of the kind was measured."""
    m = report.measurement
    charts = [_gauge_chart(c, [g for g in m.gauges if g.quantity == c.quantity and len(g.values) > 1], m.steps) for c in _CHARTS]
    shown = [c for c in charts if c is not None]
    return tag("div", shown, class_="figures small") if shown else None


def _gauge_chart(chart: _Chart, found: Sequence[Gauge], steps: int) -> Markup | None:
    if not found:
        return None
    ranked = sorted(found, key=lambda g: g.values[-1] if chart.lowest else -g.peak)[:SHOWN]
    values = [v for g in ranked for v in g.values]
    limit = _limit(chart, sum(g.layer == ranked[0].layer for g in found))
    near = limit is not None and (max(values) > NEAR * limit or chart.lowest)
    scale = [*values, limit] if limit is not None and near else values
    axis = (log_axis if min(scale) > 0 and max(scale) / min(scale) >= LOG_FROM else linear_axis)(scale, BOTTOM, TOP)
    content = [*grid(axis, steps)]
    if limit is not None and near:
        content.append(tag("line", class_="limit", x1=LEFT, x2=RIGHT, y1=axis(limit), y2=axis(limit)))
        content.append(tag("text", f"limit {number(limit)}", class_="zone-name end", x=RIGHT, y=axis(limit) - 4))
    for hue, gauge in zip(HUES, ranked, strict=False):
        points = zip(gauge.steps, gauge.values, strict=False)
        places = [(LEFT + s / max(steps - 1, 1) * (RIGHT - LEFT), axis(v)) if math.isfinite(v) else None for s, v in points]
        content.append(tag("path", class_=f"curve {hue}", d=path(places)))
    which = f" {SHOWN} of {len(found)}, the {'lowest' if chart.lowest else 'highest'}" if len(found) > SHOWN else ""
    far = f" limit {number(limit)}" if limit is not None and not near else ""
    caption = tag("figcaption", tag("b", chart.title), tag("span", f"{which}{',' if which and far else ''}{far}", class_="soft"))
    name = tag("title", f"{chart.title} over the run")
    picture = tag("svg", name, content, viewBox=f"0 0 {coordinate(WIDTH)} 206", role="img", class_="curves")
    return tag(
        "figure", caption, picture, tag("ul", [_row(g, h) for g, h in zip(ranked, HUES, strict=False)], class_="runs"), class_="losses"
    )


def _row(gauge: Gauge, hue: str) -> Markup:
    """`blocks.0, head 3: 1.2 → 14`, with a sample of its line."""
    line = tag("svg", tag("path", class_=f"curve {hue}", d="M0 6 26 6"), viewBox="0 0 26 12", aria_hidden="true")
    said = f"{number(gauge.values[0])} → {number(gauge.values[-1])}"
    peak = f", at most {number(gauge.peak)} at step {gauge.peak_step}" if gauge.peak > 2 * max(abs(v) for v in gauge.values) else ""
    return tag("li", line, tag("span", clean(gauge.name or "the model")), " ", f"{said}{peak}")


def _limit(chart: _Chart, count: int) -> float | None:
    if not chart.rule:
        return None
    rule = next(r for r in builtin_rules() if r.code == chart.rule)
    return rule.limits[chart.limit].value / (count if chart.per_gauge else 1)


def course(report: Report) -> Markup | None:
    """The charts; None when the report is not of a watched run, or no loss was seen."""
    m = report.measurement
    if not m.probe.live or not m.probe.losses:
        return None
    rates = m.loop.rates if m.loop is not None and m.loop.rates else ()
    series = (
        ("Loss", loss_steps(len(m.probe.losses), m.steps), m.probe.losses),
        ("Norm of the gradient" + (", after clipping" if m.probe.clipped else ""), m.measured_steps, m.probe.gradient_norms),
        ("Learning rate", range(len(rates)), rates if len(set(rates)) > 1 else ()),
    )
    charts = [_chart(title, steps, values, HUES[i]) for i, (title, steps, values) in enumerate(series)]
    return join(tag("div", charts, class_="figures"), gauges(report))


def loss_steps(count: int, steps: int) -> list[float]:
    """The step of each of `count` losses of a run of so many steps: single ones first, then means over equally many steps."""
    if count >= steps or count <= UNBINNED:
        return list(range(count))
    width = (steps - UNBINNED) / (count - UNBINNED)
    return [float(i) if i < UNBINNED else UNBINNED + (i - UNBINNED + 1) * width - 1 for i in range(count)]


def _chart(title: str, steps: Sequence[float], values: Sequence[float], hue: str) -> Markup | None:
    points = list(zip(steps, values, strict=False))
    finite = [v for _, v in points if math.isfinite(v)]
    if len(finite) < 2:
        return None
    wide = min(finite) > 0 and max(finite) / min(finite) >= LOG_FROM
    axis, last = (log_axis if wide else linear_axis)(finite, BOTTOM, TOP), max(steps[: len(points)])
    shown = [points[i] for i in extremes(values[: len(points)])]
    places = [(LEFT + s / max(last, 1) * (RIGHT - LEFT), axis(v)) if math.isfinite(v) else None for s, v in shown]
    line = tag("path", class_=f"curve {hue}", d=path(places))
    end = number(values[len(points) - 1]) if math.isfinite(values[len(points) - 1]) else "not finite"
    words = f"{number(finite[0])} → {end}, between {number(min(finite))} and {number(max(finite))}"
    name = tag("title", f"{title} of the watched run: {words}")
    picture = tag("svg", name, grid(axis, round(last) + 1), line, viewBox=f"0 0 {coordinate(WIDTH)} 206", role="img", class_="curves")
    return tag("figure", tag("figcaption", tag("b", title), tag("span", f" {words}", class_="soft")), picture, class_="losses")
