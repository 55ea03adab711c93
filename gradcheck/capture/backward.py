"""Backward passes: of which loss, and which optimizers are to use the gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from gradcheck.capture.events import BackwardPass
from gradcheck.capture.passes import leaves
from gradcheck.capture.root_modules import variable_of
from gradcheck.capture.tape import outside
from gradcheck.workload.source_sites import location_of_frame

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


ASKED = 63  # passes whose gradients were asked for and not used yet, before the last one


class Backward:
    """`wrapper` stands around `torch.autograd.backward`, `asking` around `torch.autograd.grad`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def wrapper(self, original: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            if recorder.busy:
                return original(tensors, grad_tensors, *args, **kwargs)
            tensors = _kept(tensors)
            losses = _tensors(tensors)
            recorder.busy += 1
            try:
                recorder.updates.close()
                reached = [leaves(t) for t in losses]
                passes = [self._pass(t, ids, grad_tensors is not None) for t, ids in zip(losses, reached, strict=True)]
                for watched in recorder.optimizers.values():
                    watched.settle()
                result = original(tensors, grad_tensors, *args, **kwargs)
                recorder.backwards += len(passes)
                self._claim(passes)
                for loss, found, mine in zip(losses, passes, reached, strict=True):
                    mine.pop(id(loss), None)  # a loss that is a leaf itself was made anew from numbers, and is no weight
                    recorder.updates.wait_for(found, mine, {key: t.grad for key, t in mine.items() if t.grad is not None})
                    recorder.forgotten.look(found, mine)
            finally:
                recorder.busy -= 1
            recorder.observer(recorder)
            return result

        return backward

    def asking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Gradients that are given back and not left in `.grad`: whether they are used shows later."""
        recorder, signature = self.recorder, inspect.signature(original)

        def grad(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments
            given |= {name: _kept(given[name]) for name in ("outputs", "inputs")}
            losses, inputs = _tensors(given["outputs"]), _tensors(given["inputs"])
            if not recorder.busy:
                recorder.forgotten.ask(inputs)
            if recorder.busy or given.get("create_graph") or given.get("is_grads_batched"):
                return original(*bound.args, **bound.kwargs)
            recorder.busy += 1
            try:
                recorder.updates.close()
                reached = {key: leaf for t in losses for key, leaf in leaves(t).items()}
                asked = {id(t): t for t in inputs if t.is_leaf and id(t) in reached and self._is_weight(t, reached)}
                passes = [self._pass(t, asked, given.get("grad_outputs") is not None) for t in losses] if asked else []
                result = original(*bound.args, **bound.kwargs)
                gradients = {id(t): g for t, g in zip(inputs, result, strict=True) if id(t) in asked and g is not None}
                recorder.asked = [*recorder.asked[-ASKED:], *passes]
                for found in passes[-1:]:
                    recorder.updates.wait_for(found, {**reached, **asked}, gradients)
                    recorder.forgotten.look(found, reached)
            finally:
                recorder.busy -= 1
            recorder.observer(recorder)
            return result

        return grad

    def _is_weight(self, tensor: torch.Tensor, reached: Mapping[int, torch.Tensor]) -> bool:
        key = id(tensor)
        return any(key in w.ids for w in self.recorder.optimizers.values()) or key in self.recorder.updates.trainable(reached)

    def _pass(self, loss: torch.Tensor, reached: Iterable[int], given: bool) -> BackwardPass:
        recorder, tape = self.recorder, self.recorder.tape
        place = location_of_frame(outside())
        recorder.backward_site = recorder.backward_site or place
        factor = getattr(loss, "_gradcheck_factor", 1.0)
        ref = tape.ref(loss) if tape.recording else None
        given = given and loss.dim() > 0
        value = loss.detach() / factor
        recorder.losses.append((place, value))
        return BackwardPass(value, ref, place, frozenset(reached), factor, given, tape.unknown, len(tape.cuts), dict(recorder.unfollowed))

    def _claim(self, passes: list[BackwardPass]) -> None:
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


def _kept(value: Any) -> Any:
    """What can be gone through more than once: `model.parameters()` cannot."""
    return tuple(value) if isinstance(value, Iterator) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for t in value if isinstance(t, torch.Tensor)]
