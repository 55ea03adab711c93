"""Outcomes and proofs that are reported for the trainings of a treated script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.repair.lab import signature
from gradcheck.repair.loop import Mended
from gradcheck.repair.plan import advice, fixes_for, refused
from gradcheck.repair.rescan import faulty, looked_at, severities
from gradcheck.repair.script_plan import Edit, ScriptTrials
from gradcheck.repair.verification import Verified
from gradcheck.types.fix import Outcome, Proof
from gradcheck.types.report import Report


def outcomes_of(report: Report, copies: Verified | None, mended: Mended, trials: ScriptTrials, unsafe: bool) -> tuple[Outcome, ...]:
    """`report`: of the script as it was. `copies`: with what came of remedies on copies of this training; None: there were none."""
    tried = {e: o for e, o in trials.outcomes.items() if e.target == report.target}
    found = [_merged(o, tried, trials) for o in copies.outcomes] if copies is not None else []
    known = [signature([o.prescription]) for o in found]
    found += [_told(e, o, trials) for e, o in tried.items() if signature([e.fix]) not in known]
    if copies is None:
        found += refused(fixes_for(faulty(report), report.measurement, CATALOGUE), unsafe)
    after = trials.state.run.report_of(report.target)
    said = advice(report.findings, report.measurement, CATALOGUE, severities(after))
    return (*mended.of(report.target), *sorted(found, key=lambda o: o.status != "kept"), *said)


def _merged(outcome: Outcome, tried: dict[Edit, Outcome], trials: ScriptTrials) -> Outcome:
    """The outcome of a remedy on copies, with what its edit did in the script."""
    edit = next((e for e in tried if signature([e.fix]) == signature([outcome.prescription])), None)
    if edit is None:
        return outcome
    shown = _told(edit, tried[edit], trials)
    if shown.status == "kept":
        return replace(outcome, status="kept", reason=shown.reason, diff=shown.diff, cured=outcome.cured or shown.cured)
    return shown if outcome.status == "kept" or shown.status != "inapplicable" else outcome


def _told(edit: Edit, outcome: Outcome, trials: ScriptTrials) -> Outcome:
    return replace(outcome, diff=trials.diff_of(edit)) if outcome.status == "kept" else replace(outcome, effect=None, base=(), treated=())


def proof_of(report: Report, copies: Verified | None, outcomes: Sequence[Outcome], trials: ScriptTrials) -> Proof | None:
    """None when nothing was kept. The paired trainings on copies are reported if everything they tested has held in the script."""
    kept = [o for o in outcomes if o.status == "kept"]
    if not kept:
        return None
    after = trials.state.run.report_of(report.target)
    now, looked = severities(after), looked_at(after)
    cured = tuple(code for code in severities(report) if code in looked and code not in now)
    left = (*now, *(code for code in severities(report) if code not in looked))
    old = copies.proof if copies is not None else None
    treatments = {o.prescription.treatment for o in kept}
    if copies is None or old is None or not {p.treatment for p in copies.plan} <= treatments:
        return Proof(None, (), (), cured, left)
    return replace(old, cured=cured, left=left)
