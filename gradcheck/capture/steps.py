"""Steps of torch's optimizers, from before their first one on; and what changes gradients before them: clipping, and GradScalers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from gradcheck.capture.events import OptimizerTrace
from gradcheck.capture.recording import Recording
from gradcheck.capture.step_log import StepLog
from gradcheck.capture.updates import Updates
from gradcheck.instrument.loop_hooks import ClipKind, LoopListener
from gradcheck.instrument.loop_journal import fault_of_clipping
from gradcheck.instrument.running_code import here, outside, variable_of
from gradcheck.instrument.source_loops import loops_around
from gradcheck.instrument.traced_optimizer import inner_optimizer
from gradcheck.rank import launched
from gradcheck.workload.replicas import replicas
from gradcheck.workload.training_copy import copy_optimizer

REPLICAS = 32  # steps at which those of several processes are compared: as many as are kept of a script


class Steps(LoopListener):
    def __init__(self, recording: Recording, log: StepLog, updates: Updates) -> None:
        self.recording, self.log, self.updates = recording, log, updates
        self._closure = False  # the step is given one
        self._busy = 0  # before the closure that runs

    def optimizer_made(self, optimizer: Optimizer) -> None:
        if not self.recording.busy and inner_optimizer(optimizer) is optimizer:
            self.recording.watched(optimizer)

    def clears(self, optimizer: Optimizer) -> None:
        watched = self.recording.optimizers.get(id(optimizer))
        if watched is not None:
            watched.skipped += not self.recording.busy
            watched.clear_site = watched.clear_site or here()

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        recording = self.recording
        if recording.busy:
            return
        if not (closure or recording.backwards or recording.asked) and _changes_nothing(optimizer):
            recording.idle += 1
            return
        recording.busy += 1
        self.updates.close()
        recording.averages.before_step()
        recording.stepping = watched = recording.watched(optimizer)
        self._closure = closure
        if watched.copy is None and not watched.steps:
            self._copy(watched)
        if watched.step_site is None:
            watched.step_site, watched.loops = here(), loops_around(outside())
            recording.journal.schedulers.name(watched)
        if len(watched.replicas) < REPLICAS and launched()[1] > 1:
            watched.replicas.append(replicas(watched.parameters))
        watched.starts()
        watched.note_weights(after=False)
        self.updates.leave_to(watched)
        if not closure:
            watched.settle()
            self.log.note(watched)

    def state_loaded(self, module: nn.Module, state: Any, result: Any) -> None:
        if not self.recording.busy:
            ids = {id(p) for p in module.parameters()}
            for watched in self.recording.optimizers.values():
                if watched.steps and not ids.isdisjoint(map(id, watched.parameters)):
                    watched.put_back = here()

    def step_given(self, options: Mapping[str, Any]) -> None:
        if self.recording.stepping is not None:
            self.recording.stepping.options.append(dict(options))

    def closure_begins(self) -> None:
        self._busy, self.recording.busy = self.recording.busy, 0

    def closure_ended(self) -> None:
        self.recording.busy = self._busy

    def _copy(self, watched: OptimizerTrace) -> None:
        recording = self.recording
        watched.label = watched.label or variable_of(watched.optimizer)
        watched.base_rate = float(watched.optimizer.param_groups[0].get("initial_lr", _rate(watched.optimizer)))
        recording.owners.own(watched.parameters)
        for owner in recording.owners.current.values():
            watched.memo |= owner.memo
        try:
            watched.keys = tuple(map(id, watched.parameters))
            watched.copy = copy_optimizer(watched.optimizer, watched.memo)
        except Exception as error:
            recording.tape.failure = recording.tape.failure or f"the optimizer cannot be copied: {type(error).__name__}: {error}"

    def step_failed(self, optimizer: Optimizer) -> None:
        if self.recording.stepping is not None:
            self.recording.stepping = None
            self.recording.busy -= 1

    def after_step(self, optimizer: Optimizer) -> None:
        recording = self.recording
        watched, recording.stepping = recording.stepping, None
        if watched is None:
            return
        if self._closure:
            evaluated = [*watched.cleared, *watched.live]
            watched.live, watched.cleared = evaluated[:1], []
            self.log.note(watched)
        recording.averages.after_step()
        watched.skipped = 0
        watched.note_weights(after=True)
        recording.busy -= 1
        recording.newest = None
        watched.keep_watch()
        self.log.taken(watched)
        recording.observer(recording)


def _changes_nothing(optimizer: Optimizer) -> bool:
    return all(p.grad is None for group in optimizer.param_groups for p in group.get("params", ()))


def _rate(optimizer: Any) -> float:
    return float(optimizer.param_groups[0].get("lr") or 0.0) if optimizer.param_groups else 0.0


class GradientChanges(LoopListener):
    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._clipped: list[OptimizerTrace] | None = None  # by the call that runs

    def before_clipping(self, kind: ClipKind, threshold: float, parameters: Sequence[torch.Tensor]) -> None:
        recording = self.recording
        if recording.busy:
            return
        recording.busy += 1
        ids = set(map(id, parameters))
        self._clipped = touched = [w for w in recording.optimizers.values() if w.ids & ids]
        for watched in touched:
            watched.settle()
        fault = fault_of_clipping(
            parameters,
            bool(touched) if recording.optimizers else None,
            any(w.live for w in touched),
            any(w.cleared for w in touched),
            any(w.steps for w in touched),
            any(p.factor != 1 for w in touched if not w.unscaled for p in w.live),
        )
        recording.journal.note_clip(kind, threshold, len(parameters), fault, touched)

    def after_clipping(self, result: Any) -> None:
        if self._clipped is not None:
            for watched in self._clipped:
                watched.note_version()
            self._clipped = None
            self.recording.busy -= 1

    def scales(self, scaler: Any) -> None:
        self.recording.busy += 1

    def scaled(self, scaler: Any, loss: torch.Tensor, result: torch.Tensor | None) -> None:
        recording = self.recording
        recording.busy -= 1
        noted = recording.journal.scaler
        if noted is not None and result is not None and scaler.is_enabled():
            noted.factor = scaler.get_scale()
            result._gradcheck_factor = noted.factor  # type: ignore[attr-defined]
        if result is not None and result is not loss:
            recording.tape.alias(result, recording.tape.ref(loss))

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None:
        if scaler.is_enabled():
            watched = self.recording.watched(optimizer)
            watched.unscaled = True
            watched.note_version()
