"""The `full` format of a trial: the verdict, all curves side by side, what each remedy did in words, and the recommended edit."""

import math
from collections.abc import Iterator, Sequence

from gradcheck.analysis.wording import counted, number
from gradcheck.report.formatting import BLOCKS, clean, evenly
from gradcheck.report.outcomes import ADDED, REMOVED, Labelled, Line
from gradcheck.types.report import Report
from gradcheck.types.trial import Curve, Entry, EntryStatus, Interaction, TrialResult

SIGNS: dict[EntryStatus, tuple[str, str]] = {
    "untreated": (" ", "bold"),
    "helps": ("+", "bold green"),
    "promising": ("?", "cyan"),
    "undecided": ("?", "cyan"),
    "no-difference": ("=", "dim"),
    "worse": ("-", "red"),
    "diverged": ("!", "red"),
}
CURVE = 16  # characters
LONGEST_NAME = 44
ABOVE = 2.0  # times the highest start of a curve: the top of the scale
DECADE = 10.0  # curves that span more than this are drawn on a logarithmic scale
SHOWN = ("accuracy", "F1", "R2", "perplexity")


def lines(report: Report, *, everything: bool = False) -> Iterator[Line]:
    """Nothing for a report without a trial."""
    result = report.trial
    if result is None:
        return
    yield Labelled("trial:", "bold cyan", result.verdict)
    yield ("",)
    yield from table(result)
    yield ("",)
    for entry in result.entries:
        if everything or entry.status not in ("inapplicable", "untried", "failed"):
            yield Labelled(SIGNS.get(entry.status, (" ", ""))[0], SIGNS.get(entry.status, ("", ""))[1], entry.text)
    if not everything:
        yield from _left_out(result)
    for interaction in result.interactions:
        yield Labelled("together:", "bold cyan", added_up(interaction))
    yield from _edit(result)
    yield ("",)
    yield Labelled("", "dim", conditions(result))


def table(result: TrialResult) -> Iterator[Line]:
    """A row for each entry that ran. All curves have one scale: that of the validation losses, or of the training losses without them."""
    rows = [e for e in (result.base, *result.entries) if e.seeds]
    losses = [e.validation if result.base.validation.steps else e.training for e in rows]
    scale = scale_of([*losses, *(e.training for e in rows)])
    cells = [("", "", "training", "validation", result.metric, *_score_names(result), "seeds", "ms/step")]
    cells += [_row(e, result, scale) for e in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for i, row in enumerate(cells):
        text = "  ".join(c.ljust(w) if j < 4 else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        yield ((text, "bold" if i == 0 else SIGNS.get(rows[i - 1].status, ("", ""))[1]),)


def _row(entry: Entry, result: TrialResult, scale: tuple[float, float]) -> tuple[str, ...]:
    name = clean(entry.title)
    name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    value = _value(entry, result)
    scores = {s.metric: number(s.median) for s in entry.scores}
    return (
        SIGNS.get(entry.status, (" ", ""))[0],
        name,
        curve(entry.training, scale),
        curve(entry.validation, scale),
        number(value),
        *(scores.get(n, "-") for n in _score_names(result)),
        f"{entry.seeds}" if entry.fresh else f"({entry.seeds})",
        "-" if entry.step_ms is None else f"{entry.step_ms:.2f}",
    )


def _value(entry: Entry, result: TrialResult) -> float:
    """The metric, as in the effects; at the end of the curve if there is no effect."""
    if entry.effect is not None and entry.effect.lower_is_better:
        return entry.effect.treated
    known = [e.effect.base for e in result.entries if e.effect is not None and e.fresh == entry.fresh and e.effect.lower_is_better]
    last = (entry.validation if result.metric == "validation loss" else entry.training).median
    return known[0] if entry is result.base and known else last[-1] if last else math.nan


def _score_names(result: TrialResult) -> list[str]:
    return [s.metric for s in result.base.scores if s.metric in SHOWN][:2]


def scale_of(curves: Sequence[Curve]) -> tuple[float, float]:
    """Lowest and highest finite value; what rises far above all starts is cut off, so that the others can be told apart."""
    known = [v for c in curves for v in c.median if math.isfinite(v)]
    first = [c.median[0] for c in curves if c.median and math.isfinite(c.median[0])]
    if not known:
        return 0.0, 1.0
    highest = ABOVE * max(first) if first and max(first) > 0 else math.inf
    return min(known), max(min(known), min(max(known), highest))


def curve(values: Curve, scale: tuple[float, float]) -> str:
    """Blocks over the steps; "!" where it is not finite."""
    return "".join(_block(v, *scale) for v in evenly(values.median, CURVE))


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "!"
    if low > 0 and high > DECADE * low:
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    share = (value - low) / (high - low) if high > low else 0.0
    return BLOCKS[round(min(1.0, max(0.0, share)) * (len(BLOCKS) - 1))]


def added_up(x: Interaction) -> str:
    """`l1 and dropout overlap: -0.21 together, -0.18 and -0.12 alone`."""
    names = ", ".join(x.names[:-1]) + f" and {x.names[-1]}"
    alone = ", ".join(number(d) for d in x.single[:-1]) + f" and {number(x.single[-1])}"
    meaning = {"add up": "add up", "overlap": "overlap", "reinforce": "reinforce each other", "undecided": "may or may not add up"}
    return f"{names} {meaning[x.verdict]}: {number(x.together)} together, {alone} alone"


def _left_out(result: TrialResult) -> Iterator[Line]:
    named = (("inapplicable", "not applicable:"), ("failed", "failed:"), ("untried", "not tried:"))
    for status, label in named:
        names = [e.name for e in result.entries if e.status == status]
        if names:
            yield Labelled(label, "dim", ", ".join(names))


def _edit(result: TrialResult) -> Iterator[Line]:
    if not result.recommended:
        return
    if result.diff:
        yield ("",)
        for line in clean_lines(result.diff):
            style = ADDED if line.startswith("+") and not line.startswith("+++") else REMOVED if line.startswith("-") else ""
            yield ((line, style if not line.startswith("---") else ""),)
    for name, why in result.unwritten:
        text = next((p.text for p in result.prescriptions if p.treatment == name), name)
        yield Labelled("help:", "bold cyan", f"{text} (no edit: {why})")


def clean_lines(text: str) -> list[str]:
    return [clean(line) for line in text.splitlines()]


def conditions(result: TrialResult) -> str:
    """`324 steps, 120 samples to train and 322 to validate on; differences of 0.02 count; 58.1 s of 60.`"""
    samples = f", {result.samples[0]} samples to train and {result.samples[1]} to validate on" if any(result.samples) else ""
    least = f"differences in {result.metric} of {number(result.relevant)} or more count"
    screened = "in brackets: seeds of the screening"
    seeds = f"{counted(result.base.seeds, 'seed')} in the final ({screened})" if result.base.fresh else f"no final ({screened})"
    return f"{counted(result.steps, 'step')}{samples}; {seeds}; {least}; {result.seconds:.1f} s of {result.budget:g}."
