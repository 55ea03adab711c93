"""The story of a fix: a scan finds, remedies are tried on copies, what helps is verified on fresh seeds and becomes edits of the source."""

from dataclasses import dataclass, replace

import torch

from gradcheck.config.settings import Settings
from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.measure.probe import SMALL_STEP
from gradcheck.pipeline import Progress, scan_workload
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.repair.edits import source_edits, with_diffs
from gradcheck.repair.fixed import Fixed
from gradcheck.repair.lab import RepairLab
from gradcheck.repair.options import RepairOptions, with_budget
from gradcheck.repair.plan import advice
from gradcheck.repair.rescan import Seen, faulty
from gradcheck.repair.session import RepairSession
from gradcheck.repair.verification import Verified, verify
from gradcheck.types.report import Report
from gradcheck.workload.process_state import untouched
from gradcheck.workload.workload import Workload


def fix_target(spec: TargetSpec, settings: Settings, options: RepairOptions, progress: Progress | None = None) -> Fixed:
    """For a named target: a model file or an import path. Ctrl-C ends the search; what was found is reported."""
    with untouched():
        return fix_workload(load(spec), settings, options, progress, partial=True)


def fix_workload(
    workload: Workload, settings: Settings, options: RepairOptions, progress: Progress | None = None, partial: bool = False
) -> Fixed:
    """Scan, treat, verify, plan the edits. `partial`: Ctrl-C while treating leaves what was found by then, instead of nothing."""
    report = scan_workload(workload, settings, progress)
    repaired = repair(workload, report, settings, options, progress, partial=partial)
    verified = repaired.verified
    source, why = source_edits(verified, workload)
    left = {f.code for f in faulty(verified.after or report)}
    outcomes = (*with_diffs(verified, workload, source), *advice(report.findings, report.measurement, CATALOGUE, left))
    told = replace(report, outcomes=outcomes, proof=verified.proof)
    return Fixed(repaired.lab.treated(verified.plan), told, verified.after, source, why, repaired.interrupted)


@dataclass
class Repaired:
    """What remedies achieved on copies of a workload."""

    lab: RepairLab
    verified: Verified
    interrupted: bool


def repair(
    workload: Workload,
    report: Report,
    settings: Settings,
    options: RepairOptions,
    progress: Progress | None = None,
    seen: Seen | None = None,
    partial: bool = False,
) -> Repaired:
    """Tries on copies what the findings ask for and what else may help, and verifies what is left."""
    probe = report.measurement.probe
    if probe.losses and probe.seconds < SMALL_STEP * len(probe.losses):
        torch.set_num_threads(1)
    tick = progress or (lambda phase, fraction: None)
    lab = RepairLab(workload, CATALOGUE, settings, with_budget(options, probe), tick, seen)
    session = RepairSession(lab, report)
    return Repaired(lab, _verified(session, partial), session.interrupted)


def _verified(session: RepairSession, partial: bool) -> Verified:
    """The verified result of a session, or of a second one when the first does not make the model train on fresh seeds."""
    verified = None
    try:
        session.run()
        verified = verify(session)
        if session.second_choice():
            other = verify(session)
            verified = other if other.plan or not verified.plan else verified
        return verify(session) if session.again() else verified
    except KeyboardInterrupt:
        if not partial:
            raise
        session.interrupted = True
        session.lab.stop()
        return verified or verify(session)
