"""The story of a fix: scan, treat a copy, prove the cure, plan the edits of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcheck.capture.script import captured, nothing_seen
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.config import Settings, settings_from
from gradcheck.errors import ConfigError, GradcheckError, TargetError
from gradcheck.fixing.exam import Seen, sick
from gradcheck.fixing.plan import advice
from gradcheck.fixing.proof import Verdict, prove
from gradcheck.fixing.therapy import Therapy
from gradcheck.fixing.ward import Terms, Ward
from gradcheck.measure.measure import SMALL_STEP
from gradcheck.measure.untouched import untouched
from gradcheck.nouns.report import Report
from gradcheck.nouns.treatment import Outcome
from gradcheck.remedies.protocol import Patient
from gradcheck.remedies.source import SourcePlan, plan_edits
from gradcheck.remedies.vocabulary import VOCABULARY
from gradcheck.scan import SCRIPT_BUDGET, SMALL, Progress, scan_workload
from gradcheck.target.load import load
from gradcheck.target.objects import from_objects
from gradcheck.target.outputs import own_loss_of
from gradcheck.target.spec import TargetSpec
from gradcheck.target.workload import Batch, Workload

SMALL_BUDGET, LARGE_BUDGET = 60.0, 300.0  # seconds for treating and proving models below and above SMALL parameters


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

    patient: Patient
    report: Report  # of the untreated workload, with the outcomes
    after: Report | None  # a scan of the treated one; None: nothing was prescribed, or there was no time
    source: SourcePlan | None  # the edits; None: the model was made of objects that have no file, or nothing was prescribed
    why_no_source: str = ""
    interrupted: bool = False

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.report.outcomes

    @property
    def model(self) -> nn.Module:
        return self.patient.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.patient.optimizer

    @property
    def loss(self) -> Callable[[Any, Any], torch.Tensor]:
        """`loss(output, target)`; of a model that computes its own loss, what reads it from the output."""
        return self.patient.workload.loss or _own_loss

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of a prepared batch, where the user gave `training_step`, or for brevity."""
        return self.patient.workload.training_step(model, batch)

    def clip(self, parameters: Iterable[torch.Tensor]) -> None:
        """Clips the gradients, before the optimizer's step; does nothing when no clipping is prescribed nor was there."""
        clip = self.patient.workload.clip
        if clip is not None:
            by = torch.nn.utils.clip_grad_norm_ if clip.kind == "norm" else torch.nn.utils.clip_grad_value_
            by(parameters, clip.threshold)

    def prepare(self, batch: Batch) -> Batch:
        """What becomes of a batch before the model and the loss see it."""
        return self.patient.prepare(batch)


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


def fix_target(spec: TargetSpec, settings: Settings, terms: Terms, progress: Progress | None = None) -> Fixed:
    """The same for a target that is named: a model file or an import path. Ctrl-C ends the treatment, not the result."""
    with untouched():
        return fix_workload(load(spec), settings, terms, progress, partial=True)


def fix_script(spec: ScriptSpec, settings: Settings, terms: Terms, progress: Progress | None = None) -> list[Fixed]:
    """The same for a training script: one for each of its optimizers whose training can be repeated."""
    with untouched(), captured(spec) as run:
        trainings = trainings_of(run, spec)
        able = [t for t in trainings if t.workload is not None]
        if not able:
            why = trainings[0].why or "its training cannot be repeated"
            raise TargetError(f"{spec.path} cannot be treated: {why}", hint="`gradcheck scan` says what was seen of it")
        own = replace(settings, budget=(settings.budget or SCRIPT_BUDGET) / len(trainings))
        try:
            return [fix_workload(t.workload, own, terms, progress, t.seen, partial=True) for t in able if t.workload is not None]
        except TargetError as error:
            raise (nothing_seen(run, spec) if run.error is not None else error) from error


def fix_workload(
    workload: Workload, settings: Settings, terms: Terms, progress: Progress | None = None, seen: Seen | None = None, partial: bool = False
) -> Fixed:
    """Scan, treat, prove, plan the edits. `partial`: Ctrl-C while treating leaves what was found by then, instead of nothing."""
    tick = progress or (lambda phase, fraction: None)
    report = scan_workload(workload, settings, progress, seen)
    probe = report.measurement.probe
    if probe.losses and probe.seconds < SMALL_STEP * len(probe.losses):
        torch.set_num_threads(1)
    ward = Ward(workload, VOCABULARY, settings, _with_budget(terms, workload), tick, seen)
    therapy = Therapy(ward, report)
    try:
        therapy.run()
    except KeyboardInterrupt:
        if not partial:
            raise
        therapy.interrupted = True
        ward.stop()
    verdict = prove(therapy)
    source, why = _edits(verdict, workload)
    left = {f.code for f in sick(verdict.after or report)}
    outcomes = (*_with_diffs(verdict, workload, source), *advice(report.findings, report.measurement, VOCABULARY, left))
    treated = replace(report, outcomes=outcomes, proof=verdict.proof)
    return Fixed(ward.patient(verdict.plan), treated, verdict.after, source, why, therapy.interrupted)


def terms_of(unsafe: bool, steps: int | None, seeds: int, budget: float | None) -> Terms:
    """Raises ConfigError for numbers that make no sense."""
    if steps is not None and (not isinstance(steps, int) or steps < 3):
        raise ConfigError(f"steps must be a whole number of at least 3; got {steps!r}")
    if not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(f"seeds must be a whole number of at least 1; got {seeds!r}", hint="three tell a cure from chance")
    if budget is not None and not budget > 0:
        raise ConfigError(f"budget must be above 0 seconds; got {budget!r}")
    return Terms(unsafe, steps or Terms.steps, seeds, budget or 0.0)


def _with_budget(terms: Terms, workload: Workload) -> Terms:
    if terms.budget:
        return terms
    small = sum(p.numel() for p in workload.model.parameters()) < SMALL
    return replace(terms, budget=SMALL_BUDGET if small else LARGE_BUDGET)


def _edits(verdict: Verdict, workload: Workload) -> tuple[SourcePlan | None, str]:
    """The plan as edits of the user's files; with None, why there are none."""
    if not verdict.plan:
        return None, ""
    if not workload.files:
        return None, "the model does not come from a file"
    try:
        return plan_edits(verdict.plan, verdict.before.measurement, list(workload.files)), ""
    except GradcheckError as error:
        return None, error.message


def _with_diffs(verdict: Verdict, workload: Workload, source: SourcePlan | None) -> list[Outcome]:
    """The outcomes, each kept one with its own part of the edits, or the reason why it has none."""
    if source is None:
        return list(verdict.outcomes)
    reasons = {id(p): why for p, why in source.unwritten}
    done = []
    for outcome in verdict.outcomes:
        if outcome.status == "kept":
            alone = plan_edits([outcome.prescription], verdict.before.measurement, list(workload.files))
            why = next((why for p, why in source.unwritten if p.treatment == outcome.prescription.treatment), "") if reasons else ""
            note = f"not written: {why}" if why else ""
            outcome = replace(outcome, diff=alone.diff, reason="; ".join(x for x in (outcome.reason, note) if x))
        done.append(outcome)
    return done


def _own_loss(output: Any, target: Any = None) -> torch.Tensor:
    found = own_loss_of(output)
    if found is None:
        raise TargetError("the model returned no loss of its own", hint="use fixed.training_step(fixed.model, batch)")
    return found
