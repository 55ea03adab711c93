"""How reports are shown in every format: what is asked for, numbers, names and sentences for people, excerpts of source, sparklines."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal, TypeVar

from rich.cells import cell_len
from rich.text import Text

from gradcheck.analysis.wording import counted, number, reason
from gradcheck.types.finding import SEVERITIES, Evidence, Finding, Remedy, RuleState, Severity
from gradcheck.types.layers import Layer, LayerKind
from gradcheck.types.location import Location
from gradcheck.types.measurement import Assumption, Measurement
from gradcheck.types.report import Coverage, Report

HEALTHY = {"<": ">=", ">": "<=", "<=": ">", ">=": "<"}  # the opposite of what describes the faulty state
MOST_RUNS = 8  # of consecutive numbers in a folded layer name


def apart(value: float, limit: float) -> tuple[str, str]:
    """Both numbers, with as many digits as it takes to tell them apart (at most six)."""
    for digits in (3, 4, 5):
        if number(value, digits) != number(limit, digits) or value == limit:
            return number(value, digits), number(limit, digits)
    return number(value, 6), number(limit, 6)


def with_reason(remedy: Remedy) -> str:
    """What to do, and what makes it unsafe."""
    return f"{remedy.text} (unsafe: {reason(remedy.name)})" if remedy.applicability == "unsafe" else remedy.text


def measured(evidence: Evidence) -> str:
    """`|g| = 7.4e-07 at encoder.layers.0   (needs >= 1e-05)`."""
    unit = f" {evidence.unit}" if evidence.unit else ""
    place = f" at {evidence.layer or 'the model'}" if evidence.layer is not None else ""
    if evidence.limit is None:
        return f"{evidence.quantity} = {number(evidence.value)}{unit}{place}"
    value, limit = apart(evidence.value, evidence.limit)
    healthy = f"needs {HEALTHY[evidence.comparison]} {limit}" if evidence.comparison in HEALTHY else f"faulty at exactly {limit}"
    return f"{evidence.quantity} = {value}{unit}{place}   ({healthy})"


def scaled(value: float | None) -> str:
    """1234567 as "1.23 M"; "-" for None."""
    if value is None:
        return "-"
    for factor, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def collapse(names: Iterable[str]) -> list[str]:
    """Names with their numbers folded: `encoder.layers.{0..22}.linear1`. The order of first mention is kept."""
    groups: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in dict.fromkeys(names):
        parts = re.split(r"(\d+)", name)
        groups.setdefault(tuple(parts[::2]), []).append(tuple(int(d) for d in parts[1::2]))
    return [pattern for words, numbers in groups.items() for pattern in _patterns(words, numbers)]


def _patterns(words: Sequence[str], numbers: Sequence[tuple[int, ...]]) -> list[str]:
    """One pattern when the numbers are a full grid, else one for each distinct first number."""
    axes = [sorted(set(axis)) for axis in zip(*numbers, strict=True)]
    if math.prod(len(axis) for axis in axes) == len(numbers):
        return [words[0] + "".join(_span(axis) + word for axis, word in zip(axes, words[1:], strict=True))]
    patterns: list[str] = []
    rows = sorted(numbers)
    for first, group in groupby(rows, key=lambda row: row[0]):
        rest = [row[1:] for row in group]
        patterns += [f"{words[0]}{first}{pattern}" for pattern in _patterns(words[1:], rest)]
    return patterns


def _span(values: Sequence[int]) -> str:
    """`3`, `{0..22}`, `{0..3,7}`, `{1,3..27}` for every second one; of many runs the first and the last."""
    steps = {b - a for a, b in pairwise(values)}
    if len(values) > 3 and len(steps) == 1 and steps != {1}:
        return f"{{{values[0]},{values[1]}..{values[-1]}}}"
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = [str(r[0]) if len(r) == 1 else f"{r[0]},{r[1]}" if len(r) == 2 else f"{r[0]}..{r[-1]}" for r in runs]
    if len(texts) > MOST_RUNS:
        texts = [*texts[: MOST_RUNS - 2], "...", texts[-1]]
    return texts[0] if len(values) == 1 else "{" + ",".join(texts) + "}"


def clean(text: str) -> str:
    """Text that cannot control a terminal: control characters shown as `\\x1b`, tabs as spaces."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.expandtabs(4))


