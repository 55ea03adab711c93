"""A difference between two runs as a page: one file without scripts, nothing from the network."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from markupsafe import Markup

from gradcheck.judge.diff import STATES, FindingChange, NumberChange, TargetDiff
from gradcheck.report.diff import changed, counts, in_part, listed, method, name_of, severity_of, value_of
from gradcheck.report.html.markup import join, tag
from gradcheck.report.html.theme import variables

# A sign to show beside the word for every state, and its colour.
SIGNS = {"new": "+", "worse": "▼", "better": "▲", "fixed": "✓", "unchanged": "=", "unknown": "?", "changed": "~"}
COLORS = {"new": "error", "worse": "error", "better": "good", "fixed": "good"}

STYLE = """
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em;overflow-wrap:anywhere}
main{max-width:1000px;margin:0 auto;padding:24px}
section{margin:0 0 40px}
h1{font-size:20px}
h2{font-size:18px;padding-bottom:6px;border-bottom:1px solid var(--line)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:14px 0 4px}
th,td{text-align:left;padding:5px 14px 5px 0;vertical-align:top}
th{font-weight:400;color:var(--soft);font-size:13px}
tbody tr{border-top:1px solid var(--grid)}
td.number{white-space:nowrap}
td.state{white-space:nowrap;width:9em}
.error{color:var(--error)}.good{color:var(--good)}
.soft{color:var(--soft)}
details{margin-top:12px}
summary{cursor:pointer}
"""


def page(differences: Sequence[TargetDiff], tolerance: float) -> str:
    """The document."""
    parts = [*(_target(d) for d in differences), tag("p", method(tolerance), class_="soft")]
    return document("gradcheck: base against head", f"gradcheck diff: {', '.join(d.target for d in differences)}", parts)


def document(heading: str, title: str, parts: Sequence[Markup]) -> str:
    """A page of tables."""
    style = Markup(variables() + STYLE)
    policy = (
        f"default-src 'none'; style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    main = tag("main", tag("h1", heading), parts)
    return f"<!doctype html>\n{tag('html', head, tag('body', main), lang='en')}\n"


def _target(difference: TargetDiff) -> Markup:
    side = tag("span", f" only in {difference.only}", class_="soft") if difference.only else None
    parts = [tag("h2", tag("code", difference.target), side), tag("p", counts(difference))]
    parts += [tag("p", tag("b", line)) for line in in_part(difference)]
    if rows := [_finding(change) for change in listed(difference)]:
        parts.append(_table("Findings", rows))
    if rows := [_number(change) for change in changed(difference)]:
        parts.append(_table("Scores and numbers", rows))
    same = [change for change in difference.findings if change.state == "unchanged"]
    if same:
        parts.append(tag("details", tag("summary", f"Unchanged findings ({len(same)})"), _table("", [_finding(change) for change in same])))
    return tag("section", parts)


def _table(title: str, rows: Sequence[Markup]) -> Markup:
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in ("", "what", "base", "head")]))
    return tag("div", tag("table", tag("caption", title) if title else None, head, tag("tbody", rows)), class_="wide")


def _finding(change: FindingChange) -> Markup:
    quantity = next((e.quantity for e in (change.after, change.before) if e is not None), "")
    said = join(tag("b", name_of(change)), " ", severity_of(change), tag("div", change.finding.message, class_="soft"))
    measured = tag("div", quantity, class_="soft") if quantity else None
    values = [value_of(e.value if e else None) for e in (change.before, change.after)]
    return _row(change.state, join(said, measured), values)


def _number(change: NumberChange) -> Markup:
    return _row(change.state, join(name_of(change)), [value_of(change.before), value_of(change.after)])


def _row(state: str, what: Markup, values: Sequence[str]) -> Markup:
    assert state in (*STATES, "changed")
    shown = tag("td", tag("span", SIGNS[state], aria_hidden="true"), f" {state}", class_=f"state {COLORS.get(state, 'soft')}")
    return tag("tr", shown, tag("td", what), [tag("td", value, class_="number") for value in values])
