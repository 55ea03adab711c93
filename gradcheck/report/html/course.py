"""A watched run over its steps: loss, gradient norm and learning rate, as far as they were seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.report.html.axes import linear_axis, log_axis, path
from gradcheck.report.html.curves import BOTTOM, HUES, LEFT, LOG_FROM, RIGHT, TOP, WIDTH, extremes, grid
from gradcheck.report.html.gauges import gauges
from gradcheck.report.html.markup import coordinate, join, tag
from gradcheck.types.report import Report
from gradcheck.types.training import UNBINNED


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
