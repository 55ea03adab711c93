"""The story of a fix of a training script: its loop is mended first, then what the mended script trains is treated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradcheck.capture.script import Capture, captured, nothing_seen
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import Training, trainings_of
from gradcheck.config import Settings
from gradcheck.errors import TargetError
from gradcheck.fix import Fixed, fix_workload
from gradcheck.fixing.exam import severities
from gradcheck.fixing.loop import Look, Mended, look, mend, wanted
from gradcheck.fixing.plan import advice
from gradcheck.fixing.ward import Terms
from gradcheck.measure.untouched import untouched
from gradcheck.nouns.report import Report
from gradcheck.nouns.treatment import Proof
from gradcheck.remedies.vocabulary import VOCABULARY
from gradcheck.scan import SCRIPT_BUDGET, Progress, scan_training


def fix_script(spec: ScriptSpec, settings: Settings, terms: Terms, progress: Progress | None = None) -> list[Fixed]:
    """Scans a training script, tries remedies on copies of it and of what it trains: one result for each of its optimizers.

    The edits of all results are in the last one that has any: they go together into the script. Raises TargetError when it trains
    nothing, or when its training cannot be repeated and nothing in its loop could be mended.
    """
    with untouched():
        with captured(spec) as run:
            trainings = trainings_of(run, spec)
            seen = look(run, trainings, settings)
            if next(wanted(seen), None) is None:
                return _treated(run, spec, trainings, settings, terms, progress)
            before = _scans(trainings, seen, settings, progress)
        mended = mend(spec, seen, settings, progress or (lambda phase, fraction: None))
        with captured(mended.spec) as run:
            trainings = trainings_of(run, mended.spec)
            fixed = _treated(run, mended.spec, trainings, settings, terms, progress, mended)
        return [_whole(one, mended, before) for one in fixed]


def _share(settings: Settings, trainings: Sequence[Training]) -> Settings:
    """The time for measuring, for each of the trainings."""
    return replace(settings, budget=(settings.budget or SCRIPT_BUDGET) / len(trainings))


def _scans(trainings: Sequence[Training], seen: Look, settings: Settings, progress: Progress | None) -> dict[str, Report]:
    """By target: what a scan says of the script as it is; of a training that fails, what its loop shows."""
    found = {}
    for training, alone in zip(trainings, seen.reports, strict=True):
        try:
            report = scan_training(training, _share(settings, trainings), progress)
        except TargetError:
            report = alone
        found[training.name] = report
    return found


def _treated(
    run: Capture,
    spec: ScriptSpec,
    trainings: Sequence[Training],
    settings: Settings,
    terms: Terms,
    progress: Progress | None,
    mended: Mended | None = None,
) -> list[Fixed]:
    """Each training in turn; the edits of one go on where those of the one before it ended."""
    onto = mended.drafts if mended is not None else ()
    able = [t for t in trainings if t.workload is not None]
    if not able and not onto:
        why = trainings[0].blind.why or "its training cannot be repeated"
        raise TargetError(f"{spec.path} cannot be treated: {why}", hint="`gradcheck scan` says what was seen of it")
    own, fixed = _share(settings, trainings), []
    for training in able or trainings:
        if training.workload is None:
            fixed.append(_loop_alone(training, own))
            continue
        try:
            one = fix_workload(training.workload, own, terms, progress, training.seen, partial=True, onto=onto)
        except TargetError as error:
            raise (nothing_seen(run, spec) if run.error is not None else error) from error
        onto = one.source.drafts if one.source is not None else onto
        fixed.append(one)
        if one.interrupted:
            break
    return _with_all_edits(fixed, mended)


def _loop_alone(training: Training, settings: Settings) -> Fixed:
    report = scan_training(training, settings)
    left = severities(report)
    said = advice(report.findings, report.measurement, VOCABULARY, left)
    return Fixed(None, replace(report, outcomes=tuple(said)), None, None)


def _with_all_edits(fixed: list[Fixed], mended: Mended | None) -> list[Fixed]:
    """The edits of all trainings, and of the loop, in the last result that has any; the others keep what they say about theirs."""
    edited = [f for f in fixed if f.source is not None and f.source.drafts]
    for one in edited[:-1]:
        one.source = replace(one.source, drafts=())  # type: ignore[type-var]
    loop = mended.plan() if mended is not None else None
    if loop is not None and not edited:
        fixed[-1].source = replace(loop, unwritten=fixed[-1].source.unwritten) if fixed[-1].source is not None else loop
    return fixed


def _whole(fixed: Fixed, mended: Mended, before: dict[str, Report]) -> Fixed:
    """The result with what the script was like at first, and what was done to its loop."""
    now = fixed.report
    old = before.get(now.target) or next(iter(before.values()))
    after = fixed.after or replace(now, outcomes=(), proof=None)
    loop = mended.of(old.target)
    fixed.report = replace(old, outcomes=(*loop, *now.outcomes), proof=now.proof)
    fixed.after = after
    if any(o.status == "kept" for o in loop):
        was, left = severities(old), severities(after)
        proof = now.proof or Proof(None, (), ())
        fixed.report = replace(fixed.report, proof=replace(proof, cured=tuple(c for c in was if c not in left), left=tuple(left)))
    return fixed
