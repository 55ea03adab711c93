"""The `sarif` format: SARIF 2.1.0 as GitHub code scanning reads it, one run for all targets."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradcheck.analysis.statistics import CATEGORIES
from gradcheck.errors import ConfigError
from gradcheck.judge.registry import builtin_rules, load_rules
from gradcheck.report.formatting import View, clean
from gradcheck.report.rows import NAME, Notice, Row, end_line, notices, rows, sentences
from gradcheck.report.rule_page import rule_page
from gradcheck.types.finding import RuleState, Severity
from gradcheck.types.location import Location
from gradcheck.types.report import Report
from gradcheck.types.rule import Rule
from gradcheck.version import __version__

WINDOW = 100  # UTF-16 units that are hashed for a line, from its first kept one
FACTOR = 37
END = 65535  # marks the end of the file
WRAP = (1 << 64) - 1


def line_hash(text: str, line: int) -> str | None:
    """`primaryLocationLineHash` of a line, counted from 1: `hash:n` for the n-th line with that hash. None beyond the end.

    The algorithm is that of github/codeql-action (src/fingerprints.ts): blanks and tabs are dropped, line ends are
    LF, and each line is hashed over the WINDOW units that begin with it, by h = 37 h + unit modulo 2^64. A line that has
    no unit of its own, as after the last line end, has no hash.
    """
    units = _units(text)
    starts = [0] + [i + 1 for i, unit in enumerate(units) if unit == 10]
    if not 1 <= line <= len(starts):
        return None
    padded = [*units, END, *([0] * WINDOW)]
    hashes = [_hash(padded[start : start + WINDOW]) for start in starts[:line]]
    return f"{hashes[-1]:x}:{Counter(hashes)[hashes[-1]]}"


def _units(text: str) -> list[int]:
    """UTF-16 code units without blanks and tabs, line ends as LF."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace(" ", "").replace("\t", "")
    raw = plain.encode("utf-16-le", "surrogatepass")
    return [raw[i] | raw[i + 1] << 8 for i in range(0, len(raw), 2)]


def _hash(units: list[int]) -> int:
    value = 0
    for unit in units:
        value = (value * FACTOR + unit) & WRAP
    return value


SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
PROBLEMS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "recommendation"}
MOST_TEXT = 1024  # characters of a rule's description that GitHub takes
TAGS = {family: name for name, (_, families) in CATEGORIES.items() for family in families}


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """One SARIF log. Suppressed and known findings are left out: GitHub would show them as alerts."""
    listed = rows(reports)
    by_code = _rules({row.finding.code for row in listed})
    names = {row.finding.code: row.finding.name for row in listed}
    order = {code: i for i, code in enumerate(names)}
    run = {
        "tool": {
            "driver": {
                "name": "gradcheck",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(code, name, by_code.get(code)) for code, name in names.items()],
            }
        },
        "automationDetails": {"id": "gradcheck/"},
        "invocations": [_invocation(reports, view is not None and view.allow_partial)],
        "columnKind": "unicodeCodePoints",
        "results": [_result(row, order) for row in listed],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rules(codes: Iterable[str]) -> dict[str, Rule]:
    """The rules that are known here; those of a file that was given by --rules are not."""
    found = {rule.code: rule for rule in builtin_rules()}
    if not found.keys() >= set(codes):
        with suppress(ConfigError):  # a broken pack loses only its pages
            found |= {rule.code: rule for rule in load_rules()}
    return found


def _rule(code: str, name: str, rule: Rule | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": code, "name": name}
    if rule is None:
        return entry | {"shortDescription": {"text": name}, "fullDescription": {"text": name}}
    tag = TAGS.get(rule.family, rule.family.lower())
    return entry | {
        "shortDescription": {"text": f"{rule.name}: {rule.summary}"[:MOST_TEXT]},
        "fullDescription": {"text": rule.summary[:MOST_TEXT]},
        "help": {"text": rule.page, "markdown": rule_page(rule)},
        "defaultConfiguration": {"level": LEVELS[rule.up_to]},
        "properties": {"tags": ["training", tag], "problem.severity": PROBLEMS[rule.up_to]},
    }


def _invocation(reports: Sequence[Report], allowed: bool) -> dict[str, Any]:
    """A run that was judged in part is unsuccessful, unless that is `allowed`."""
    part = notices(reports)
    notes: list[dict[str, Any]] = [_crashed(report, state) for report in reports for state in report.rules if state.status == "crashed"]
    notes += [_in_part(notice, "warning" if allowed else "error") for notice in part]
    return {"executionSuccessful": allowed or not part} | ({"toolExecutionNotifications": notes} if notes else {})


def _crashed(report: Report, state: RuleState) -> dict[str, Any]:
    return {"level": "error", "message": {"text": f"{report.target}: rule {state.name} ({state.code}) crashed: {state.reason}"}}


def _in_part(notice: Notice, level: str) -> dict[str, Any]:
    part = notice.report.coverage
    facts = {"target": notice.report.target, "looked": part.looked, "applicable": part.applicable, "silent": list(part.silent)}
    return {
        "level": level,
        "descriptor": {"id": NAME},
        "message": {"text": f"{clean(notice.report.target)}: {notice.text}"},
        "locations": [_physical(notice.place)],
        "properties": facts,
    }


def _result(row: Row, order: dict[str, int]) -> dict[str, Any]:
    finding = row.finding
    numbers = {e.quantity: e.value for e in finding.evidence if e.value == e.value and abs(e.value) != float("inf")}
    return {
        "ruleId": finding.code,
        "ruleIndex": order[finding.code],
        "level": LEVELS[finding.severity],
        "message": {"text": "\n".join(sentences(row))},
        "locations": [_physical(row.place)],
        "partialFingerprints": _fingerprints(row),
        "properties": {"target": row.report.target, "layers": list(finding.layers[:100]), "measured": numbers},
    }


def _physical(place: Location) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": _artifact(place.path), "region": region(place)}}


def _artifact(path: str) -> dict[str, str]:
    if Path(path).is_absolute():
        return {"uri": Path(path).as_uri()}
    return {"uri": quote(re.sub(r"^\./", "", path)), "uriBaseId": "%SRCROOT%"}


def region(place: Location) -> dict[str, int]:
    """Start, and an end where it is known; the end column is that after the last character."""
    start = {"startLine": place.line, "startColumn": place.column}
    if place.end_column and (end_line(place) > place.line or place.end_column > place.column):
        return start | {"endLine": end_line(place), "endColumn": place.end_column}
    return start


def _fingerprints(row: Row) -> dict[str, str]:
    own = {"gradcheck/v1": row.fingerprint}
    location = row.finding.location
    if location is None or location.cell:
        return own
    try:
        text = Path(location.path).read_bytes().decode("utf-8", "replace")
    except OSError:  # a saved run, shown where its sources are not: GitHub computes the hash itself
        return own
    hashed = line_hash(text, location.line)
    return own | ({"primaryLocationLineHash": hashed} if hashed else {})
