"""The rules of the gate: their findings are added after the others have been judged, in assertions.py and baseline.py."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from gradcheck.analysis.statistics import CATEGORIES, aggregated, values
from gradcheck.config.keys import Assertion
from gradcheck.config.settings import Settings
from gradcheck.errors import ConfigError
from gradcheck.judge.scores import scores
from gradcheck.types.finding import SEVERITIES, Evidence, Finding
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report
from gradcheck.types.rule import Limits, Rule, Verdict, found, not_applicable, rule


@rule("META002", up_to="error")
def failed_assertion(m: Measurement, limits: Limits) -> Verdict:
    """A number is beyond a limit that the project's configuration sets.

    ## What it finds
    Entries of `[tool.gradcheck.assert]` that the run does not meet: statistics such as `stat:loss.final`, and scores such
    as `score:gradients`. A number that could not be measured does not meet its limit.

    ## Why it matters
    The project says so: these limits are its own, and the severity is the one that it gives them.

    ## How it is measured
    Statistics are taken from the measurements, over the seeds by their median, or the best (`optimistic`) or the
    worst (`pessimistic`) of them; scores from the findings. This happens after all other rules have run.

    ## Limits and their sources
    Those of the configuration.

    ## When to ignore it
    When the limit is out of date: change it where it stands.

    ## Example
    ```python
    gradcheck.scan(model, batches, config={"assert": {"stat:loss.final": {"max": 0.1}}})
    ```

    ## Use instead
    ```python
    gradcheck.scan(model, batches, config={"assert": {"stat:loss.final": ["warning", {"max": 1.8}]}})
    ```

    ## References
    Lighthouse CI's assertions, https://github.com/GoogleChrome/lighthouse-ci/blob/main/docs/configuration.md#assert
    """
    return not_applicable("no assertions in the configuration")


@rule("META003", up_to="warning")
def stale_baseline(m: Measurement, limits: Limits) -> Verdict:
    """An entry of the baseline whose finding is gone.

    ## What it finds
    Entries of the baseline file for which the run found nothing, although their rules ran.

    ## Why it matters
    An entry that outlived its finding hides the next one that looks like it. It fails the run, unless `--allow-stale` is given.

    ## How it is measured
    The findings are compared with the entries after all other rules have run. Entries of targets that were not scanned,
    and of rules that were not selected or came to no verdict, are left alone.

    ## Limits and their sources
    None.

    ## When to ignore it
    When a finding comes and goes with the machine: pass `--allow-stale`, or scan more seeds.

    ## Example
    ```python
    self.act = nn.GELU()  # the baseline lists dead-units for the nn.ReLU() that stood here
    ```

    ## Use instead
    ```python
    self.act = nn.GELU()  # and `gradcheck baseline prune` has removed the entry
    ```

    ## References
    ESLint's bulk suppressions (https://eslint.org/docs/latest/use/suppressions) treat unused entries the same way.
    """
    return not_applicable("no baseline")


def asserted(report: Report, settings: Settings) -> Report:
    """The report with a finding for every assertion that it fails. Raises ConfigError for a number that does not exist."""
    checked = [list(_failures(assertion, report)) for assertion in settings.assertions]
    return with_findings(report, failed_assertion, [f for failures in checked for f in failures]) if checked else report


def with_findings(report: Report, by: Rule, new: Sequence[Finding]) -> Report:
    """The report with what a rule that was selected has found, most severe first."""
    if not any(s.code == by.code for s in report.rules):
        return report
    states = tuple(replace(s, status="finding" if new else "passed", reason="") if s.code == by.code else s for s in report.rules)
    findings = sorted([*report.findings, *new], key=lambda f: SEVERITIES.index(f.severity))
    return replace(report, findings=tuple(findings), rules=states)


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
