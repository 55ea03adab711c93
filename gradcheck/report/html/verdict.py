"""The top of a report: the verdict in words, and the scores."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from gradcheck.analysis.wording import counted
from gradcheck.judge.scores import BANDS, UNSCORED, Score, scores
from gradcheck.report.formatting import conditions, guesses, looked, summary, tree
from gradcheck.report.html.findings import diff
from gradcheck.report.html.markup import SIGNS, inline, join, sign, tag
from gradcheck.types.finding import Severity
from gradcheck.types.report import Report

RADIUS = 30.0
SENTENCES: dict[Severity, str] = {
    "error": "Trained as configured, this model is predicted to fail",
    "warning": "This model will train, at a cost",
    "info": "Nothing that was measured keeps this model from training well",
}
OF_A_LOG: dict[Severity, str] = {
    "error": "This run did not train, or not to its end",
    "warning": "This run trained, at a cost",
    "info": "Nothing in the log of this run shows that it trained badly",
}
IN_PART = "Judged in part: that nothing more was found proves nothing"
LEGEND = "▲ 0-49 an error   ■ 50-89 a warning   ● 90-100 advice at most"


def worst(report: Report) -> Severity | None:
    """The worst severity among the findings about the training: those about comments, the baseline and assertions do not count."""
    about = {f.severity for f in report.findings if f.code.rstrip("0123456789") not in UNSCORED}
    return next((s for s in BANDS if s in about), None)


def level(report: Report) -> str:
    """The sign that stands for the whole report."""
    if report.coverage.in_part and worst(report) != "error":
        return "warning"
    if worst(report) is None and not any(s.status == "passed" for s in report.rules):
        return "none"
    return worst(report) or "good"


def sentence(report: Report) -> str:
    """What the findings mean for the training."""
    severity, said = worst(report), SENTENCES if report.measurement.log is None else OF_A_LOG
    if report.coverage.in_part and severity in (None, "info"):
        return IN_PART
    if severity is not None:
        return said[severity]
    if level(report) == "none":
        return "No rule came to a verdict"
    return said["info"]


def verdict(report: Report, prefix: str, *, leads: bool = True) -> Markup:
    """The heading, each headline as a link, the counts, and what had to be assumed. `leads`: whether the page begins with it."""
    heads = tree(report.findings)
    links = []
    for i, (finding, below) in enumerate(heads):
        more = tag("span", f"and {counted(len(below), 'consequence')}", class_="soft") if below else None
        to = tag("a", finding.name, href=f"#{prefix}f{i}")
        links.append(tag("li", sign(finding.severity), tag("span", tag("b", to), " ", inline(finding.message), " ", more)))
    assumed = guesses(report)
    notes = [tag("li", inline(a.text)) for a in assumed]
    return join(
        tag("h2" if leads else "h4", sign(level(report)), tag("span", sentence(report)), id=f"{prefix}verdict" if leads else None),
        tag("p", f"{summary(report)} {conditions(report)}", class_="soft"),
        _in_part(report),
        tag("ul", links, class_="headlines") if links else None,
        tag("div", tag("p", "Not specified, so assumed:"), tag("ul", notes), class_="assumed") if notes else None,
    )


def cure(report: Report) -> Markup | None:
    """What to do first: the proved edits if there are some, else the first remedy of the worst finding."""
    kept = [o for o in report.outcomes if o.status == "kept"]
    edits = [diff(o.diff) for o in kept if o.diff]
    if edits:
        said = "; ".join(o.prescription.text for o in kept if o.diff)
        return tag("div", tag("p", tag("b", "What cures it: "), inline(said)), edits, class_="cure")
    first = next((f for f in report.findings if f.severity == worst(report) and f.remedies), None)
    if first is None or first.severity == "info":
        return None
    return tag("div", tag("p", tag("b", "What to do: "), inline(first.remedies[0].text)), class_="cure")


def _in_part(report: Report) -> Markup | None:
    """A box that says why rules could not look, and what to do."""
    part = report.coverage
    if not part.in_part:
        return None
    rows = [tag("li", inline(text)) for text in part.reasons] + [tag("li", tag("b", "Help: "), inline(text)) for text in part.remedies]
    return tag("div", tag("p", sign("warning"), f"Judged in part: {looked(part)}"), tag("ul", rows), class_="assumed in-part")


def gauges(report: Report) -> Markup:
    """The scores by category, and how they are made."""
    every = scores(report)
    if not every:
        return Markup("")
    dials = tag("ul", [_gauge(s) for s in every], class_="gauges")
    return tag("div", dials, tag("p", LEGEND, class_="legend"), _method(every), class_="scores")


def _gauge(score: Score) -> Markup:
    around = 2 * math.pi * RADIUS
    grade = _grade(score.value)
    share = (score.value or 0) / 100 * around
    track = tag("circle", cx=36, cy=36, r=RADIUS, class_="track")
    dash = f"{share:.1f} {around:.1f}"
    arc = tag("circle", cx=36, cy=36, r=RADIUS, class_=f"arc {grade}", stroke_dasharray=dash, transform="rotate(-90 36 36)")
    shown = "–" if score.value is None else str(score.value)
    words = "no score" if score.value is None else f"{score.value} of 100"
    dial = tag("svg", track, arc if score.value else None, viewBox="0 0 72 72", aria_hidden="true")
    number = tag("span", tag("span", shown, aria_hidden="true"), tag("span", words, class_="unseen"), class_="number")
    return tag("li", tag("div", dial, number, class_="dial"), tag("b", sign(grade), score.title), tag("small", _reason(score)))


def _grade(value: int | None) -> str:
    return "none" if value is None else "error" if value < 50 else "warning" if value < 90 else "good"


def _reason(score: Score) -> str:
    """The findings behind a score, or how many rules passed."""
    names = list(dict.fromkeys(f.name for f in score.findings if f.severity == score.worst))
    if names:
        return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    silent = f", {score.silent} could not look" if score.silent else ""
    return f"{counted(score.judged, 'rule')} passed{silent}" if score.judged else "no rule applied" + silent


def _method(every: Sequence[Score]) -> Markup:
    rows = [tag("li", tag("b", s.title), ": rules ", ", ".join(f"{f}…" for f in s.families)) for s in every]
    text = (
        "The most severe finding of a category sets the band: an error 0 to 49, a warning 50 to 89, advice 90 to 99; without findings it "
        "is 100. In the band, each finding of that severity leaves 0.9 / (1 + e) of what is there, where e is how many factors of ten the "
        "measured value lies beyond its limit (1 when it has no limit). Consequences count in their own category. A score sums up the "
        "findings and says nothing that they do not; between two runs, compare the measured values."
    )
    return tag("details", tag("summary", "How the scores are made"), tag("p", text), tag("ul", rows), class_="method")


def plain_sign(report: Report) -> str:
    return SIGNS[level(report)]
