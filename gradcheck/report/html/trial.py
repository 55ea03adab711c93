"""A trial: how remedies fared against the untreated model, ranked and in words, their curves side by side, and the strengths searched."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from gradcheck.analysis.wording import counted, number
from gradcheck.report.html.axes import Axis, path
from gradcheck.report.html.curves import HUES, TALLEST, axis_for, curve, figure, grid, placed, row
from gradcheck.report.html.findings import diff
from gradcheck.report.html.markup import Child, inline, join, sign, table, tag
from gradcheck.types.trial import Curve, Entry, EntryStatus, SearchPoint, TrialResult

MOST_CURVES = len(HUES)
# Status -> sign, words.
WORDS: Mapping[EntryStatus, tuple[str, str]] = {
    "untreated": ("none", "untreated"),
    "helps": ("good", "helps"),
    "promising": ("info", "promising, not proven"),
    "undecided": ("info", "better, perhaps by chance"),
    "no-difference": ("none", "no difference beyond noise"),
    "worse": ("error", "worse"),
    "diverged": ("error", "diverged"),
    "inapplicable": ("none", "cannot be applied here"),
    "failed": ("error", "failed"),
    "untried": ("none", "not tried"),
}


def trial(result: TrialResult) -> Markup:
    """The curves, the recommended edit, the ranking, what each remedy did, and the strengths that were searched."""
    heads = ("remedy", "verdict", f"{result.metric}: difference", "interval", "seeds", "at the end")
    samples = f"{result.samples[0]} samples to train on, {result.samples[1]} to validate on" if any(result.samples) else ""
    size = ", ".join(part for part in (f"{result.steps} steps", samples, f"{result.seconds:.1f} s") if part)
    return join(
        _charts(result),
        join(tag("h4", "The recommended edit"), diff(result.diff)) if result.diff else None,
        table(heads, map(_row, (result.base, *result.entries))),
        tag("p", f"Differences are to the untreated model on the same seeds. {size}.", class_="soft"),
        _in_words(result),
        _together(result),
        _searched(result.searched),
    )


def _in_words(result: TrialResult) -> Markup | None:
    """What every remedy that ran did, one sentence each."""
    said = [e.text for e in result.entries if e.text and e.seeds]
    sentences = tag("ul", [tag("li", inline(text)) for text in said], class_="remedies")
    return tag("details", tag("summary", "What each did, in words"), sentences) if said else None


def _together(result: TrialResult) -> Markup | None:
    """Whether effects add up, and which part of the recommendation cannot be written into the source."""
    rows = [
        tag(
            "li",
            tag("b", " + ".join(x.names)),
            f" {x.verdict}: {number(x.together)} together, {number(x.excess)} beyond the sum of each alone",
        )
        for x in result.interactions
    ]
    rows += [tag("li", tag("b", remedy), " is not in the edit: ", why) for remedy, why in result.unwritten]
    return tag("ul", rows, class_="remedies") if rows else None


def _row(e: Entry) -> tuple[Child, ...]:
    level, words = WORDS[e.status]
    said = f"{words}: {e.reason}" if e.reason else words
    difference = tag("b", number(e.effect.difference)) if e.effect else ""
    known = e.effect is not None and math.isfinite(e.effect.low) and math.isfinite(e.effect.high)  # one seed has no interval
    interval = f"{number(e.effect.low)} to {number(e.effect.high)}" if e.effect and known else ""
    scores = ", ".join(f"{s.metric} {number(s.median)}" for s in e.scores[:2])
    return tag("b", e.title or e.name), join(sign(level), said), difference, interval, str(e.seeds or ""), scores


def _drawn(result: TrialResult) -> list[Entry]:
    """The untreated model and the best entries that ran: each keeps its colour in both charts."""
    return [e for e in (result.base, *result.entries) if any(map(math.isfinite, (*e.validation.median, *e.training.median)))][:MOST_CURVES]


def _charts(result: TrialResult) -> Markup | None:
    """Training and validation loss, side by side where there is room."""
    both = [
        _chart(result, "Training", [e.training for e in _drawn(result)]),
        _chart(result, "Validation", [e.validation for e in _drawn(result)]),
    ]
    return tag("div", both, class_="figures") if any(both) else None


def _chart(result: TrialResult, kind: str, curves: Sequence[Curve]) -> Markup | None:
    """Median over the seeds of the untreated model and the best entries, the range over the seeds as a band."""
    entries = _drawn(result)
    drawn = [(i, c) for i, c in enumerate(curves) if any(map(math.isfinite, c.median))]
    if not drawn:
        return None
    last = max(c.steps[-1] for _, c in drawn)
    axis = curve_axis([c for _, c in drawn])
    lines = [mark for i, c in drawn for mark in _line(i, c, last, axis)]
    seeds = counted(max(e.seeds for e in entries), "seed")
    title = f"{kind} loss, median over {seeds}; band: lowest to highest"
    legend = [row(_style(i), tag("b", entries[i].title or entries[i].name), f"{number(c.median[-1])}") for i, c in drawn]
    return figure(title, "", title, [*grid(axis, last + 1), *lines], legend)


def curve_axis(curves: Sequence[Curve]) -> Axis:
    """Around the medians, but not far above where the curves start: one that blows up would flatten the others."""
    values = [v for c in curves for v in c.median if math.isfinite(v)]
    ceiling = TALLEST * max((c.median[0] for c in curves if math.isfinite(c.median[0])), default=math.inf)
    shown = [v for v in values if ceiling <= 0 or v <= ceiling] or values
    return axis_for(shown)


def _line(i: int, c: Curve, last: int, axis: Axis) -> tuple[Markup, Markup]:
    ends = (*placed(c.steps, c.high, last, axis), *reversed(placed(c.steps, c.low, last, axis)))
    edge = [p for p in ends if p is not None]
    band = tag("path", class_=f"range {HUES[i]}", d=path(edge) + "Z" if edge else "")
    return band, curve(_style(i), c.steps, c.median, last, axis)


def _style(i: int) -> str:
    return f"curve {HUES[i]} dash{i % 4}"


def _searched(points: Sequence[SearchPoint]) -> Markup | None:
    """Every strength that was tried, those of a remedy together, best first."""
    if not points:
        return None
    known = sorted(points, key=lambda p: (p.remedy, math.inf if p.value is None else p.value))
    shown = table(("remedy", "strength", "loss", "state"), map(_strength, known))
    return tag("details", tag("summary", f"{counted(len(points), 'strength')} tried"), shown)


def _strength(p: SearchPoint) -> tuple[Child, ...]:
    settings = ", ".join(f"{name} {number(value)}" for name, value in p.settings.items())
    return tag("b", p.remedy), settings, "" if p.value is None else number(p.value), "" if p.state == "complete" else p.state
