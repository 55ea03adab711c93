"""The `full` format: findings with their source, numbers and remedies, for reading in a terminal."""

import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal, TextIO

from rich.console import Console
from rich.text import Text

from gradcheck.analysis.curves import told
from gradcheck.analysis.wording import counted, number
from gradcheck.report import outcomes, trial
from gradcheck.report.formatting import (
    GUTTER,
    Color,
    clean,
    collapse,
    conditions,
    gradient_over_depth,
    guesses,
    looked,
    measured,
    result,
    snippet,
    summary,
    tree,
    with_reason,
)
from gradcheck.report.rows import unmeasured
from gradcheck.report.table import forecast_table, profile_table
from gradcheck.types.finding import Finding, Severity
from gradcheck.types.location import Location
from gradcheck.types.report import Report

STYLES: dict[Severity, str] = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
SIGNAL_FAMILIES = ("GRAD", "INIT")  # findings that the course of the gradient over depth illustrates, and:
SIGNAL_CODES = ("ACT003",)
MOST_LAYERS = 5  # patterns of layer names in a finding
MOST_UNMEASURED = 3
MOST_SPIKES = 3


NARROWEST = 20  # fewest columns that text can be wrapped to; a terminal that claims fewer has no known size
USUAL = 80


def make_console(file: TextIO, color: Color = "auto") -> Console:
    """A console that never wraps nor highlights. `auto` honours NO_COLOR, FORCE_COLOR and TERM=dumb."""
    plain = color == "never" or (color == "auto" and bool(os.environ.get("NO_COLOR")))
    forced = False if plain else True if color == "always" else None
    system: Literal["auto", "standard"] = "standard" if color == "always" else "auto"
    console = Console(file=file, soft_wrap=True, highlight=False, force_terminal=forced, no_color=plain, color_system=system)
    if console.width < NARROWEST:
        console.width = USUAL
    return console


def show(
    report: Report,
    console: Console,
    *,
    profile: bool = False,
    show_passed: bool = False,
    show_all: bool = False,
    with_target: bool = False,
    written: bool = False,
) -> None:
    """Prints the report. `with_target` names the target first, for runs of several; `written`: the edits are in the source."""
    page = _Page(report, console.width if console.file.isatty() else None)
    page.intro(with_target, show_passed)
    for finding, below in tree(report.findings):
        page.finding(finding, below)
    page.spikes()
    page.treatment()
    page.trial(show_all)
    if show_passed:
        page.states()
    if profile:
        page.profile(show_all)
    page.tail(written)
    for line in page.lines:
        console.print(line if line.plain.isprintable() else Text(clean(line.plain), line.style))


