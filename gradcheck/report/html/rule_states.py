"""The rules that found nothing, and why: passed, not applicable, not measured, suppressed, crashed."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from gradcheck.judge.registry import builtin_rules
from gradcheck.report.html.markup import join, tag
from gradcheck.report.html.theme import sign
from gradcheck.types.finding import RuleState, RuleStatus
from gradcheck.types.report import Report

# Status -> sign, title, what it means; in the order of the page.
GROUPS: Mapping[RuleStatus, tuple[str, str, str]] = {
    "crashed": ("error", "Crashed", "the rule itself raised an error: please report it"),
    "not-measured": ("warning", "Not measured", "what these rules judge could not be measured, so they say nothing"),
    "suppressed": ("none", "Suppressed", "found, and silenced by a comment or by the settings"),
    "passed": ("good", "Passed", "measured, and within the limits"),
    "not-applicable": ("none", "Not applicable", "the model or the training has nothing for them to judge"),
}


def states(report: Report) -> Markup:
    return join(_known(report), (_group(report, status) for status in GROUPS))


def _known(report: Report) -> Markup | None:
    """Findings that the baseline lists."""
    if not report.known:
        return None
    rows = [tag("li", tag("b", f.name), " ", tag("code", f.code), " ", f.message) for f in report.known]
    head = (
        sign("none"),
        tag("b", f"Known ({len(rows)})"),
        tag("span", "found, listed in the baseline, and no worse than it says", class_="gist"),
    )
    return tag("details", tag("summary", *head), tag("ul", rows, class_="rules"), class_="state")


def _group(report: Report, status: RuleStatus) -> Markup | None:
    rules = [s for s in report.rules if s.status == status]
    silenced = [f for f in report.suppressed if status == "suppressed"]
    count = len(silenced) if silenced else len(rules)
    if not count:
        return None
    level, title, meaning = GROUPS[status]
    rows = [tag("li", tag("b", f.name), " ", tag("code", f.code), " ", f.message) for f in silenced] or _rules(rules)
    head = tag("summary", sign(level), tag("b", f"{title} ({count})"), tag("span", meaning, class_="gist"))
    return tag("details", head, tag("ul", rows, class_="rules"), class_="state", open=status == "crashed")


def _rules(states: Sequence[RuleState]) -> list[Markup]:
    """A row for each reason, with all rules that have it."""
    summaries = {r.code: r.summary for r in builtin_rules()}
    said: dict[str, list[RuleState]] = {}
    for s in states:
        said.setdefault(s.reason or (summaries.get(s.code, "") if s.status == "passed" else ""), []).append(s)
    return [
        tag("li", [(", " if i else "", tag("b", s.name), " ", tag("code", s.code)) for i, s in enumerate(of)], " ", why)
        for why, of in said.items()
    ]
