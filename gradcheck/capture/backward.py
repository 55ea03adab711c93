"""Backward passes: of which loss, and which optimizers are to use the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from gradcheck.capture.events import Pass
from gradcheck.capture.owners import variable_of
from gradcheck.capture.passes import leaves
from gradcheck.capture.tape import outside
from gradcheck.target.sites import location_of_frame

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


class Backward:
    """`wrapper` stands around `torch.autograd.backward`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def wrapper(self, original: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            if recorder.busy:
                return original(tensors, grad_tensors, *args, **kwargs)
            losses = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
            recorder.busy += 1
            try:
                passes = [self._pass(t, grad_tensors is not None) for t in losses if isinstance(t, torch.Tensor)]
                for watched in recorder.optimizers.values():
                    watched.settle()
                result = original(tensors, grad_tensors, *args, **kwargs)
                self._claim(passes)
            finally:
                recorder.busy -= 1
            recorder.observer(recorder)
            return result

        return backward

    def _pass(self, loss: torch.Tensor, given: bool) -> Pass:
        recorder, tape = self.recorder, self.recorder.tape
        recorder.backwards += 1
        place = location_of_frame(outside())
        recorder.backward_site = recorder.backward_site or place
        factor = getattr(loss, "_gradcheck_factor", 1.0)
        ref = tape.ref(loss) if tape.recording else None
        given = given and loss.dim() > 0
        return Pass(loss.detach() / factor, ref, place, leaves(loss), factor, given, tape.unknown, len(tape.cuts))

    def _claim(self, passes: list[Pass]) -> None:
        recorder = self.recorder
        for found in passes:
            recorder.newest = found
            wanted = [w for w in recorder.optimizers.values() if w.ids & found.reached]
            for watched in wanted:
                watched.label = watched.label or variable_of(watched.optimizer)
                watched.live = [*watched.live[-255:], found]
                watched.keep_watch()
                watched.note_version()
            recorder.connected = recorder.connected or bool(wanted)
            if not wanted:
                recorder.unclaimed = [*recorder.unclaimed[-63:], found]
