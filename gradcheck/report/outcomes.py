"""The `full` format's part about treatment: each remedy with its edit and its effect, and what was tried in vain."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradcheck.analysis.wording import counted, number
from gradcheck.report.formatting import GUTTER, HEALTHY, apart, clean, spark
from gradcheck.types.fix import TIME_WAS_UP, Change, Effect, Outcome, Proof
from gradcheck.types.report import Report
from gradcheck.types.training import Run

Parts = tuple[str | tuple[str, str], ...]  # with their styles, as rich assembles them

APPLICABILITY_STYLES = {"safe": "green", "unsafe": "yellow", "advice": "cyan"}
ADDED, REMOVED = "green", "red"
TRIED = {
    "not-verified": "did not help",
    "worse": "made it worse",
    "not-needed": "not needed",
    "failed": "failed",
    "inapplicable": "does not apply",
}


@dataclass(frozen=True)
class Labelled:
    """`label text`, to be wrapped under the text."""

    label: str
    style: str
    text: str


Line = Parts | Labelled


def lines(report: Report) -> Iterator[Line]:
    """Nothing for a scan that tried no remedies."""
    kept = [o for o in report.outcomes if o.status == "kept"]
    for i, outcome in enumerate(kept, 1):
        yield from _remedy(i, outcome, "without it" if len(kept) > 1 else "untreated")
    yield from _listed("tried:", [o for o in report.outcomes if o.status in TRIED])
    yield from _listed("not tried:", [o for o in report.outcomes if o.status == "untried"])
    advice = [o for o in report.outcomes if o.status == "advice"]
    if advice:
        yield ("",)
    for outcome in advice:
        yield Labelled("help:", "bold cyan", f"{outcome.prescription.text} ({', '.join(outcome.prescription.findings)})")
    if report.proof is not None:
        yield ("",)
        yield from _together(report.proof, kept)


def tail(report: Report, *, written: bool = False) -> str:
    """`Would apply 2 remedies: cures OPT001; left: GRAD001.` `written`: those that have an edit are in the source."""
    kept = [o for o in report.outcomes if o.status == "kept"]
    unsafe = sum(o.status == "untried" and o.prescription.applicability == "unsafe" for o in report.outcomes)
    more = f" {counted(unsafe, 'more remedy')} with --unsafe-fixes." if unsafe else ""
    if not kept or report.proof is None:
        faulty = report.count("error") + report.count("warning")
        late = [o for o in report.outcomes if o.status == "untried" and o.reason == TIME_WAS_UP]
        if late:
            remedies = counted(len(late), "remedy")
            return f"Time ran out before {remedies} for {counted(faulty, 'finding')} could be tried: raise --budget.{more}"
        return (f"No remedy was found for {counted(faulty, 'finding')}." if faulty else "Nothing to fix.") + more
    editable = sum(bool(o.diff) for o in kept)
    remedies = counted(len(kept), "remedy")
    left = f"; left: {', '.join(report.proof.left)}" if report.proof.left else "; nothing is left"
    cured = f"cures {', '.join(report.proof.cured)}" if report.proof.cured else "cures no finding, but training improves"
    if written and editable < len(kept):
        return f"Applied {editable} of {remedies} to the source; on the copy all together: {cured}{left}.{more}"
    verb, in_source = "Applied" if written else "Would apply", "" if editable == len(kept) else f" ({editable} of them in the source)"
    return f"{verb} {remedies}{in_source}: {cured}{left}.{more}"


def _remedy(index: int, outcome: Outcome, without: str) -> Iterator[Line]:
    p = outcome.prescription
    yield ("",)
    style = APPLICABILITY_STYLES[p.applicability]
    aims = f" for {', '.join(outcome.cured or p.findings)}" if outcome.cured or p.findings else ""
    yield ((f"remedy {index}: {p.treatment}", "bold"), f"{aims}  ", (p.applicability, style))
    yield Labelled("what:", "bold cyan", p.text)
    yield from _diff(outcome.diff)
    label = "measured:"
    for change in outcome.changes:
        yield Labelled(label, "", _change(change))
        label = " " * len(label)
    if outcome.effect is not None:
        yield from _trained(outcome.effect, outcome.base, outcome.treated, without)
    for note in (outcome.reason, p.checkpoint and f"checkpoints: {p.checkpoint}", p.citation and f"source: {p.citation}"):
        if note:
            yield Labelled("note:", "bold yellow", note)


def _diff(diff: str) -> Iterator[Line]:
    for line in diff.splitlines():
        if line.startswith(("---", "+++")):
            style = "bold"
        elif line.startswith("@@"):
            style = GUTTER
        else:
            style = ADDED if line.startswith("+") else REMOVED if line.startswith("-") else ""
        yield ("  ", (clean(line), style))


def _change(c: Change) -> str:
    """`update ratio = 0.9 -> 0.02   (needs <= 0.1)`."""
    unit = f" {c.unit}" if c.unit else ""
    after = "no longer there" if c.after is None else f"{number(c.after)}{unit}"
    if c.limit is None:
        return f"{c.quantity} = {number(c.before)}{unit} -> {after}"
    before, limit = apart(c.before, c.limit)
    needs = f"   (needs {HEALTHY[c.comparison]} {limit})" if c.comparison in HEALTHY else ""
    return f"{c.quantity} = {before}{unit} -> {after}{needs}"


def _trained(effect: Effect, base: Sequence[Run], treated: Sequence[Run], without: str) -> Iterator[Line]:
    yield Labelled("training:", "", f"{effect.metric} {number(effect.base)} -> {number(effect.treated)}   {_interval(effect)}")
    if base and treated and effect.metric in ("training loss", "validation loss"):  # other metrics stand in where losses cannot be compared
        width = len(without)
        yield (f"          {without:{width}} {curve(base, treated)}",)
        yield (f"          {'with it':{width}} {curve(treated, base)}",)


def _interval(e: Effect) -> str:
    seeds = counted(e.seeds, "seed")
    before, after = math.isfinite(e.base), math.isfinite(e.treated)
    if not (before and after):
        return f"{'diverged without, no more with it' if after else 'diverges with it' if before else 'diverges either way'}, {seeds}"
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return f"difference {number(e.difference)}, {seeds}"
    clear = "" if e.low > 0 or e.high < 0 else ": no difference beyond noise"
    return f"difference {number(e.difference)}, 95 % interval {number(e.low)} .. {number(e.high)}, {seeds}{clear}"


def curve(runs: Sequence[Run], others: Sequence[Run]) -> str:
    """The losses of the first run as blocks, on one logarithmic scale with those of the other."""
    return spark(runs[0].losses, [*others[0].losses])


def _listed(label: str, outcomes: Sequence[Outcome]) -> Iterator[Line]:
    if not outcomes:
        return
    yield ("",)
    width = max(len(o.prescription.treatment) for o in outcomes)
    for outcome in outcomes:
        p = outcome.prescription
        result = TRIED.get(outcome.status, "")
        reason = ": ".join(x for x in (result, outcome.reason) if x)
        yield Labelled(label, "dim", f"{p.treatment:{width}}  {reason}")
        label = " " * len(label)


def _together(proof: Proof, kept: Sequence[Outcome]) -> Iterator[Line]:
    if len(kept) > 1 and proof.effect is not None:
        yield (("all together:", "bold"),)
        yield from _trained(proof.effect, proof.base, proof.treated, "untreated")
