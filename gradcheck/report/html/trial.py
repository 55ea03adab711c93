"""A trial: how remedies fared against the untreated model, ranked, with their curves on the validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gradcheck.nouns.trial import Curve, Entry, EntryStatus, TrialResult
from gradcheck.report.html.axes import Axis, linear_axis, path
from gradcheck.report.html.curves import BOTTOM, HUES, LEFT, RIGHT, TOP, WIDTH, grid
from gradcheck.report.html.markup import Markup, coordinate, join, tag
from gradcheck.report.html.rule_text import inline
from gradcheck.report.html.shapes import sign
from gradcheck.report.html.treatments import diff
from gradcheck.report.words import counted, number

MOST_CURVES = len(HUES)
# Status -> sign, words.
WORDS: Mapping[EntryStatus, tuple[str, str]] = {
    "untreated": ("none", "untreated"),
    "helps": ("good", "helps"),
    "promising": ("info", "promising, not proven"),
    "no-difference": ("none", "no difference beyond noise"),
    "worse": ("error", "worse"),
    "diverged": ("error", "diverged"),
    "inapplicable": ("none", "cannot be applied here"),
    "failed": ("error", "failed"),
    "untried": ("none", "not tried"),
}


def trial(result: TrialResult) -> Markup:
    """The verdict, the ranking, the curves and the recommended edit."""
    head = tag("tr", [tag("th", h, scope="col") for h in ("remedy", "", f"{result.metric}: difference", "interval", "seeds", "at the end")])
    table = tag("table", tag("thead", head), tag("tbody", [_row(e) for e in (*result.entries, result.base)]))
    samples = f"{result.samples[0]} samples to train on, {result.samples[1]} to validate on" if any(result.samples) else ""
    size = ", ".join(part for part in (f"{result.steps} steps", samples, f"{result.seconds:.1f} s") if part)
    return join(
        tag("p", inline(result.verdict), class_="message"),
        tag("div", table, class_="wide"),
        tag("p", f"Differences are to the untreated model on the same seeds. {size}.", class_="soft"),
        _together(result),
        _curves(result),
        join(tag("h4", "The recommended edit"), diff(result.diff)) if result.diff else None,
    )


def _together(result: TrialResult) -> Markup | None:
    """Whether effects add up, and what of the recommendation cannot be written into the source."""
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


def _row(e: Entry) -> Markup:
    level, words = WORDS[e.status]
    said = f"{words}: {e.reason}" if e.reason else words
    difference = tag("b", number(e.effect.difference)) if e.effect else ""
    known = e.effect is not None and math.isfinite(e.effect.low) and math.isfinite(e.effect.high)  # one seed has no interval
    interval = f"{number(e.effect.low)} to {number(e.effect.high)}" if e.effect and known else ""
    scores = ", ".join(f"{s.metric} {number(s.median)}" for s in e.scores[:2])
    cells = (tag("b", e.title or e.name), join(sign(level), said), difference, interval, str(e.seeds or ""), scores)
    return tag("tr", [tag("td", cell) for cell in cells])


def _curves(result: TrialResult) -> Markup | None:
    """Median over the seeds of the untreated model and the best entries, the range over the seeds as a band."""
    drawn = [(e, c) for e in (result.base, *result.entries) if any(map(math.isfinite, (c := _curve(e)).median))][:MOST_CURVES]
    if not drawn:
        return None
    last = max(c.steps[-1] for _, c in drawn)
    axis = linear_axis([v for _, c in drawn for v in c.median], BOTTOM, TOP)
    lines = [mark for i, (_, c) in enumerate(drawn) for mark in _line(i, c, last, axis)]
    seeds = counted(max(e.seeds for e, _ in drawn), "seed")
    title = f"{'Validation' if result.base.validation.steps else 'Training'} loss, median over {seeds}; band: lowest to highest"
    content = (tag("title", title), grid(axis, last + 1), lines)
    picture = tag("svg", content, viewBox=f"0 0 {coordinate(WIDTH)} 206", role="img", class_="curves")
    legend = tag("ul", [_legend(i, e, c) for i, (e, c) in enumerate(drawn)], class_="runs")
    return tag("figure", tag("figcaption", tag("b", title)), picture, legend, class_="losses alone")


def _curve(e: Entry) -> Curve:
    return e.validation if e.validation.steps else e.training


def _line(i: int, c: Curve, last: int, axis: Axis) -> tuple[Markup, Markup]:
    def points(values: Sequence[float]) -> list[tuple[float, float] | None]:
        places = (LEFT + step / max(last, 1) * (RIGHT - LEFT) for step in c.steps)
        return [(x, axis(v)) if math.isfinite(v) else None for x, v in zip(places, values, strict=True)]

    edge = [p for p in (*points(c.high), *reversed(points(c.low))) if p is not None]
    band = tag("path", class_=f"range {HUES[i]}", d=path(edge) + "Z" if edge else "")
    return band, tag("path", class_=f"curve {HUES[i]} dash{i % 4}", d=path(points(c.median)))


def _legend(i: int, e: Entry, c: Curve) -> Markup:
    line = tag("svg", tag("path", class_=f"curve {HUES[i]} dash{i % 4}", d="M0 6 26 6"), viewBox="0 0 26 12", aria_hidden="true")
    return tag("li", line, tag("b", e.title or e.name), f" {number(c.median[-1])}")
