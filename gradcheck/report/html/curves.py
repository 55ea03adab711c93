"""Loss curves: of the probe and its experiments, and of what was tried against the findings.

A group of curves is one chart. Anything else that trains models adds its groups to `groups`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gradcheck.analysis.wording import number
from gradcheck.report.formatting import clean
from gradcheck.report.html.axes import Axis, crossing, linear_axis, log_axis, path
from gradcheck.report.html.markup import coordinate, tag
from gradcheck.types.report import Report
from gradcheck.types.training import Run

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 480.0, 50.0, 472.0, 14.0, 184.0
BUCKETS = 75  # a long curve is shown by the lowest and highest loss of each
TALLEST = 3.0  # times the highest starting loss: what is above is cut off, and the legend says where it ends
LOG_FROM = 30.0  # highest over lowest loss from which on the scale is logarithmic
HUES = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Group:
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


def groups(report: Report) -> list[Group]:
    """All charts of the report, those without a loss left out. The course of a watched run is its own section."""
    m = report.measurement
    chance = (m.chance, "best constant prediction") if m.chance is not None else None
    probes = [("probe" if len(report.measurements) == 1 else f"probe, seed {x.seed}", x.probe) for x in report.measurements]
    found = [] if m.probe.live else [Group("Probe training, as configured", tuple(probes), chance)]
    if m.experiments:
        found.append(Group("Experiments after the probe failed", (("probe", m.probe), *((r.name, r) for r in m.experiments)), chance))
    if m.regularization is not None and m.regularization.runs:
        lifted = [(r.name, r) for r in m.regularization.runs]
        level = (m.regularization.chance, "best constant prediction") if m.regularization.chance is not None else None
        found.append(Group("Without the regularization: loss of the data alone", tuple(lifted), level))
    if m.small_epsilon is not None:
        found.append(Group("With Adam's usual epsilon", (("probe", m.probe), ("usual epsilon", m.small_epsilon)), chance))
    if report.proof is not None and report.proof.base and report.proof.treated:
        found.append(_paired("What was kept, together", report.proof.base, report.proof.treated))
    for o in report.outcomes:
        together = report.proof is not None and report.proof.treated == o.treated
        if o.base and o.treated and not together:
            found.append(_paired(o.prescription.treatment, o.base, o.treated))
    return [g for g in found if any(math.isfinite(x) for _, r in g.runs for x in r.losses)]


def _paired(title: str, base: Sequence[Run], treated: Sequence[Run]) -> Group:
    """Untreated runs and treated ones of the same seeds."""
    runs = [(f"without, seed {i}", r) for i, r in enumerate(base)] + [(f"with, seed {i}", r) for i, r in enumerate(treated)]
    return Group(f"{title}: without and with", tuple(runs), untreated=len(base))


def curve_chart(group: Group) -> Markup:
    """A chart with a legend that says where each curve ends."""
    runs = [(label, r) for label, r in group.runs if r.losses]
    steps = max(len(r.losses) for _, r in runs)
    axis = _axis(group, [r for _, r in runs])
    content = [*grid(axis, steps)]
    if group.level is not None:
        y = axis(group.level[0])
        content.append(tag("line", class_="limit", x1=LEFT, x2=RIGHT, y1=y, y2=y))
        content.append(tag("text", f"{group.level[1]} {number(group.level[0])}", class_="zone-name end", x=RIGHT, y=y - 4))
    for i, (_, run) in enumerate(runs):
        pass_length = _pass(run)
        if pass_length > 1 and len(runs) == 1:
            content.append(tag("path", class_="curve raw first", d=path(_points(run.losses, steps, axis))))
        content.append(tag("path", class_=group.style(i), d=path(_points(_smooth(run.losses, pass_length), steps, axis))))
    title = f"Losses: {clean(group.title)}"
    picture = tag("svg", tag("title", title), content, viewBox=f"0 0 {coordinate(WIDTH)} 206", role="img", class_="curves")
    legend = tag("ul", [_legend(group.style(i), label, run) for i, (label, run) in enumerate(runs)], class_="runs")
    passes = ", averaged over each pass through the batches" if any(_pass(r) > 1 for _, r in runs) else ""
    return tag("figure", tag("figcaption", tag("b", group.title), tag("span", passes, class_="soft")), picture, legend, class_="losses")


def _pass(run: Run) -> int:
    """Steps of one pass over the run's batches, over which its curve is averaged; 1 where that would leave little."""
    return run.batches if 1 < run.batches <= len(run.losses) // 8 else 1


def _smooth(losses: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` steps, fewer at the start; not finite where one of them is not."""
    return [sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i + 1 - window) : i + 1])]


def _axis(group: Group, runs: Sequence[Run]) -> Axis:
    """Around the finite losses, but not far above where the curves start."""
    starts = [r.losses[0] for r in runs if math.isfinite(r.losses[0])]
    ceiling = max(starts, default=math.inf) * TALLEST
    shown = [x for r in runs for x in r.losses if math.isfinite(x) and (ceiling <= 0 or x <= ceiling)]
    shown += [group.level[0]] if group.level is not None else []
    if min(shown) > 0 and max(shown) / min(shown) >= LOG_FROM:
        return log_axis(shown, BOTTOM, TOP)
    return linear_axis(shown, BOTTOM, TOP)


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


def _points(losses: Sequence[float], steps: int, axis: Axis) -> list[tuple[float, float] | None]:
    def place(i: int) -> tuple[float, float] | None:
        x = LEFT + i / max(steps - 1, 1) * (RIGHT - LEFT)
        return (x, axis(losses[i])) if math.isfinite(losses[i]) else None

    return [place(i) for i in extremes(losses)]


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


def _legend(style: str, label: str, run: Run) -> Markup:
    """`probe: 2.31 → 2.29`, with a sample of its line."""
    line = tag("path", class_=style, d="M0 6 26 6")
    how = {"non-finite": ", then not finite", "raised": ", then it raised", "budget": " when time was up"}.get(run.ended, "")
    finite = [x for x in run.losses if math.isfinite(x)]
    said = f"{number(finite[0])} → {number(finite[-1])}{how}" if finite else f"never finite{how}"
    return tag("li", tag("svg", line, viewBox="0 0 26 12", aria_hidden="true"), tag("b", label), " ", said)