def tree(findings: Sequence[Finding]) -> list[tuple[Finding, list[Finding]]]:
    """Headlines, each with the findings that follow from it. A missing cause makes no finding disappear."""
    heads = [f for f in findings if f.cause is None]
    shown = {f.code for f in heads}
    rows = []
    for i, finding in enumerate(heads):
        first = finding.code not in {f.code for f in heads[:i]}
        rows.append((finding, [f for f in findings if first and f.cause == finding.code]))
    return rows + [(f, []) for f in findings if f.cause is not None and f.cause not in shown]


def layer_count(m: Measurement) -> int:
    return sum(layer.kind != "container" for layer in m.layers)


def summary(report: Report) -> str:
    """`Found 2 errors, 1 warning in 100 layers (21 rules passed, 3 not applicable).`, after a note if the run was judged only in part."""
    return f"Judged in part: {looked(report.coverage)}. {result(report)}" if report.coverage.in_part else result(report)


def looked(part: Coverage) -> str:
    """`9 of 66 applicable rules looked`."""
    return f"{part.looked} of {counted(part.applicable, 'applicable rule')} looked"


def result(report: Report) -> str:
    """`Found 2 errors, 1 warning in 100 layers (21 rules passed, 3 not applicable).`"""
    rows = tree(report.findings)
    heads = [head for head, _ in rows]
    follow = sum(len(below) for _, below in rows)
    counts = [counted(n, s) for s in SEVERITIES if (n := sum(h.severity == s for h in heads))]
    found = "Found " + ", ".join(counts) if heads else "They found nothing" if report.coverage.in_part else "No findings"
    more = f" and {counted(follow, 'consequence')}" if follow else ""
    layers = layer_count(report.measurement)
    where = f" in {counted(layers, 'layer')}" if layers else ""
    where = " in the log" if report.measurement.log is not None else where
    return f"{found}{more}{where} ({rule_counts(report)})."


def rule_counts(report: Report) -> str:
    """`21 rules passed, 3 not applicable, 1 suppressed, 1 crashed: dead-units (ValueError: ...)`."""
    by_status: dict[str, list[RuleState]] = {"passed": [], "not-applicable": [], "not-measured": [], "crashed": []}
    for rule in report.rules:
        by_status.setdefault(rule.status, []).append(rule)
    parts = [f"{counted(len(by_status['passed']), 'rule')} passed"]
    if by_status["not-applicable"]:
        parts.append(f"{len(by_status['not-applicable'])} not applicable")
    if by_status["not-measured"]:
        parts.append(f"{len(by_status['not-measured'])} not measured")
    if report.suppressed:
        parts.append(f"{len(report.suppressed)} suppressed")
    if report.known:
        parts.append(f"{len(report.known)} known")
    if by_status["crashed"]:
        crashes = "; ".join(f"{r.name} ({r.reason})" for r in by_status["crashed"])
        parts.append(f"{len(by_status['crashed'])} crashed: {crashes}")
    return ", ".join(parts)


def conditions(report: Report) -> str:
    """`100 steps x 3 seeds on cpu, torch 2.13.0, 4.2 s.`"""
    m = report.measurement
    if m.log is not None:
        return f"{counted(m.steps, 'step')}, {m.log.format}, {report.seconds:.1f} s."
    seeds = counted(len(report.measurements), "seed")
    dtype = "" if m.environment.dtype == "float32" else f" ({m.environment.dtype})"
    return f"{counted(m.steps, 'step')} x {seeds} on {m.environment.device}{dtype}, torch {m.environment.torch}, {report.seconds:.1f} s."


TOLD = ("structure", "memory", "adapters", "initialization")  # what `--init-only` is asked for


def guesses(report: Report, *, all_of_them: bool = False) -> list[Assumption]:
    """What gradcheck had to decide for the user; with `all_of_them` also what it found by convention or flag."""
    every = dict.fromkeys(a for m in report.measurements for a in m.assumptions)
    return [a for a in every if all_of_them or not a.given or a.about in TOLD]


Color = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class View:
    """How reports are shown. Only `full` heeds the first four."""

    color: Color = "auto"
    profile: bool = False
    show_passed: bool = False
    show_all: bool = False
    written: bool = False  # the edits are in the source
    fail_on: Severity | Literal["never"] = "error"  # least severity of a finding that fails the run
    allow_partial: bool = False  # a run that was judged in part does not fail


CONTEXT = 2  # lines above and below
GUTTER = "bold blue"


