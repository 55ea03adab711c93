"""Edits of the source for the remedies that helped on copies."""

from dataclasses import replace

from gradcheck.errors import GradcheckError
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.remedies.writers import plan_edits
from gradcheck.repair.rescan import faulty
from gradcheck.repair.verification import Verified
from gradcheck.types.fix import Outcome
from gradcheck.workload.workload import Workload


def source_edits(verified: Verified, workload: Workload) -> tuple[SourcePlan | None, str]:
    """The plan as edits of the user's files; or None, and why there are none."""
    if not verified.plan:
        return None, ""
    if not workload.files:
        return None, "the model does not come from a file"
    try:
        return _written_together(verified, workload), ""
    except GradcheckError as error:
        return None, error.message


def _written_together(verified: Verified, workload: Workload) -> SourcePlan:
    """The edits. Remedies that no finding asked for are written only together with the cure of an error."""
    measurement, files = verified.before.measurement, list(workload.files)
    source = plan_edits(verified.plan, measurement, files)
    errors = {f.code for f in faulty(verified.before) if f.severity == "error"}
    missing = dict.fromkeys(p.treatment for p, _ in source.unwritten if errors.intersection(p.findings))
    extras = [p for p in source.written if not p.findings]
    if not missing or not extras:
        return source
    why = f"it was chosen together with {', '.join(missing)}, which is not in the source"
    rest = [p for p in verified.plan if p not in extras]
    alone = plan_edits(rest, measurement, files)
    return replace(alone, unwritten=(*alone.unwritten, *((p, why) for p in extras)))


def with_diffs(verified: Verified, workload: Workload, source: SourcePlan | None) -> list[Outcome]:
    """The outcomes. Each kept one has its part of the edits, or the reason why there is none."""
    if source is None:
        return list(verified.outcomes)
    done = []
    for outcome in verified.outcomes:
        if outcome.status == "kept":
            alone = plan_edits([outcome.prescription], verified.before.measurement, list(workload.files))
            why = next((why for p, why in source.unwritten if p.treatment == outcome.prescription.treatment), "")
            note = f"not written: {why}" if why else ""
            diff = "" if why else alone.own_diff
            outcome = replace(outcome, diff=diff, reason="; ".join(x for x in (outcome.reason, note) if x))
        done.append(outcome)
    return done
