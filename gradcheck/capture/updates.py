"""Steps that no optimizer of torch takes: weights that are changed by hand, or by an optimizer of another kind.

It is a step if a leaf that no optimizer of torch holds gets a gradient from a backward pass and is written to before the next one. What is
written through torch's functions is seen at once, with its place; anything else shows in the values at the next pass. A leaf may also be
replaced by another one, as functional code does. Leaves that are changed in one step are one training: a `Watched` whose optimizer stands
in for the update.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gradcheck.capture.changes import Changes, Waiting, chosen_entries, successors
from gradcheck.capture.events import BackwardPass, OptimizerTrace
from gradcheck.capture.nodes import CHANGED, is_in_place
from gradcheck.capture.recording import Recording
from gradcheck.capture.step_log import StepLog
from gradcheck.capture.structures import tensors_in
from gradcheck.instrument.running_code import here
from gradcheck.types.location import Location
from gradcheck.workload.dtensor import is_spread

BESIDE = 2  # steps by hand, before the first one of an optimizer that holds the weights: a perturbation, as SAM makes, and its undoing
PASSES = 63  # of one step, before the last one
_NUMBERS = frozenset(
    "item tolist numpy __float__ __int__ __bool__ __format__ __repr__".split()
)  # that leave torch: no weight can come of them
_NO_VALUES = frozenset("requires_grad_ detach_ rename_ share_memory_".split())  # in-place methods that leave the values as they are

Tensor = torch.Tensor


class Updates:
    """`wait_for` after a pass, `writes` before each function of torch, `close` before the next pass: then a step is over."""

    def __init__(self, recording: Recording, log: StepLog) -> None:
        self.recording, self.log = recording, log
        self._waiting: dict[int, Waiting] = {}  # by id of the leaf
        self._storages: dict[int, int] = {}  # address of a leaf's memory -> id of the leaf
        self._entries: dict[int, tuple[int, Tensor]] = {}  # id of a leaf -> its size, the entries that are looked at in all steps
        self._passes: list[BackwardPass] = []  # since the last step
        self._stepping: list[OptimizerTrace] = []  # in the step that is being taken
        self._trainings: dict[int, OptimizerTrace] = {}  # by id of the leaf
        self.computed: Location | None = None  # where something was computed from a leaf after its pass, with gradients recorded
        self._read: Location | None = None  # where a leaf was used first after the last pass

    # ------------------------------------------------------------------ before

    def wait_for(self, found: BackwardPass, leaves: Mapping[int, Tensor], gradients: Mapping[int, Tensor]) -> None:
        """A pass that is over, the leaves that it reached, and what it gave them."""
        free = {key: leaf for key, leaf in self.trainable(leaves).items() if key in gradients and _is_plain(leaf)}
        self._succeed(found, free)
        self._passes = [*self._passes[-PASSES:], found]
        self._read = None
        for key, leaf in free.items():
            known = self._waiting.get(key)
            if known is not None and known.leaf is leaf:
                known.take(gradients[key])
                continue
            self._waiting[key] = Waiting.of(leaf, gradients[key], self._entries_of(leaf, gradients[key], len(free)))
            self._storages[leaf.untyped_storage().data_ptr()] = key

    def trainable(self, leaves: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Those that no optimizer of torch has moved. A tensor of no module is an input where the parameters of one take part."""
        weights = self.recording.tape.weights
        moving = [w for w in self.recording.optimizers.values() if w.changes is None and (w.steps or w is self.recording.stepping)]
        held = frozenset[int]().union(*(w.ids for w in moving))
        of_modules = any(key in held or (key in weights and not weights[key].owner.is_free) for key in leaves)
        return {key: leaf for key, leaf in leaves.items() if key not in held and (key in weights or not of_modules)}

    def _entries_of(self, leaf: Tensor, gradient: Tensor, leaves: int) -> Tensor:
        size, entries = self._entries.get(id(leaf), (-1, gradient))
        if size != leaf.numel():
            entries = chosen_entries(gradient, leaves)
            self._entries[id(leaf)] = leaf.numel(), entries
        return entries

    def _succeed(self, found: BackwardPass, free: Mapping[int, Tensor]) -> None:
        """Leaves that waited have others in their place in this pass: the step was taken in between."""
        pairs = successors(self._waiting, free) if self._read is not None else {}  # what is in their place was computed from them
        for key in pairs:
            self._write(key, self._read)
        self._end({key: self._waiting[key].moved(leaf) for key, leaf in pairs.items()})
        for key, leaf in pairs.items():
            watched = self._trainings[id(leaf)] = self._trainings.pop(key)
            parameters = watched.optimizer.param_groups[0]["params"]
            parameters[[id(p) for p in parameters].index(key)] = leaf
            self._entries[id(leaf)] = self._entries.pop(key)
            self.recording.tape.succeed(key, leaf, found.nodes)
        if found not in self.recording.asked:
            for watched in dict.fromkeys(self._trainings[id(leaf)] for leaf in pairs.values()):
                watched.live.append(found)

    # ------------------------------------------------------------------ during

    def writes(self, function: Any, args: Any, kwargs: Any) -> bool:
        """Whether a function is about to change leaves that wait; notes which."""
        if self.recording.owners.initial:
            for tensor in _targets(function, args, kwargs):
                self.recording.tape.changed(tensor)
        if self.recording.averages.unplaced:
            self.recording.averages.writes(_targets(function, args, kwargs))
        if not self._waiting:
            return False
        name = getattr(function, "__name__", "")
        if self._read is None and name not in _NUMBERS and any(self._key(t) is not None for t in tensors_in(args, 2)):
            self._read = here()
            self.computed = self._read if torch.is_grad_enabled() else self.computed
        found = [key for tensor in _targets(function, args, kwargs) if (key := self._key(tensor)) is not None]
        for key in found:
            self._write(key)
        return bool(found)

    def _key(self, tensor: Tensor) -> int | None:
        if id(tensor) in self._waiting:
            return id(tensor)
        try:
            key = self._storages.get(tensor.untyped_storage().data_ptr())
        except (RuntimeError, NotImplementedError):  # it has none
            return None
        return key if key in self._waiting else None

    def _write(self, key: int, site: Location | None = None) -> None:
        """A leaf is written to: its training takes a step."""
        waiting = self._waiting[key]
        if waiting.written:
            return
        waiting.written = True
        self.recording.busy += 1
        try:
            if waiting.leaf.grad is not None:
                waiting.take(waiting.leaf.grad)
            watched = self._training_of(waiting.leaf)
            weight = self.recording.tape.weights[key]
            weight.owner.versions = CHANGED  # `p.data` does not count its changes
            watched.memo.setdefault(weight.key, weight.owner.memo[weight.key])
            if watched not in self._stepping:
                self._stepping.append(watched)
                watched.step_site = watched.step_site or site or here()
                watched.settle()
                watched.keep_watch()
                self.log.note(watched)
        finally:
            self.recording.busy -= 1

    # --------------------------------------------------------------- trainings

    def _training_of(self, leaf: Tensor) -> OptimizerTrace:
        recording, key = self.recording, id(leaf)
        if key in self._trainings:
            return self._trainings[key]
        watched = self._trainings[key] = self._stepping[0] if self._stepping else self._founded()
        watched.optimizer.param_groups[0]["params"].append(leaf)
        mine = [p for p in self._passes if key in p.reached and p not in watched.live]
        watched.live += [] if watched in self._stepping else mine
        recording.unclaimed = [p for p in recording.unclaimed if p not in mine]
        if key not in recording.tape.weights:
            watched.free = recording.owners.adopt([leaf], watched.free)
            for found in self._passes:
                recording.tape.promote(leaf, found.nodes)
        return watched

    def _founded(self) -> OptimizerTrace:
        """Starts a training that was not known before."""
        recording = self.recording
        stand_in = torch.optim.SGD([torch.zeros((), device="cpu")], lr=0.0)
        stand_in.param_groups[0]["params"].clear()
        recording.connected = True
        watched = recording.optimizers[id(stand_in)] = OptimizerTrace(stand_in, "", None, changes=Changes())
        recording.beginning.append(watched)
        return watched

    # ------------------------------------------------------------------- after

    def leave_to(self, watched: OptimizerTrace) -> None:
        """An optimizer of torch is about to move these weights."""
        for key in watched.ids & self._waiting.keys():
            del self._waiting[key]
        if watched.steps:
            return
        for other in {id(w): w for key in watched.ids if (w := self._trainings.get(key)) is not None}.values():
            if len(other.steps) <= BESIDE and other.ids <= watched.ids:  # what the loop did to them was no training
                self.recording.optimizers.pop(id(other.optimizer), None)
                self.recording.beginning = [w for w in self.recording.beginning if w is not other]
                self._trainings = {key: w for key, w in self._trainings.items() if w is not other}

    def close_seen(self) -> None:
        """The end of a step, where one was seen to begin."""
        if self._stepping:
            self.close()

    def close(self) -> None:
        """The end of a step, if one was taken since the last backward pass."""
        deltas = {key: waiting.moved(waiting.leaf) for key, waiting in self._waiting.items()}
        moved = {key: delta for key, delta in deltas.items() if self._waiting[key].written or bool(delta.any())}
        for key in moved:
            self._write(key)  # where nobody saw it happen
        self._end(moved)

    def _end(self, moved: Mapping[int, Tensor]) -> None:
        if not self._stepping:
            return
        weights = self.recording.tape.weights
        for watched in self._stepping:
            assert watched.changes is not None
            mine = {weights[k].key: (self._waiting[k], delta) for k, delta in moved.items() if self._trainings[k] is watched}
            watched.changes.add(len(watched.steps) - 1, mine)
            self.log.taken(watched)
        self._stepping, self._passes = [], []
        self._waiting, self._storages = {}, {}


def _is_plain(leaf: Tensor) -> bool:
    return leaf.layout is torch.strided and not is_spread(leaf)


def _targets(function: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that a call of a function changes."""
    name = getattr(function, "__name__", "")
    if name == "__set__" and getattr(getattr(function, "__self__", None), "__name__", "") == "data":
        yield args[0]
    elif is_in_place(name) and name not in _NO_VALUES and args:
        yield from tensors_in(args[0], 1)
    if kwargs.get("out") is not None:
        yield from tensors_in(kwargs["out"], 1)