def snippet(lines: Mapping[int, str], location: Location, style: str, width: int | None = None) -> list[Text]:
    """Rows of the excerpt around a location; none when its line is not in `lines`.

    `width`: of the terminal; longer lines are cut so that the span stays in view. None: lines are not cut.
    """
    if location.line not in lines:
        return []
    shown = [n for n in range(location.line - CONTEXT, location.line + CONTEXT + 1) if n in lines]
    margin = len(str(shown[-1]))
    start, length = _lines_of(lines[location.line], location)
    room = None if width is None else max(width - margin - 4, 20)
    shift = 0 if room is None or start + length <= room else max(0, min(start - 4, start + length - room + 1))
    bar = Text(" " * (margin + 1) + "|", style=GUTTER)
    rows = [bar]
    for n in shown:
        rows.append(Text.assemble((f"{n:>{margin}} | ", GUTTER), _window(clean(lines[n]), shift, room)))
        rows[-1].rstrip()
        if n == location.line:
            carets = min(length, room - (start - shift)) if room is not None else length
            rows.append(Text.assemble((" " * (margin + 1) + "| ", GUTTER), " " * (start - shift), ("^" * max(carets, 1), style)))
    return [*rows, bar]


def _lines_of(line: str, location: Location) -> tuple[int, int]:
    """First cell and number of cells of the span on its first line. Tabs and wide characters count by their width."""
    begin = min(max(location.column - 1, 0), len(line))
    one_line = location.end_line in (0, location.line) and location.end_column > location.column
    end = location.end_column - 1 if one_line else len(line.rstrip())
    start = cell_len(clean(line[:begin]))
    return start, max(cell_len(clean(line[: max(end, begin)])) - start, 1)


def _window(text: str, shift: int, room: int | None) -> str:
    """The part of a line from cell `shift` on that fits, with an ellipsis where it was cut."""
    if shift:
        text = "…" + _drop_cells(text, shift + 1)
    if room is not None and cell_len(text) > room:
        while cell_len(text) > room - 1:
            text = text[:-1]
        text += "…"
    return text.rstrip()


def _drop_cells(text: str, count: int) -> str:
    while count > 0 and text:
        count -= cell_len(text[0])
        text = text[1:]
    return " " * -count + text


T = TypeVar("T")

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24
FEWEST_LAYERS = 4
WEIGHTED: tuple[LayerKind, ...] = ("linear", "conv", "recurrent")


def gradient_over_depth(m: Measurement) -> str:
    """`depth ▁▁▂▃▅▇█   first 7.4e-07 -> last 0.031   (x41900)`: rms of dL/d(output), first layer to last; "" when there are few.

    Scale: logarithmic, from the smallest to the largest, at least one decade high.
    """
    sizes = [g for layer in sorted(m.of_kind(*WEIGHTED), key=lambda x: x.order) if (g := _gradient(layer)) is not None]
    positive = [g for g in sizes if g > 0 and math.isfinite(g)]
    if len(sizes) < FEWEST_LAYERS or not positive:
        return ""
    first, last = sizes[0], sizes[-1]
    finite = first > 0 and last > 0 and math.isfinite(first) and math.isfinite(last)
    ratio = f"   (x{number(last / first)})" if finite else ""
    return f"{spark(sizes)}   first {number(first)} -> last {number(last)}{ratio}"


def _gradient(layer: Layer) -> float | None:
    """Root mean square of the gradient at the first measured step that has one."""
    gradients = (s.gradient for s in layer.snapshots)
    first = next((g for g in gradients if g is not None and g.count), None)
    if first is None or not layer.trained:
        return None
    return first.rms if first.finite else math.inf


def spark(values: Sequence[float], beside: Sequence[float] = ()) -> str:
    """Blocks on a logarithmic scale: zero is the lowest, "!" is not finite. `beside`: values that are shown on the same scale."""
    logs = [_log(v) for v in evenly(values, WIDTH)]
    finite = [x for x in (*logs, *map(_log, beside)) if math.isfinite(x)]
    low = min(finite, default=0.0)
    height = max(max(finite, default=0.0) - low, 1.0)
    return "".join(_block((x - low) / height) for x in logs)


def _log(value: float) -> float:
    return math.log10(value) if value > 0 and math.isfinite(value) else value if value else -math.inf


def _block(share: float) -> str:
    if share == -math.inf:
        return BLOCKS[0]
    return BLOCKS[round(share * (len(BLOCKS) - 1))] if math.isfinite(share) else "!"


def evenly(values: Sequence[T], most: int) -> Sequence[T]:
    """At most so many evenly spaced values, including the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
