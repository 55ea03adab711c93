"""Limits that a project sets on numbers of its own runs: `[tool.gradcheck.assert]`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from gradcheck.analysis.statistics import CATEGORIES, aggregated, values
from gradcheck.config.keys import Assertion
from gradcheck.config.settings import Settings
from gradcheck.errors import ConfigError
from gradcheck.judge.gate_rules import failed_assertion
from gradcheck.judge.scores import scores
from gradcheck.types.finding import SEVERITIES, Evidence, Finding
from gradcheck.types.report import Report
from gradcheck.types.rule import found


def asserted(report: Report, settings: Settings) -> Report:
    """The report with a finding for every assertion that it fails. Raises ConfigError for a number that does not exist."""
    checked = [list(_failures(assertion, report)) for assertion in settings.assertions]
    state = next((s for s in report.rules if s.code == failed_assertion.code), None)
    if not checked or state is None:
        return report
    new = [f for failures in checked for f in failures]
    states = tuple(replace(s, status="finding" if new else "passed", reason="") if s is state else s for s in report.rules)
    return replace(report, findings=with_findings(report, new), rules=states)


def with_findings(report: Report, new: list[Finding]) -> tuple[Finding, ...]:
    """The report's findings and new ones, most severe first."""
    return tuple(sorted([*report.findings, *new], key=lambda f: SEVERITIES.index(f.severity)))


def _failures(assertion: Assertion, report: Report) -> Iterator[Finding]:
    sides: tuple[tuple[float | None, bool, Literal["<", ">"]], ...] = ((assertion.minimum, False, "<"), (assertion.maximum, True, ">"))
    for limit, lower, comparison in sides:
        if limit is None:
            continue
        value, unit = _value(assertion, report, lower)
        if value is None:
            message = f"{assertion.name} was not measured here: its limit {limit:g} is not met"
            yield _finding(assertion, message, ())
        elif not (value >= limit if comparison == "<" else value <= limit):
            side = "below its least" if comparison == "<" else "above its greatest"
            message = f"{assertion.name} is {value:.4g}, {side} allowed value {limit:g}, which this project's configuration sets"
            yield _finding(assertion, message, (Evidence(assertion.name, value, limit, comparison, unit),))


def _finding(assertion: Assertion, message: str, evidence: tuple[Evidence, ...]) -> Finding:
    made = found(assertion.severity, message, location=assertion.location, evidence=evidence)
    return replace(made, code=failed_assertion.code, name=failed_assertion.name)


def _value(assertion: Assertion, report: Report, lower: bool) -> tuple[float | None, str]:
    """The number that an assertion is about, and its unit."""
    kind, _, name = assertion.name.partition(":")
    if kind == "stat":
        numbers = values(name, report.measurements)
        return (aggregated(numbers, assertion.aggregate, lower=lower) if numbers else None), ""
    every = {score.name: score.value for score in scores(report)}
    if name not in every and name not in CATEGORIES:
        raise ConfigError(f"unknown score {name!r} in {assertion.name!r}", hint=f"scores: {', '.join(every)}", location=assertion.location)
    value = every.get(name)
    return (None if value is None else float(value)), "of 100"
