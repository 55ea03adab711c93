"""Steps that no optimizer of torch takes: weights that are changed by hand, or by an optimizer of another kind.

A leaf that a backward pass gave a gradient to, that no optimizer of torch holds, and that is written to before the next pass: that is a
step. What is written through torch's functions is seen at once, and where; what is not, by the values at the next backward pass.
Leaves that are changed in the same step are one training, a `Watched` whose optimizer stands in for the update.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from gradcheck.capture.changes import Changes, Waiting, chosen_entries, norm_of, sampled
from gradcheck.capture.events import Pass, Watched
from gradcheck.capture.tape import is_in_place, outside, tensors_in
from gradcheck.measure.local import is_spread
from gradcheck.target.sites import location_of_frame

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder
    from gradcheck.capture.steps import Steps

PASSES = 63  # of one step, before the last one
_NO_VALUES = frozenset("requires_grad_ detach_ rename_ share_memory_".split())  # in-place methods that leave the values as they are


class Updates:
    """`wait_for` after a backward pass, `writes` before each function of torch, `close` before the next pass: then a step is over."""

    def __init__(self, recorder: Recorder, steps: Steps) -> None:
        self.recorder, self.steps = recorder, steps
        self._waiting: dict[int, Waiting] = {}  # by id of the leaf
        self._storages: dict[int, int] = {}  # address of a leaf's memory -> id of the leaf
        self._entries: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}  # the same in all steps
        self._passes: list[Pass] = []  # since the last step
        self._stepping: list[Watched] = []  # in the step that is being taken

    # ------------------------------------------------------------------ before

    def wait_for(self, passes: Iterable[Pass], reached: Iterable[Mapping[int, torch.Tensor]]) -> None:
        """`reached`: the leaves that each of the passes, which are over, gave gradients to."""
        held = frozenset[int]().union(*(w.ids for w in self.recorder.optimizers.values() if w.changes is None))
        for found, leaves in zip(passes, reached, strict=True):
            self._passes = [*self._passes[-PASSES:], found]
            free = {key: leaf for key, leaf in leaves.items() if key not in held and self._may_be_trained(key, leaves, held)}
            for key, leaf in free.items():
                if leaf.grad is not None and leaf.layout is torch.strided and not is_spread(leaf):
                    self._wait(key, leaf, leaf.grad, len(free))

    def _may_be_trained(self, key: int, leaves: Mapping[int, torch.Tensor], held: frozenset[int]) -> bool:
        """A tensor of no module is an input where the parameters of one take part."""
        weights = self.recorder.tape.weights
        return key in weights or not any(other in weights or other in held for other in leaves)

    def _wait(self, key: int, leaf: torch.Tensor, gradient: torch.Tensor, leaves: int) -> None:
        known = self._waiting.get(key)
        if known is not None and known.leaf() is leaf:
            known.look(gradient)
            return
        entry = self._entries.get(key)
        if entry is None or entry[0]() is not leaf:
            entry = self._entries[key] = weakref.ref(leaf), chosen_entries(gradient, leaves)
        index = entry[1]
        self._waiting[key] = Waiting(entry[0], index, sampled(leaf, index), sampled(gradient, index), norm_of(gradient))
        self._storages[leaf.untyped_storage().data_ptr()] = key

    # ------------------------------------------------------------------ during

    def writes(self, function: Any, args: Any, kwargs: Any) -> bool:
        """Whether a function is about to change leaves that wait; notes which."""
        if not self._waiting:
            return False
        found = [key for tensor in _targets(function, args, kwargs) if (key := self._key(tensor)) is not None]
        for key in found:
            self._write(key)
        return bool(found)

    def _key(self, tensor: torch.Tensor) -> int | None:
        if id(tensor) in self._waiting:
            return id(tensor)
        try:
            return self._storages.get(tensor.untyped_storage().data_ptr())
        except (RuntimeError, NotImplementedError):  # it has none
            return None

    def _write(self, key: int) -> None:
        """The leaf is written to: its training takes a step."""
        waiting = self._waiting[key]
        leaf = waiting.leaf()
        if waiting.written or leaf is None:
            return
        waiting.written = True
        self.recorder.busy += 1
        try:
            if leaf.grad is not None:
                waiting.look(leaf.grad)
            watched = self._training_of(key, leaf)
            weight = self.recorder.tape.weights[key]
            weight.owner.versions = ()  # `p.data` does not count its changes
            watched.memo.setdefault(key, weight.owner.memo[key])
            if watched not in self._stepping:
                self._stepping.append(watched)
                watched.step_site = watched.step_site or location_of_frame(outside())
                watched.settle()
                watched.keep_watch()
                self.steps.note(watched)
        finally:
            self.recorder.busy -= 1

    # --------------------------------------------------------------- trainings

    def _training_of(self, key: int, leaf: torch.Tensor) -> Watched:
        watched = next((w for w in self.recorder.optimizers.values() if w.changes is not None and key in w.ids), None)
        if watched is not None:
            return watched
        watched = self._stepping[0] if self._stepping else self._founded(leaf)
        group = watched.optimizer.param_groups[0]["params"]
        if not any(p is leaf for p in group):
            group.append(leaf)
        if key not in self.recorder.tape.weights:
            watched.free = self.recorder.owners.adopt([leaf], watched.free)
            self.recorder.tape.promote(leaf, [p.ref.node for p in watched.live if p.ref is not None])
        return watched

    def _founded(self, leaf: torch.Tensor) -> Watched:
        """A training that was not known: of the passes since the last step, it has those that reach the leaf."""
        recorder = self.recorder
        stand_in = torch.optim.SGD([leaf], lr=0.0)
        watched = recorder.optimizers[id(stand_in)] = Watched(stand_in, "", None, changes=Changes())
        watched.live = [p for p in self._passes if id(leaf) in p.reached]
        recorder.unclaimed = [p for p in recorder.unclaimed if p not in watched.live]
        recorder.connected = True
        return watched

    # ------------------------------------------------------------------- after

    def close_seen(self) -> None:
        """The end of a step, where one was seen to begin."""
        if self._stepping:
            self.close()

    def close(self) -> None:
        """The end of a step, if one was taken since the last backward pass."""
        moved = {key: delta for key in list(self._waiting) if (delta := self._delta(key)) is not None}
        for key in moved:
            self._write(key)  # nobody saw it happen
        for watched in self._stepping:
            self._record(watched, moved)
            self.steps.taken(watched)
        if self._stepping:
            self._stepping, self._passes = [], []
            self._waiting, self._storages = {}, {}

    def _delta(self, key: int) -> torch.Tensor | None:
        """By how much a leaf moved; None when it did not, and nothing wrote to it."""
        waiting = self._waiting[key]
        leaf = waiting.leaf()
        if leaf is None:
            return None
        delta = sampled(leaf, waiting.index).double() - waiting.before.double()
        return delta if waiting.written or bool(delta.any()) else None

    def _record(self, watched: Watched, moved: Mapping[int, torch.Tensor]) -> None:
        assert watched.changes is not None
        step, mine = len(watched.steps) - 1, moved.keys() & watched.ids
        for key in mine:
            watched.changes.add(key, self._waiting[key], moved[key], step)
        watched.changes.norms.append(sum(self._waiting[key].norm ** 2 for key in mine) ** 0.5)


def _targets(function: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The tensors that a call of a function changes."""
    name = getattr(function, "__name__", "")
    if name == "__set__" and getattr(getattr(function, "__self__", None), "__name__", "") == "data":
        yield args[0]
    elif is_in_place(name) and name not in _NO_VALUES and args:
        yield from tensors_in(args[0], 1)
    if kwargs.get("out") is not None:
        yield from tensors_in(kwargs["out"], 1)
