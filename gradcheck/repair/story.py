"""The story of a fix: scan, treat a copy, prove the cure, plan the edits of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcheck.config.settings import Settings, settings_from
from gradcheck.errors import ConfigError, GradcheckError, TargetError
from gradcheck.loading.load import load
from gradcheck.loading.objects import from_objects
from gradcheck.loading.spec import TargetSpec
from gradcheck.measure.probe import SMALL_STEP
from gradcheck.pipeline import Progress, scan_workload
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.remedies.writers import plan_edits
from gradcheck.repair.lab import Lab, RepairOptions
from gradcheck.repair.plan import advice
from gradcheck.repair.rescan import Seen, faulty
from gradcheck.repair.session import RepairSession
from gradcheck.repair.verification import Verdict, verify
from gradcheck.training.clip import clip_gradients
from gradcheck.types.fix import Outcome
from gradcheck.types.report import Report
from gradcheck.types.training import Run
from gradcheck.workload.outputs import own_loss_of
from gradcheck.workload.process_state import untouched
from gradcheck.workload.treated import TreatedWorkload
from gradcheck.workload.workload import Batch, Workload

LEAST_BUDGET, MOST_BUDGET = 180.0, 300.0  # seconds for treating and proving: between them, what so many trainings need
TRAININGS = 100


@dataclass
class Fixed:
    """A treated copy of the workload, and how it came to that. With nothing prescribed it is a plain copy.

    for batch in loader:
        x, y = fixed.prepare(batch)
        fixed.optimizer.zero_grad()
        fixed.loss(fixed.model(x), y).backward()
        fixed.clip(fixed.model.parameters())
        fixed.optimizer.step()
    """

    patient: TreatedWorkload | None  # None: a script was treated, and runs by itself
    report: Report  # of the untreated workload, with the outcomes
    after: Report | None  # a scan of the treated one; None: nothing was prescribed, or there was no time
    source: SourcePlan | None  # the edits; None: the model was made of objects that have no file, or nothing was prescribed
    why_no_source: str = ""
    interrupted: bool = False

    def _repr_html_(self) -> str:
        """What a notebook shows: the report, with what was tried and proved."""
        return self.report._repr_html_()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.report.outcomes

    @property
    def treated(self) -> TreatedWorkload:
        """Raises TargetError when there is no treated copy."""
        if self.patient is None:
            raise TargetError("of a script there is no treated copy", hint="write the edits, and run the script")
        return self.patient

    @property
    def model(self) -> nn.Module:
        return self.treated.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.treated.optimizer

    @property
    def loss(self) -> Callable[[Any, Any], torch.Tensor]:
        """`loss(output, target)`; of a model that computes its own loss, what reads it from the output."""
        return self.treated.workload.loss or _own_loss

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of a prepared batch, where the user gave `training_step`, or for brevity."""
        return self.treated.workload.training_step(model, batch)

    def clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clips the gradients, before the optimizer's step; does nothing when no clipping is prescribed nor was there."""
        clip_gradients(self.treated.workload.clip, self.treated.model, parameters)

    def prepare(self, batch: Batch) -> Batch:
        """What becomes of a batch before the model and the loss see it."""
        return self.treated.prepare(batch)


def fix(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    val_data: Any = None,
    training_step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    unsafe: bool = False,
    steps: int | None = None,
    seeds: int = 3,
    budget: float | None = None,
    config: Settings | Mapping[str, Any] | str | Path | None = None,
) -> Fixed:
    """Scans a model, tries remedies on copies, and returns the treated copy. Changes nothing of what it is given.

    Data, loss and the others are as in `gradcheck.scan`. `unsafe`: also remedies that change the architecture or the checkpoint keys.
    `steps`: of each short training; `seeds`: how many pairs prove a cure; `budget`: seconds for both, the scan not counted.
    Raises `gradcheck.errors.TargetError` when the workload does not run, `ConfigError` for bad settings.
    """
    settings, terms = settings_from(config), terms_of(unsafe, steps, seeds, budget)
    with untouched():
        workload = from_objects(model, data, loss=loss, optimizer=optimizer, val_data=val_data, training_step=training_step)
        return fix_workload(workload, settings, terms)


def fix_target(spec: TargetSpec, settings: Settings, terms: RepairOptions, progress: Progress | None = None) -> Fixed:
    """The same for a target that is named: a model file or an import path. Ctrl-C ends the treatment, not the result."""
    with untouched():
        return fix_workload(load(spec), settings, terms, progress, partial=True)


def fix_workload(
    workload: Workload, settings: Settings, terms: RepairOptions, progress: Progress | None = None, partial: bool = False
) -> Fixed:
    """Scan, treat, prove, plan the edits. `partial`: Ctrl-C while treating leaves what was found by then, instead of nothing."""
    report = scan_workload(workload, settings, progress)
    done = treat(workload, report, settings, terms, progress, partial=partial)
    source, why = _edits(done.verdict, workload)
    left = {f.code for f in faulty(done.verdict.after or report)}
    outcomes = (*_with_diffs(done.verdict, workload, source), *advice(report.findings, report.measurement, CATALOGUE, left))
    treated = replace(report, outcomes=outcomes, proof=done.verdict.proof)
    return Fixed(done.ward.patient(done.verdict.plan), treated, done.verdict.after, source, why, done.interrupted)


