"""The findings: what is wrong, where, by which numbers, what helps, what was tried against it, and what follows from it."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from rich.text import Text

from gradcheck.analysis.wording import counted, number, reason
from gradcheck.judge.registry import builtin_rules, find_rule
from gradcheck.report.formatting import GUTTER, HEALTHY, apart, collapse, snippet, tree
from gradcheck.report.html.markup import Child, inline, join, name, page_html, sign, table, tag, text
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.fix import Change, Effect, Outcome, OutcomeStatus
from gradcheck.types.location import Location
from gradcheck.types.report import Report

# Status -> sign, words.
WORDS: Mapping[OutcomeStatus, tuple[str, str]] = {
    "kept": ("good", "tried, and it helps"),
    "not-needed": ("none", "not needed"),
    "not-verified": ("warning", "tried, and it helps no more than noise"),
    "worse": ("error", "tried, and it made something worse"),
    "inapplicable": ("none", "cannot be applied here"),
    "failed": ("error", "tried, and it failed"),
    "advice": ("none", "advice"),
    "untried": ("none", "not tried"),
}


def treatments(report: Report, finding: Finding) -> Markup | None:
    """Outcomes of the treatments meant to cure this finding."""
    mine = [o for o in report.outcomes if finding.code in o.prescription.findings]
    return join(tag("h4", "What was tried"), [_outcome(o) for o in mine]) if mine else None


def proof(report: Report) -> Markup | None:
    """Everything that was kept, together, against the untreated model."""
    p = report.proof
    if p is None:
        return None
    parts = [f"cured: {', '.join(p.cured)}"] if p.cured else []
    parts += [f"left: {', '.join(p.left)}"] if p.left else []
    how = "trained in pairs with the untreated model on seeds that had no part in choosing it"
    said = tag("p", f"All that was kept, together, {how if p.effect else 'in a run of the edited script'}:")
    effect = effect_sentence(p.effect) if p.effect else None
    return tag("div", said, effect, tag("p", "; ".join(parts)) if parts else None, class_="proof")


def _outcome(o: Outcome) -> Markup:
    p = o.prescription
    level, words = WORDS[o.status]
    head = (sign(level), tag("b", inline(p.text)), " ", tag("span", p.applicability, class_=f"badge {p.applicability}"))
    said = inline(f"{words}: {o.reason}" if o.reason else words)
    note = tag("p", "Checkpoints: ", inline(p.checkpoint)) if p.checkpoint else None
    body = (_changes(o), effect_sentence(o.effect) if o.effect else None, _codes(o), note, diff(o.diff) if o.diff else None)
    return tag("div", tag("p", *head), tag("p", said, class_="soft"), *body, class_="outcome")


def _changes(o: Outcome) -> Markup | None:
    if not o.changes:
        return None
    return table(("measured", "before", "after", "needs", "at"), map(_change, o.changes))


def _change(c: Change) -> tuple[Child, ...]:
    after = "no longer found" if c.after is None else number(c.after)
    needs = f"{HEALTHY.get(c.comparison, 'not')} {number(c.limit)}" if c.limit is not None else "–"
    unit = tag("span", f", {c.unit}", class_="soft") if c.unit else None
    at = name(c.layer) if c.layer is not None else "–"
    return join(c.quantity, unit), number(c.before), tag("b", after), needs, at


def effect_sentence(e: Effect) -> Markup:
    """The paired difference with its interval, in one sentence."""
    seeds = counted(e.seeds, "seed")
    interval = f"difference {number(e.difference)}, 95 % interval {number(e.low)} to {number(e.high)}, {seeds}"
    verdict = "" if e.better else "; not clearly better"
    return tag("p", f"{e.metric}: {number(e.base)} without, ", tag("b", f"{number(e.treated)} with it"), f" ({interval}{verdict})")


def _codes(o: Outcome) -> Markup | None:
    parts = [f"cured: {', '.join(o.cured)}"] if o.cured else []
    parts += [f"new with it: {', '.join(o.new)}"] if o.new else []
    return tag("p", "; ".join(parts)) if parts else None


def diff(unified: str) -> Markup:
    """A unified diff; the + and - at the start of each line say what its colour does."""
    return tag("pre", Markup("\n".join(_marked(line) for line in unified.splitlines())), class_="diff", tabindex=0)


def _marked(line: str) -> Markup:
    kinds = {"+": "added", "-": "removed", "@": "hunk"}
    kind = "hunk" if line.startswith(("+++ ", "--- ")) else kinds.get(line[:1])
    return Markup(f'<span class="{kind}">{text(line)}</span>') if kind else text(line)


OPEN = 3  # findings that are expanded at first
MOST_PATTERNS = 12
MOST_DECADES = 2.0  # on each side of the limit in the small scale of a number
APPLICABILITY = {"safe": "keeps the architecture and the checkpoint keys", "advice": "has no edit"}


def _meaning(remedy: Remedy) -> str:
    return APPLICABILITY.get(remedy.applicability) or reason(remedy.name)


def findings(report: Report, prefix: str) -> Markup:
    """Headlines as expandable sections, most severe first, each with what follows from it."""
    shown: set[str] = set()  # rules whose page is on the page already
    return join(_card(report, f, below, f"{prefix}f{i}", i < OPEN, shown) for i, (f, below) in enumerate(tree(report.findings)))


def _card(report: Report, finding: Finding, below: Sequence[Finding], id: str, unfolded: bool, shown: set[str]) -> Markup:
    head = join(
        sign(finding.severity),
        tag("span", f"{finding.severity}: ", class_="unseen"),
        tag("b", finding.name),
        tag("code", finding.code),
        tag("span", _gist(finding), class_="gist"),
    )
    body = [*_body(report, finding), treatments(report, finding), _consequences(report, below), _more(finding, shown)]
    return tag("details", tag("summary", head), tag("div", body, class_="body"), class_=f"finding {finding.severity}", id=id, open=unfolded)


def _gist(finding: Finding) -> str:
    """The first number against its limit."""
    first = next((e for e in finding.evidence if e.limit is not None), None)
    if first is None or first.limit is None:
        return ""
    value, limit = apart(first.value, first.limit)
    return f"{value} against {limit} {first.unit}".rstrip()


def _body(report: Report, finding: Finding) -> list[Markup | None]:
    return [
        tag("p", inline(finding.message), class_="message"),
        tag("p", tag("b", "Confirmed "), inline(finding.confirmed), class_="confirmed") if finding.confirmed else None,
        source(report, finding.location) if finding.location else None,
        evidence_table(report, finding),
        _layers(finding),
        _remedies(finding),
    ]


def source(report: Report, location: Location) -> Markup:
    """The place, and the lines around it with a caret under the span."""
    scope = join(" in ", tag("code", location.scope)) if location.scope else None
    detail = join(tag("br"), "from ", tag("code", str(location.detail))) if location.detail else None
    place = tag("p", tag("code", str(location)), scope, detail, class_="place")
    lines = next((m.snippets[location.file] for m in report.measurements if location.file in m.snippets), {})
    rows = snippet(lines, location, "caret")
    if not rows:
        return place
    return join(place, tag("pre", Markup("\n".join(_styled(row) for row in rows[1:-1])), class_="source", tabindex=0))


def _styled(row: Text) -> Markup:
    """A row of the excerpt with its gutter and carets marked."""
    parts, at = [], 0
    for span in sorted(row.spans):
        parts.append(text(row.plain[at : span.start]))
        kind = "gutter" if span.style == GUTTER else "caret"
        parts.append(Markup(f'<span class="{kind}">{text(row.plain[span.start : span.end])}</span>'))
        at = span.end
    return join(parts, text(row.plain[at:]))


def evidence_table(report: Report, finding: Finding) -> Markup | None:
    if not finding.evidence:
        return None
    rows = (_number(report, e) for e in finding.evidence)
    return table(("measured", "value", "needs", "scale", "at"), rows, kind="evidence wide")


def _number(report: Report, e: Evidence) -> tuple[Child, ...]:
    value, needs = number(e.value), "–"
    if e.limit is not None:
        value, limit = apart(e.value, e.limit)
        needs = f"{HEALTHY[e.comparison]} {limit}" if e.comparison in HEALTHY else f"not {limit}"
    spread = None
    if e.spread is not None:
        seeds = counted(len(report.measurements), "seed")
        spread = tag("small", f" {number(e.spread[0])} to {number(e.spread[1])} over {seeds}")
    at = name(e.layer) if e.layer is not None else "–"
    unit = f" {e.unit}" if e.unit else ""
    return e.quantity, (tag("b", value), unit, spread), needs, _scale(e), at


def _scale(e: Evidence) -> Markup | None:
    """Value against limit on a logarithmic scale, the limit in the middle."""
    if e.limit is None or e.comparison not in HEALTHY or not e.limit or e.value * e.limit <= 0:
        return None
    if not math.isfinite(e.value):
        return None
    ratio = math.log10(e.value / e.limit)
    decades = min(max(ratio, -MOST_DECADES), MOST_DECADES)
    x = 70 + 62 * decades / MOST_DECADES
    healthy = 8 if e.comparison in (">", ">=") else 70
    words = f"{number(10 ** abs(ratio))} times {'above' if ratio > 0 else 'below'} the limit"
    content = (
        tag("title", words),
        tag("line", class_="scale", x1=8, x2=132, y1=9, y2=9),
        tag("line", class_="scale healthy", x1=healthy, x2=healthy + 62, y1=9, y2=9),
        tag("line", class_="scale limit", x1=70, x2=70, y1=3, y2=15),
        tag("path", class_="scale value", d=f"M{x:.0f} 4l5 5l-5 5l-5-5Z"),
    )
    return tag("svg", content, viewBox="0 0 140 18", role="img", class_="bullet")


def _layers(finding: Finding) -> Markup | None:
    if not finding.layers:
        return None
    patterns = collapse(x or "(model)" for x in finding.layers)
    more = f" and {len(patterns) - MOST_PATTERNS} more" if len(patterns) > MOST_PATTERNS else None
    names = [join(", " if i else None, tag("code", name(p))) for i, p in enumerate(patterns[:MOST_PATTERNS])]
    return tag("p", tag("b", counted(len(finding.layers), "layer")), " ", names, more, class_="layers")


def _remedies(finding: Finding) -> Markup | None:
    if not finding.remedies:
        return None
    rows = [
        tag("li", inline(r.text), " ", tag("span", r.applicability, class_=f"badge {r.applicability}", title=_meaning(r)))
        for r in finding.remedies
    ]
    return join(tag("h4", "What helps"), tag("ul", rows, class_="remedies"))


def _consequences(report: Report, below: Sequence[Finding]) -> Markup | None:
    if not below:
        return None
    rows = []
    for f in below:
        head = tag("summary", sign(f.severity), tag("b", f.name), tag("code", f.code), tag("span", inline(f.message), class_="said"))
        place = source(report, f.location) if f.location else None
        rows.append(tag("details", head, tag("div", place, evidence_table(report, f), class_="body")))
    return join(tag("h4", "What follows from it"), tag("div", rows, class_="follows"))


def _more(finding: Finding, shown: set[str]) -> Markup:
    """The rule's page, once per rule, and the comment that silences it."""
    rule = find_rule(finding.code, builtin_rules())
    page = None
    if rule is not None and finding.code not in shown:
        shown.add(finding.code)
        page = tag(
            "details", tag("summary", "About this rule: why it matters, how it measures, when to ignore it"), page_html(rule), class_="rule"
        )
    comment = None
    if finding.location is not None:
        comment = tag("p", "Silence it on that line: ", tag("code", f"# gradcheck: ignore[{finding.name}]"), class_="soft")
    return join(page, comment)
