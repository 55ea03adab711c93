"""The `brief` format: what a language model, or a person in a hurry, has to know, and what to run next, in at most 800 tokens."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gradcheck.analysis.wording import counted
from gradcheck.report.formatting import View, clean, collapse, conditions, measured, summary, tree, with_reason
from gradcheck.report.outcomes import tail
from gradcheck.report.rows import explained, place
from gradcheck.types.finding import Finding
from gradcheck.types.report import Report

MOST_TOKENS = 800
# measured: reports of the faulty samples have 3.7 characters a token (a byte pair encoding of 65 000 tokens), lists of layer names 2.3
CHARACTERS = 2.6
ROOM = int(MOST_TOKENS * CHARACTERS)
MOST_REMEDIES = 3  # of a finding
MOST_MESSAGE = 300  # characters of a message, a reason, a remedy or a name


@dataclass(frozen=True)
class NextStep:
    """What to do next, in the commands that the reader uses."""

    rule: Callable[[str], str]  # rule name -> how to get it explained
    fix: Callable[[str], str]  # target -> how to try remedies
    run: Callable[[str], str]  # target -> how to look at the whole of a training


COMMANDS = NextStep(
    lambda name: f"gradcheck rule {name}",
    lambda target: f"gradcheck fix {shlex.quote(target)} --diff",
    lambda target: f"gradcheck watch -- python {shlex.quote(target)}",
)


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """The reports, within the limit for all."""
    return brief(reports, COMMANDS, written=view is not None and view.written)


def brief(reports: Sequence[Report], step: NextStep, room: int = ROOM, *, written: bool = False) -> str:
    """The reports in at most `room` characters: remedies and numbers are dropped first, then findings, then whole reports."""
    for most, detailed in ((8, True), (4, True), (4, False), (2, False), (1, False)):
        text = "\n\n".join("\n".join(_report(report, step, most, detailed, written)) for report in reports) + "\n"
        if len(text) <= room:
            return text
    worst = next((r for r in reports if r.headlines), reports[0])
    end = clean(f"next: {_next(worst, step)}")
    return _shortened([clean(f"{_cut(r.target)}: {_cut(summary(r))}") for r in reports], room - len(end) - 1) + f"{end}\n"


def _shortened(lines: Sequence[str], room: int) -> str:
    """Whole lines from the beginning, and the number of the others."""
    kept: list[str] = []
    for line in lines:
        if len("\n".join((*kept, line, "... 9999 more\n"))) > room:
            break
        kept.append(line)
    more = [f"... {len(lines) - len(kept)} more"] if len(kept) < len(lines) else []
    return "\n".join((*kept, *more)) + "\n"


def _report(report: Report, step: NextStep, most: int, detailed: bool, written: bool) -> list[str]:
    heads = tree(report.findings)
    lines = [f"{_cut(report.target)}: {_cut(summary(report))} {conditions(report)}"]
    if report.trial is not None:
        lines.append(f"trial: {_cut(report.trial.verdict)}")
    if report.outcomes:
        lines.append(f"fix: {_cut(tail(report, written=written))}")
    if report.coverage.in_part:
        told = explained(report)
        lines += ["judged in part: silence proves nothing", *map(_cut, told if detailed else told[:1])]
    for finding, below in heads[:most]:
        lines += _finding(report, finding, below, detailed)
    if len(heads) > most:
        lines.append(f"... and {counted(len(heads) - most, 'more finding')}")
    return [*map(clean, lines), clean(f"next: {_next(report, step)}")]


def _finding(report: Report, finding: Finding, below: Sequence[Finding], detailed: bool) -> list[str]:
    lines = [f"{finding.severity} {finding.name} ({finding.code}) at {place(report, finding)}", f"  {_cut(finding.message)}"]
    if not detailed:
        return lines
    lines += [f"  measured: {_cut(measured(e))}" for e in finding.evidence[:1]]
    if finding.layers:
        lines.append(f"  layers: {_cut(', '.join(collapse(x or '(model)' for x in finding.layers)))}")
    lines += [f"  help: {with_reason(replace(r, text=_cut(r.text)))}" for r in finding.remedies[:MOST_REMEDIES]]
    if below:
        lines.append(f"  follows: {', '.join(dict.fromkeys(f.name for f in below))}")
    return lines


def _next(report: Report, step: NextStep) -> str:
    heads = [f for f in report.headlines if f.severity != "info"]
    target = report.target.partition(" (")[0]  # each of a script's optimizers has a report
    if not heads:
        return f"nothing to fix; {step.run(target)} follows a whole run" if target.endswith(".py") else "nothing to mend"
    treatable = any(remedy.applicability != "advice" for f in heads for remedy in f.remedies)
    said = [f"{step.rule(heads[0].name)} explains it"]
    if treatable:
        said.insert(0, f"{step.fix(target)} tries remedies on copies and prints the edits that are proved")
    return "; ".join(said)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_MESSAGE else text[: MOST_MESSAGE - 3] + "..."
