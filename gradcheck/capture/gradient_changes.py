"""What changes gradients between a backward pass and the step that uses them: clipping, and GradScalers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from gradcheck.capture.events import OptimizerTrace
from gradcheck.capture.recording import Recording
from gradcheck.instrument.loop_hooks import ClipKind, LoopListener
from gradcheck.instrument.loop_journal import fault_of_clipping


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
