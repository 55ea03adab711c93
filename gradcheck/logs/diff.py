"""Two logs compared: levels, and the step from which their losses part."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

from gradcheck.analysis.curves import ends, lowest, noise, resembling
from gradcheck.analysis.wording import number, percent
from gradcheck.types.finding import Finding
from gradcheck.types.report import Report
from gradcheck.types.training import LogColumn, LogFacts

TOGETHER = 9  # neighbouring differences whose median counts
APART = 3.0  # standard deviations of the differences, around their own course


@dataclass(frozen=True)
class NumberRow:
    """A number of both logs; None: one has none such. `lower`: whether less is better; None: neither is."""

    quantity: str
    base: float | None
    head: float | None
    lower: bool | None = None


@dataclass(frozen=True)
class LossParting:
    """From this step on the losses lie apart."""

    step: float
    base: float
    head: float


@dataclass(frozen=True)
class LogDifferences:
    rows: tuple[NumberRow, ...]
    parting: LossParting | None
    compared: bool  # whether the logs have steps in common
    new: tuple[Finding, ...]  # findings that only the head has
    fixed: tuple[Finding, ...]


def compare(base: Report, head: Report) -> LogDifferences:
    """Two reports of logs."""
    first, second = base.measurement.log, head.measurement.log
    assert first is not None and second is not None
    apart, compared = parting(first, second)
    known, now = ({f.code for f in r.findings} for r in (base, head))
    new = tuple(f for f in head.findings if f.code not in known)
    fixed = tuple(f for f in base.findings if f.code not in now)
    return LogDifferences(tuple(_rows(first, second)), apart, compared, new, fixed)


def _rows(first: LogFacts, second: LogFacts) -> Iterator[NumberRow]:
    yield NumberRow("last step", first.last, second.last)
    for what, one, other in (("loss", first.loss, second.loss), ("evaluation loss", first.evaluation, second.evaluation)):
        a, b = (c.finite if c is not None and c.finite.values else None for c in (one, other))
        if a is not None or b is not None:
            yield NumberRow(f"{what} at the end", _end(a), _end(b), True)
            yield NumberRow(f"lowest {what}", lowest(a)[1] if a else None, lowest(b)[1] if b else None, True)
            yield NumberRow(f"step of the lowest {what}", lowest(a)[0] if a else None, lowest(b)[0] if b else None)
    for what, one, other, of in (("highest rate", first.rate, second.rate, max), ("median gradient norm", first.norm, second.norm, median)):
        base, head = (of(c.finite.values) if c is not None and c.finite.values else None for c in (one, other))
        if base is not None or head is not None:
            yield NumberRow(what, base, head)


def _end(curve: LogColumn | None) -> float | None:
    return ends(curve.values)[1] if curve is not None else None


def parting(first: LogFacts, second: LogFacts) -> tuple[LossParting | None, bool]:
    """Where the losses part for the first time by more than their noise, and whether they could be compared."""
    a, b = (log.loss.finite if log.loss is not None else None for log in (first, second))
    if a is None or b is None or not a.values or not b.values:
        return None, False
    steps = [s for s in a.steps if b.steps[0] <= s <= b.steps[-1]]
    if len(steps) < TOGETHER:
        return None, False
    mine, other = resembling(a, steps), resembling(b, steps)
    apart = [y - x for x, y in zip(mine, other, strict=True)]
    least = APART * noise(apart)
    for i in range(len(apart) - TOGETHER + 1):
        if abs(median(apart[i : i + TOGETHER])) > least and all(abs(d) > 0 for d in apart[i : i + TOGETHER]):
            return LossParting(steps[i + TOGETHER // 2], median(mine[i : i + TOGETHER]), median(other[i : i + TOGETHER])), True
    return None, True


# ------------------------------------------------------------------------------------------------------------- showing it


def text(differences: LogDifferences) -> str:
    """For a terminal."""
    width = max(len(r.quantity) for r in differences.rows)
    lines = [f"{r.quantity:<{width}}  {_shown(r.base):>12}  {_shown(r.head):>12}  {_change(r)}".rstrip() for r in differences.rows]
    return "\n".join([*lines, "", *_sentences(differences)]) + "\n"


def markdown(differences: LogDifferences) -> str:
    """For a comment on a change."""
    lines = ["| | base | head | |", "|---|---|---|---|"]
    lines += [f"| {r.quantity} | {_shown(r.base)} | {_shown(r.head)} | {_change(r)} |" for r in differences.rows]
    return "\n".join([*lines, "", *(f"- {line}" for line in _sentences(differences))]) + "\n"


def as_json(differences: LogDifferences) -> str:
    """One object."""
    plain = asdict(differences) | {name: [f.code for f in getattr(differences, name)] for name in ("new", "fixed")}
    return json.dumps(plain, indent=1) + "\n"


def _shown(value: float | None) -> str:
    return "-" if value is None else number(value)


def _change(row: NumberRow) -> str:
    if row.base is None or row.head is None or row.lower is None or row.base == row.head:
        return ""
    share = f" ({percent(abs(row.head - row.base) / abs(row.base))})" if row.base else ""
    return f"{'better' if (row.head < row.base) == row.lower else 'worse'}{share}"


def _sentences(differences: LogDifferences) -> Iterator[str]:
    p = differences.parting
    if p is not None:
        yield f"The losses part at step {p.step:g}: {number(p.base)} in the base, {number(p.head)} in the head."
    elif differences.compared:
        yield "The losses do not part by more than their noise."
    else:
        yield "The logs have too few steps in common for their losses to be compared."
    yield from (f"new: {f.name} ({f.code}) {f.severity}: {f.message}" for f in differences.new)
    yield from (f"gone: {f.name} ({f.code})" for f in differences.fixed)
