"""Backward passes: from which loss they start, and which optimizers will use their gradients."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gradcheck.capture.events import BackwardPass
from gradcheck.capture.forgotten import Forgotten, Remade
from gradcheck.capture.recording import Recording
from gradcheck.capture.updates import Updates
from gradcheck.capture.weighting import element_weight, gradient_sample
from gradcheck.instrument.loop_hooks import LoopListener
from gradcheck.instrument.running_code import here, variable_of
from gradcheck.workload.sharding import as_held

MOST_LEAVES = 200_000  # autograd nodes that are walked over for the leaves of one loss
ASKED = 63  # passes whose gradients were asked for and not used yet, before the last one


class Backward(LoopListener):
    """Hears of backward passes; `asking` wraps `torch.autograd.grad`."""

    def __init__(self, recording: Recording, updates: Updates, forgotten: Forgotten, remade: Remade) -> None:
        self.recording, self.updates, self.forgotten, self.remade = recording, updates, forgotten, remade
        self._running: list[tuple[BackwardPass, dict[int, torch.Tensor]]] | None = None  # with the leaves that each reaches

    def before_backward(self, losses: Sequence[torch.Tensor], given: bool) -> None:
        recording = self.recording
        if recording.busy:
            return
        recording.busy += 1
        self._running = []
        self.updates.close()
        for loss in losses:
            reached = leaves(loss)
            self.remade.look(loss, reached)
            found = self._pass(loss, reached, given)
            found.weight = element_weight(loss) if found.ref is not None and not found.gradient_given else None
            self._running.append((found, reached))
            reached.pop(id(loss), None)  # a loss that is a leaf itself was made again from numbers, and is not a weight
        for watched in recording.optimizers.values():
            watched.settle()

    def after_backward(self, done: bool) -> None:
        recording = self.recording
        passes, self._running = self._running, None
        if passes is None:
            return
        try:
            if done:
                recording.backwards += len(passes)
                self._claim([found for found, _ in passes])
                for found, mine in passes:
                    self.updates.wait_for(found, mine, {key: t.grad for key, t in mine.items() if t.grad is not None})
                    self.forgotten.look(found, mine)
                    found.gradient = gradient_sample(mine) if found.weight is not None else None
        finally:
            recording.busy -= 1
        if done:
            recording.observer(recording)

    def asking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Gradients that are returned rather than left in `.grad`: only later does it show whether they are used."""
        recording, signature = self.recording, inspect.signature(original)

        def grad(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments
            given |= {name: _kept(given[name]) for name in ("outputs", "inputs")}
            losses, inputs = _tensors(given["outputs"]), _tensors(given["inputs"])
            if not recording.busy:
                self.forgotten.ask(inputs)
                self.remade.ask(inputs)
            if recording.busy or given.get("create_graph") or given.get("is_grads_batched"):
                return original(*bound.args, **bound.kwargs)
            recording.busy += 1
            try:
                self.updates.close()
                reached = {key: leaf for t in losses for key, leaf in leaves(t).items()}
                asked = {id(t): t for t in inputs if t.is_leaf and id(t) in reached and self._is_weight(t, reached)}
                passes = [self._pass(t, asked, given.get("grad_outputs") is not None) for t in losses] if asked else []
                result = original(*bound.args, **bound.kwargs)
                if recording.tape.recording:
                    recording.tape.silent.derive(result, here())
                gradients = {id(t): g for t, g in zip(inputs, result, strict=True) if id(t) in asked and g is not None}
                recording.asked = [*recording.asked[-ASKED:], *passes]
                for found in passes[-1:]:
                    self.updates.wait_for(found, {**reached, **asked}, gradients)
                    self.forgotten.look(found, reached)
            finally:
                recording.busy -= 1
            recording.observer(recording)
            return result

        return grad

    def _is_weight(self, tensor: torch.Tensor, reached: Mapping[int, torch.Tensor]) -> bool:
        key = id(tensor)
        return any(key in w.ids for w in self.recording.optimizers.values()) or key in self.updates.trainable(reached)

    def _pass(self, loss: torch.Tensor, reached: Iterable[int], given: bool) -> BackwardPass:
        recording, tape = self.recording, self.recording.tape
        place = here()
        recording.backward_site = recording.backward_site or place
        factor = getattr(loss, "_gradcheck_factor", 1.0)
        ref = tape.ref(loss) if tape.recording else None
        given = given and loss.dim() > 0
        value = loss.detach() / factor
        recording.losses.append((place, value))
        return BackwardPass(value, ref, place, frozenset(reached), factor, given, tape.unknown, len(tape.cuts), dict(recording.unfollowed))

    def _claim(self, passes: list[BackwardPass]) -> None:
        recording = self.recording
        for found in passes:
            recording.newest = found
            wanted = [w for w in recording.optimizers.values() if w.ids & found.reached]
            for watched in wanted:
                watched.label = watched.label or variable_of(watched.optimizer)
                watched.live = [*watched.live[-255:], found]
                watched.keep_watch()
                watched.note_version()
            recording.connected = recording.connected or bool(wanted)
            if not wanted:
                recording.unclaimed = [*recording.unclaimed[-63:], found]


def _kept(value: Any) -> Any:
    """An iterable that can be gone through more than once, which `model.parameters()` cannot."""
    return tuple(value) if isinstance(value, Iterator) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for t in value if isinstance(t, torch.Tensor)]


def leaves(loss: torch.Tensor) -> dict[int, torch.Tensor]:
    """The leaves that a loss sends gradient to, by id."""
    if loss.grad_fn is None:
        return {id(loss): loss} if loss.requires_grad else {}
    found: dict[int, torch.Tensor] = {}
    seen, pending = {loss.grad_fn}, [loss.grad_fn]
    while pending and len(seen) < MOST_LEAVES:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            (held,) = as_held([variable])
            found[id(held)] = held
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return found
