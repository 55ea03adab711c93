"""The `markdown` format: a comment for a pull request, and the summary of a step of GitHub Actions."""

import re
from collections.abc import Sequence

from gradcheck.analysis.wording import counted, number
from gradcheck.judge.scores import Score, scores
from gradcheck.report.formatting import View, clean, collapse, conditions, snippet, summary
from gradcheck.report.outcomes import tail
from gradcheck.report.rows import Row, explained, numbers, rows
from gradcheck.types.finding import Severity
from gradcheck.types.report import Report
from gradcheck.types.trial import TrialResult

MARKER = "<!-- gradcheck -->"  # by which a bot finds its comment again
MOST_COMMENT = 60_000  # bytes; GitHub takes 65 536 characters, GitLab more
MOST_ROWS = 20  # findings in the table
SIGNS: dict[Severity, str] = {"error": "❌ error", "warning": "⚠️ warning", "info": "ℹ️ info"}


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """The reports, short enough for a comment."""
    return document(reports, MOST_COMMENT, written=view is not None and view.written)


def document(reports: Sequence[Report], room: int, *, written: bool = False) -> str:
    """The reports in at most `room` bytes of UTF-8: details are dropped first, then rows; nothing when not even that fits."""
    listed = {id(report): rows([report]) for report in reports}
    for most, detailed in ((MOST_ROWS, True), (MOST_ROWS, False), (3, False), (0, False)):
        blocks = [line for report in reports for line in _report(report, listed[id(report)], most, detailed, written)]
        text = "\n".join([MARKER, *blocks]).rstrip() + "\n"
        if len(text.encode("utf-8", "backslashreplace")) <= room:
            return text
    return ""


def _report(report: Report, listed: Sequence[Row], most: int, detailed: bool, written: bool) -> list[str]:
    lines = [f"### {_headline(report, listed)}", ""]
    if report.trial is not None:
        lines += [f"**Trial:** {escape(report.trial.verdict)}", "", *(_trial(report.trial, most) if most else ())]
    if report.outcomes:
        lines += [f"**Fix:** {escape(tail(report, written=written))}", ""]
    lines += [escape(summary(report)), ""]
    if report.coverage.in_part:
        lines += [*(f"- {escape(line)}" for line in explained(report)), ""]
    shown = [score for score in scores(report) if score.value is not None]
    if shown and most:
        lines += [*_scores(shown), ""]
    if listed and most:
        lines += ["| | finding | where | measured |", "|---|---|---|---|", *(_row(row) for row in listed[:most])]
        left = len(listed) - most
        lines += ["", f"{counted(left, 'more finding')} not listed." if left > 0 else "", ""]
    if detailed:
        lines += [line for row in listed[:most] for line in _details(row)]
    if report.known:
        lines += [f"{counted(len(report.known), 'known finding')} of the baseline not listed.", ""]
    return [*lines, f"<sub>{escape(conditions(report))}</sub>", ""]


def _headline(report: Report, listed: Sequence[Row]) -> str:
    """What to expect of the training; findings about the gate say nothing about that, and come second."""
    severities = [row.finding.severity for row in listed if not row.finding.code.startswith("META")]
    worst = severities[0] if severities else None
    said = {"error": "will not train as it is", "warning": "trains, at a cost", "info": "no fault found", None: "no findings"}[worst]
    if worst not in ("error", "warning") and listed and listed[0].finding.severity != "info":
        worst, said = listed[0].finding.severity, "does not pass this project's gate"
    elif worst != "error" and report.coverage.in_part:
        worst, said = "warning", f"was judged in part{f', {said}' if worst == 'warning' else ''}"
    sign = SIGNS[worst].split()[0] if worst else "✅"
    return f"{sign} gradcheck: {code(report.target)} {said}"


def _trial(result: TrialResult, most: int) -> list[str]:
    """A row for each entry that ran, the untreated model first."""
    ran = [e for e in (result.base, *result.entries) if e.seeds][:most]
    rows = [f"| {escape(e.title)} | {e.status} | {number(e.effect.difference) if e.effect else ''} | {e.seeds} |" for e in ran]
    return [f"| remedy | | {escape(result.metric)}: difference | seeds |", "|---|---|---|---|", *rows, ""]


def _scores(shown: Sequence[Score]) -> list[str]:
    """A table of one row: categories and their scores."""
    titles = " | ".join(escape(score.title) for score in shown)
    return [f"| {titles} |", "|" + "---|" * len(shown), f"| {' | '.join(str(score.value) for score in shown)} |"]


def _row(row: Row) -> str:
    evidence = next((e for e in row.finding.evidence if e.limit is not None), None)
    value = ""
    if evidence is not None and evidence.limit is not None:
        unit = f" {evidence.unit}" if evidence.unit else ""
        value = f"{evidence.quantity} {number(evidence.value)}{unit} (limit {number(evidence.limit)})"
    return f"| {SIGNS[row.finding.severity]} | {escape(row.title)} | {code(row.where)} | {escape(value)} |"


def _details(row: Row) -> list[str]:
    finding = row.finding
    lines = ["<details>", f"<summary>{escape(row.title)}: {escape(clean(finding.message))}</summary>", ""]
    file = finding.location.file if finding.location is not None else ""
    excerpt = next((m.snippets for m in row.report.measurements if file in m.snippets), None)
    if finding.location is not None and excerpt is not None:
        lines += [*_fenced([text.plain for text in snippet(excerpt[file], finding.location, "")]), ""]
    lines += [f"- measured: {escape(line)}" for line in numbers(finding.evidence)]
    if finding.layers:
        lines.append(f"- layers: {', '.join(code(name or '(model)') for name in collapse(finding.layers)[:5])}")
    if finding.confirmed:
        lines.append(f"- confirmed {escape(clean(finding.confirmed))}")
    lines += [f"- help: {escape(clean(remedy.text))}" for remedy in finding.remedies]
    lines += [f"- follows: {escape(clean(f'{f.name} ({f.code}) {f.message}'))}" for f in row.below]
    return [*lines, "", "</details>", ""]


def _fenced(lines: Sequence[str]) -> list[str]:
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}python", *lines, fence]


def escape(text: str) -> str:
    """Text of the user's that is neither markup nor a mention."""
    text = re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", clean(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("@", "@\N{ZERO WIDTH SPACE}")


def code(text: str) -> str:
    """An inline code span, also of text with backquotes or bars."""
    text = clean(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
