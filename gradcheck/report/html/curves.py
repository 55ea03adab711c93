"""Loss curves: of the probe and its experiments, and of what was tried against the findings.

A group of curves is one chart. Anything else that trains models adds its groups to `groups`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.judge.registry import builtin_rules
from gradcheck.report.formatting import clean
from gradcheck.report.html.axes import Axis, crossing, linear_axis, log_axis, path
from gradcheck.report.html.markup import Child, coordinate, join, tag
from gradcheck.types.gauges import Gauge, Quantity
from gradcheck.types.report import Report
from gradcheck.types.training import UNBINNED, Run

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 480.0, 50.0, 472.0, 14.0, 184.0
BUCKETS = 75  # a long curve is shown by the lowest and highest loss of each
TALLEST = 3.0  # times the highest starting loss: what is above is cut off, and the legend says where it ends
LOG_FROM = 30.0  # highest over lowest loss from which on the scale is logarithmic
HUES = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class CurveGroup:
    """Curves on one pair of axes. `level`: a loss to compare with, and its name."""

    title: str
    runs: tuple[tuple[str, Run], ...]  # label, run
    level: tuple[float, str] | None = None
    untreated: int = 0  # this many runs at the start are untreated, the others treated: a colour each, a dash pattern per seed

    def style(self, i: int) -> str:
        """Classes of the i-th curve."""
        if self.untreated:
            return f"curve {HUES[i >= self.untreated]} dash{i % self.untreated % 4}"
        return f"curve {HUES[i % len(HUES)]} dash{i % 4}"


def groups(report: Report) -> list[CurveGroup]:
    """All charts of the report, those without a loss left out. The course of a watched run is its own section."""
    m = report.measurement
    chance = (m.chance, "best constant prediction") if m.chance is not None else None
    probes = [("probe" if len(report.measurements) == 1 else f"probe, seed {x.seed}", x.probe) for x in report.measurements]
    found = [] if m.probe.live else [CurveGroup("Probe training, as configured", tuple(probes), chance)]
    if m.experiments:
        found.append(CurveGroup("Experiments after the probe failed", (("probe", m.probe), *((r.name, r) for r in m.experiments)), chance))
    if m.regularization is not None and m.regularization.runs:
        lifted = [(r.name, r) for r in m.regularization.runs]
        level = (m.regularization.chance, "best constant prediction") if m.regularization.chance is not None else None
        found.append(CurveGroup("Without the regularization: loss of the data alone", tuple(lifted), level))
    if m.small_epsilon is not None:
        found.append(CurveGroup("With Adam's usual epsilon", (("probe", m.probe), ("usual epsilon", m.small_epsilon)), chance))
    if report.proof is not None and report.proof.base and report.proof.treated:
        found.append(_paired("What was kept, together", report.proof.base, report.proof.treated))
    for o in report.outcomes:
        together = report.proof is not None and report.proof.treated == o.treated
        if o.base and o.treated and not together:
            found.append(_paired(o.prescription.treatment, o.base, o.treated))
    return [g for g in found if any(math.isfinite(x) for _, r in g.runs for x in r.losses)]


def _paired(title: str, base: Sequence[Run], treated: Sequence[Run]) -> CurveGroup:
    """Untreated runs and treated ones of the same seeds."""
    runs = [(f"without, seed {i}", r) for i, r in enumerate(base)] + [(f"with, seed {i}", r) for i, r in enumerate(treated)]
    return CurveGroup(f"{title}: without and with", tuple(runs), untreated=len(base))


def curve_chart(group: CurveGroup) -> Markup:
    """A chart with a legend that says where each curve ends."""
    runs = [(label, r) for label, r in group.runs if r.losses]
    steps = max(len(r.losses) for _, r in runs)
    axis = _axis(group, [r for _, r in runs])
    content = [*grid(axis, steps), *(level(*group.level, axis) if group.level is not None else ())]
    for i, (_, run) in enumerate(runs):
        pass_length = _pass(run)
        if pass_length > 1 and len(runs) == 1:
            content.append(_losses("curve raw first", run.losses, steps, axis))
        content.append(_losses(group.style(i), _smooth(run.losses, pass_length), steps, axis))
    legend = [row(group.style(i), tag("b", label), _ending(run)) for i, (label, run) in enumerate(runs)]
    passes = ", averaged over each pass through the batches" if any(_pass(r) > 1 for _, r in runs) else ""
    return figure(group.title, passes, f"Losses: {clean(group.title)}", content, legend)


def figure(heading: str, note: str, described: str, content: Child, legend: Sequence[Markup] = ()) -> Markup:
    """A chart with its heading, what stands beside that, and the rows of its legend; `described`: for those who cannot see it."""
    picture = tag("svg", tag("title", described), content, viewBox=f"0 0 {coordinate(WIDTH)} 206", role="img", class_="curves")
    head = tag("figcaption", tag("b", heading), tag("span", note, class_="soft"))
    return tag("figure", head, picture, tag("ul", legend, class_="runs") if legend else None, class_="losses")


def row(style: str, label: Markup, said: str) -> Markup:
    """`probe: 2.31 → 2.29`, with a sample of its line."""
    line = tag("path", class_=style, d="M0 6 26 6")
    return tag("li", tag("svg", line, viewBox="0 0 26 12", aria_hidden="true"), label, " ", said)


def curve(style: str, steps: Iterable[float], values: Iterable[float], last: float, axis: Axis) -> Markup:
    """A line through values at steps, the last of which is at the right edge; interrupted where they are not finite."""
    return tag("path", class_=style, d=path(placed(steps, values, last, axis)))


def placed(steps: Iterable[float], values: Iterable[float], last: float, axis: Axis) -> list[tuple[float, float] | None]:
    places = ((LEFT + s / max(last, 1) * (RIGHT - LEFT), v) for s, v in zip(steps, values, strict=False))
    return [(x, axis(v)) if math.isfinite(v) else None for x, v in places]


def level(value: float, words: str, axis: Axis) -> tuple[Markup, Markup]:
    """A line to compare with, and its name."""
    y = axis(value)
    line = tag("line", class_="limit", x1=LEFT, x2=RIGHT, y1=y, y2=y)
    return line, tag("text", f"{words} {number(value)}", class_="zone-name end", x=RIGHT, y=y - 4)


def axis_for(values: Sequence[float]) -> Axis:
    """Logarithmic for values far apart."""
    return (log_axis if min(values) > 0 and max(values) / min(values) >= LOG_FROM else linear_axis)(values, BOTTOM, TOP)


def _pass(run: Run) -> int:
    """Steps of one pass over the run's batches, over which its curve is averaged; 1 where that would leave little."""
    return run.batches if 1 < run.batches <= len(run.losses) // 8 else 1


