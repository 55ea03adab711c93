"""The table of benchmarks/scripts.py: a summary, and a row a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scripts_case import Case

if TYPE_CHECKING:
    from scripts import Outcome

JUDGED = ("in full", "in part", "refused", "crashed")


def table(chosen: Sequence[Case], outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    healthy = {o.name: o for o in outcomes if o.variant == "healthy"}
    faulty = {o.name: o for o in outcomes if o.variant == "faulty"}
    rows = [_row(case, healthy.get(case.name), faulty.get(case.name)) for case in chosen]
    header = ["| script | judged | false errors | false warnings | its fault | named | seconds |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*_summary(list(healthy.values()), list(faulty.values())), "", *header, *rows, ""])


def _summary(healthy: Sequence[Outcome], faulty: Sequence[Outcome]) -> list[str]:
    def count(outcomes: Sequence[Outcome], word: str) -> int:
        return sum(o.judged == word for o in outcomes)

    heads = [
        "",
        "scripts",
        *JUDGED,
        "with an error",
        "with a warning",
        "fault named at its line",
        "at another line",
        "median s",
        "most s",
        "median s beyond",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for word, outcomes in (("healthy", healthy), ("faulty", faulty)):
        if not outcomes:
            continue
        seconds = sorted(o.seconds for o in outcomes)
        errors, warnings = (sum(bool(o.of(s)) for o in outcomes) for s in ("error", "warning"))
        named = [str(sum(o.named == how for o in outcomes)) if word == "faulty" else "" for how in ("line", "cause")]
        cells = [word, len(outcomes), *(count(outcomes, j) for j in JUDGED), errors, warnings, *named]
        lines.append(
            "| " + " | ".join(map(str, cells)) + f" | {seconds[len(seconds) // 2]:.1f} | {seconds[-1]:.1f} | {_median_beyond(outcomes)} |"
        )
    return lines


def _median_beyond(outcomes: Sequence[Outcome]) -> str:
    """Of the seconds beyond the script's own steps, and how many scripts take more than 10."""
    beyond = sorted(o.beyond for o in outcomes if o.beyond is not None)
    return f"{beyond[len(beyond) // 2]:.1f} (over 10: {sum(b > 10 for b in beyond)})" if beyond else ""


def _row(case: Case, healthy: Outcome | None, faulty: Outcome | None) -> str:
    judged = " / ".join(o.judged for o in (healthy, faulty) if o is not None)
    errors, warnings = (" ".join(healthy.of(s)) if healthy else "" for s in ("error", "warning"))
    named = {"line": "yes", "cause": "at another line", "": "no"}[faulty.named] if faulty else ""
    seconds = " / ".join(_seconds(o) for o in (healthy, faulty) if o is not None)
    return f"| {case.name} | {judged} | {errors} | {warnings} | {case.fault} ({' '.join(case.codes)}) | {named} | {seconds} |"


def _seconds(outcome: Outcome) -> str:
    """`13.7 (7.2)`: all seconds of CPU, and those beyond the script's own steps."""
    return f"{outcome.seconds:.1f}" + (f" ({outcome.beyond:.1f})" if outcome.beyond is not None else "")