class _Page:
    """Collects the lines of a report. `width`: of the terminal, None when the lines go to a file."""

    def __init__(self, report: Report, width: int | None) -> None:
        self.report = report
        self.width = width
        self.lines: list[Text] = []

    def add(self, *parts: str | tuple[str, str]) -> None:
        self.lines.append(Text.assemble(*parts))

    def blank(self) -> None:
        if self.lines and self.lines[-1].plain:
            self.add("")

    def labelled(self, label: str, style: str, text: str, indent: int = 0) -> None:
        """`label: text`, wrapped between words under the text when it goes to a terminal."""
        start = " " * indent + label
        for i, line in enumerate(self.wrapped(clean(text), len(start) + 1)):
            self.add(*([(start, style), " "] if i == 0 else [" " * (len(start) + 1)]), line)

    def wrapped(self, text: str, indent: int) -> list[str]:
        if self.width is None:
            return [text]
        room = max(self.width - indent, 20)
        return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]

    def intro(self, with_target: bool, everything: bool) -> None:
        if with_target:
            self.add((clean(self.report.target), "bold"))
        for assumption in guesses(self.report, all_of_them=everything):
            self.labelled("found:" if assumption.given else "assumed:", "dim", assumption.text)
        if self.lines:
            self.blank()

    def spikes(self) -> None:
        """For a watched run: the first ones, which lead to the others."""
        spikes = self.report.measurement.spikes
        if spikes:
            self.blank()
        for spike in spikes[:MOST_SPIKES]:
            self.labelled("spike:", "yellow", told(spike))
        if len(spikes) > MOST_SPIKES:
            self.add((f"and {len(spikes) - MOST_SPIKES} more spikes, in the saved run", "dim"))

    def finding(self, finding: Finding, below: Sequence[Finding]) -> None:
        self.blank()
        style = STYLES[finding.severity]
        head = f"{finding.name} ({finding.code})"
        first, *rest = self.wrapped(clean(f"{head} {finding.severity}: {finding.message}"), 0)
        self.add((first[: len(head)], style), (first[len(head) :], "bold"))
        for line in rest:
            self.add((line, "bold"))
        if finding.location is not None:
            self.place(finding.location, style)
        self.numbers(finding)
        if finding.layers:
            patterns = collapse(x or "(model)" for x in finding.layers)
            more = f" and {len(patterns) - MOST_LAYERS} more" if len(patterns) > MOST_LAYERS else ""
            self.labelled("layers:  ", "", ", ".join(patterns[:MOST_LAYERS]) + more)
        for remedy in finding.remedies:
            self.labelled("help:", "bold cyan", with_reason(remedy))
        if finding.confirmed:
            self.labelled("note:", "bold yellow", f"confirmed {finding.confirmed}")
        for consequence in below:
            self.labelled("└ follows:", "dim", f"{consequence.name} ({consequence.code}) {consequence.message}", indent=2)

    def place(self, location: Location, style: str) -> None:
        lines = next((m.snippets[location.file] for m in self.report.measurements if location.file in m.snippets), {})
        rows = snippet(lines, location, style, self.width)
        margin = " " * (len(rows[0].plain) - 2 if rows else 1)
        scope = f" in {clean(location.scope)}" if location.scope else ""
        self.add((f"{margin}--> ", GUTTER), clean(str(location)), scope)
        if location.detail is not None:
            self.add((f"{margin}::: ", GUTTER), clean(str(location.detail)))
        self.lines += rows

    def numbers(self, finding: Finding) -> None:
        """The `measured:` lines, and the gradient over depth for findings about the signal."""
        label = "measured:"
        for evidence in finding.evidence:
            text = measured(evidence)
            if evidence.spread is not None:
                low, high = evidence.spread
                text += f"   {counted(len(self.report.measurements), 'seed')}, spread {number(low)}..{number(high)}"
            self.labelled(label, "", text)
            label = " " * len(label)
        about_signal = finding.code.rstrip("0123456789") in SIGNAL_FAMILIES or finding.code in SIGNAL_CODES
        if about_signal and (line := gradient_over_depth(self.report.measurement)):
            self.labelled(label, "", f"gradient over depth {line}")

    def states(self) -> None:
        self.blank()
        for state in self.report.rules:
            if state.status != "finding":
                reason = f": {state.reason}" if state.reason else ""
                self.labelled(f"{state.status}:", "dim", f"{state.name} ({state.code}){reason}")

    def treatment(self) -> None:
        """What was tried against the findings; nothing if the scan tried nothing."""
        self.told(outcomes.lines(self.report))

    def trial(self, everything: bool) -> None:
        """How remedies fared against each other; nothing for a report without a trial."""
        self.blank()
        self.told(trial.lines(self.report, everything=everything))

    def told(self, lines: Iterable[outcomes.Line]) -> None:
        for line in lines:
            if isinstance(line, outcomes.Labelled):
                self.labelled(line.label, line.style, line.text)
            else:
                self.add(*line)

    def profile(self, everything: bool) -> None:
        self.blank()
        for table in (profile_table, forecast_table):
            rows = table(self.report.measurement, everything=everything)
            if rows:
                self.blank()
                self.told([((rows[0], "bold"),), *((row,) for row in rows[1:])])

    def tail(self, written: bool = False) -> None:
        self.blank()
        notes = list(unmeasured(self.report))
        for note in notes[:MOST_UNMEASURED]:
            self.labelled("not measured:", "bold yellow", note)
        if len(notes) > MOST_UNMEASURED:
            self.add(f"{len(notes) - MOST_UNMEASURED} more were not measured: they are in the JSON output")
        if self.report.outcomes:
            for line in self.wrapped(clean(outcomes.tail(self.report, written=written)), 0):
                self.add((line, "bold"))
        if self.report.coverage.in_part:
            self.in_part()
        elif not self.report.findings:
            self.labelled("No findings", "bold green", f"{summary(self.report).removeprefix('No findings ')} {conditions(self.report)}")
            return
        for line in self.wrapped(clean(result(self.report)), 0):
            self.add(line)
        if not self.report.findings:
            self.add(clean(conditions(self.report)))
            return
        explain = f"   Explain: gradcheck rule {self.report.findings[0].name}"
        for line in self.wrapped(clean(conditions(self.report)) + explain, 0):
            self.add(line)

    def in_part(self) -> None:
        part = self.report.coverage
        silence = "; the silence of the others proves nothing" if part.silent else ""
        self.labelled("Judged in part:", "bold yellow", f"{looked(part)}{silence}")
        for reason in part.reasons:
            self.labelled("why: ", "bold yellow", reason)
        for remedy in part.remedies:
            self.labelled("help:", "bold cyan", remedy)