@dataclass
class Treated:
    """What came of remedies on copies of a workload."""

    ward: Lab
    verdict: Verdict
    interrupted: bool


def treat(
    workload: Workload,
    report: Report,
    settings: Settings,
    terms: RepairOptions,
    progress: Progress | None = None,
    seen: Seen | None = None,
    partial: bool = False,
) -> Treated:
    """Tries what the findings of a scan ask for, and what may help besides, on copies; what is left is proved."""
    probe = report.measurement.probe
    if probe.losses and probe.seconds < SMALL_STEP * len(probe.losses):
        torch.set_num_threads(1)
    tick = progress or (lambda phase, fraction: None)
    ward = Lab(workload, CATALOGUE, settings, _with_budget(terms, probe), tick, seen)
    therapy = RepairSession(ward, report)
    return Treated(ward, _proved(therapy, partial), therapy.interrupted)


def _proved(therapy: RepairSession, partial: bool) -> Verdict:
    """What holds of the therapy; of a second one, when after the first the model does not train on the seeds of the proof."""
    verdict = None
    try:
        therapy.run()
        verdict = verify(therapy)
        if therapy.second_choice():
            other = verify(therapy)
            verdict = other if other.plan or not verdict.plan else verdict
        return verify(therapy) if therapy.again() else verdict
    except KeyboardInterrupt:
        if not partial:
            raise
        therapy.interrupted = True
        therapy.ward.stop()
        return verdict or verify(therapy)


def terms_of(unsafe: bool, steps: int | None, seeds: int, budget: float | None) -> RepairOptions:
    """Raises ConfigError for numbers that make no sense."""
    if steps is not None and (not isinstance(steps, int) or steps < 3):
        raise ConfigError(f"steps must be a whole number of at least 3; got {steps!r}")
    if not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(f"seeds must be a whole number of at least 1; got {seeds!r}", hint="three tell a cure from chance")
    if budget is not None and not budget > 0:
        raise ConfigError(f"budget must be above 0 seconds; got {budget!r}")
    return RepairOptions(unsafe, steps or RepairOptions.steps, seeds, budget or 0.0)


def _with_budget(terms: RepairOptions, probe: Run) -> RepairOptions:
    if terms.budget:
        return terms
    needed = TRAININGS * terms.steps * probe.seconds / max(1, len(probe.losses))
    return replace(terms, budget=min(MOST_BUDGET, max(LEAST_BUDGET, needed)))


def _edits(verdict: Verdict, workload: Workload) -> tuple[SourcePlan | None, str]:
    """The plan as edits of the user's files; with None, why there are none."""
    if not verdict.plan:
        return None, ""
    if not workload.files:
        return None, "the model does not come from a file"
    try:
        return _written_together(verdict, workload), ""
    except GradcheckError as error:
        return None, error.message


def _written_together(verdict: Verdict, workload: Workload) -> SourcePlan:
    """The edits. What no finding asked for was chosen for the treated model: without the cure of an error it stays out of the source."""
    measurement, files = verdict.before.measurement, list(workload.files)
    source = plan_edits(verdict.plan, measurement, files)
    errors = {f.code for f in faulty(verdict.before) if f.severity == "error"}
    missing = dict.fromkeys(p.treatment for p, _ in source.unwritten if errors.intersection(p.findings))
    extras = [p for p in source.written if not p.findings]
    if not missing or not extras:
        return source
    why = f"it was chosen together with {', '.join(missing)}, which is not in the source"
    rest = [p for p in verdict.plan if p not in extras]
    alone = plan_edits(rest, measurement, files)
    return replace(alone, unwritten=(*alone.unwritten, *((p, why) for p in extras)))


def _with_diffs(verdict: Verdict, workload: Workload, source: SourcePlan | None) -> list[Outcome]:
    """The outcomes, each kept one with its own part of the edits, or the reason why it has none."""
    if source is None:
        return list(verdict.outcomes)
    done = []
    for outcome in verdict.outcomes:
        if outcome.status == "kept":
            alone = plan_edits([outcome.prescription], verdict.before.measurement, list(workload.files))
            why = next((why for p, why in source.unwritten if p.treatment == outcome.prescription.treatment), "")
            note = f"not written: {why}" if why else ""
            diff = "" if why else alone.own_diff
            outcome = replace(outcome, diff=diff, reason="; ".join(x for x in (outcome.reason, note) if x))
        done.append(outcome)
    return done


def _own_loss(output: Any, target: Any = None) -> torch.Tensor:
    found = own_loss_of(output)
    if found is None:
        raise TargetError("the model returned no loss of its own", hint="use fixed.training_step(fixed.model, batch)")
    return found