def _smooth(losses: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` steps, fewer at the start; not finite where one of them is not."""
    return [sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i + 1 - window) : i + 1])]


def _axis(group: CurveGroup, runs: Sequence[Run]) -> Axis:
    """Around the finite losses, but not far above where the curves start."""
    starts = [r.losses[0] for r in runs if math.isfinite(r.losses[0])]
    ceiling = max(starts, default=math.inf) * TALLEST
    shown = [x for r in runs for x in r.losses if math.isfinite(x) and (ceiling <= 0 or x <= ceiling)]
    shown += [group.level[0]] if group.level is not None else []
    return axis_for(shown)


def grid(axis: Axis, steps: int) -> list[Markup]:
    """Lines and labels of the losses, and of the first, the middle and the last step."""
    rows: list[Markup] = []
    rows.append(tag("path", class_="grid", d=crossing((axis(value) for value, _ in axis.ticks()), LEFT, RIGHT)))
    rows += [tag("text", label, class_="tick end", x=LEFT - 6, y=axis(value) + 4) for value, label in axis.ticks()]
    for share in (0.0, 0.5, 1.0):
        step = round(share * (steps - 1))
        anchor = "tick" if not share else "tick end" if share == 1 else "tick middle"
        rows.append(tag("text", f"step {step}", class_=anchor, x=LEFT + share * (RIGHT - LEFT), y=BOTTOM + 17))
        if steps < 3:
            break
    return rows


def _losses(style: str, losses: Sequence[float], steps: int, axis: Axis) -> Markup:
    shown = extremes(losses)
    return curve(style, shown, [losses[i] for i in shown], steps - 1, axis)


def extremes(losses: Sequence[float]) -> list[int]:
    """Positions to draw: all, or of each bucket the lowest and highest loss, so that no spike is lost; and both ends."""
    n = len(losses)
    if n <= 2 * BUCKETS:
        return list(range(n))
    kept = {0, n - 1}
    for b in range(BUCKETS):
        part = range(b * n // BUCKETS, (b + 1) * n // BUCKETS)
        kept |= {min(part, key=lambda i: losses[i]), max(part, key=lambda i: losses[i])}
    return sorted(kept)


def _ending(run: Run) -> str:
    how = {"non-finite": ", then not finite", "raised": ", then it raised", "budget": " when time was up"}.get(run.ended, "")
    finite = [x for x in run.losses if math.isfinite(x)]
    return f"{number(finite[0])} → {number(finite[-1])}{how}" if finite else f"never finite{how}"


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
    axis = axis_for(scale)
    content = [*grid(axis, steps), *(level(limit, "limit", axis) if limit is not None and near else ())]
    content += [curve(f"curve {hue}", g.steps, g.values, steps - 1, axis) for hue, g in zip(HUES, ranked, strict=False)]
    which = f" {SHOWN} of {len(found)}, the {'lowest' if chart.lowest else 'highest'}" if len(found) > SHOWN else ""
    far = f" limit {number(limit)}" if limit is not None and not near else ""
    note = f"{which}{',' if which and far else ''}{far}"
    legend = [row(f"curve {hue}", tag("span", clean(g.name or "the model")), _course(g)) for hue, g in zip(HUES, ranked, strict=False)]
    return figure(chart.title, note, f"{chart.title} over the run", content, legend)


def _course(gauge: Gauge) -> str:
    """`1.2 → 14`, and a peak between them."""
    peak = f", at most {number(gauge.peak)} at step {gauge.peak_step}" if gauge.peak > 2 * max(abs(v) for v in gauge.values) else ""
    return f"{number(gauge.values[0])} → {number(gauge.values[-1])}{peak}"


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
    axis, last = axis_for(finite), max(steps[: len(points)])
    shown = [points[i] for i in extremes(values[: len(points)])]
    line = curve(f"curve {hue}", (s for s, _ in shown), (v for _, v in shown), last, axis)
    end = number(values[len(points) - 1]) if math.isfinite(values[len(points) - 1]) else "not finite"
    words = f"{number(finite[0])} → {end}, between {number(min(finite))} and {number(max(finite))}"
    return figure(title, f" {words}", f"{title} of the watched run: {words}", [*grid(axis, round(last) + 1), line])
