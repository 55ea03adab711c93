"""Whether a copy of the model is as good as the model; checked once, before anything is measured.

A copy is faithful when its first loss equals the original's bit for bit, and when its forward pass calls no module and reaches no parameter
but its own. Otherwise the user's own model is measured, and everything is put back (`gradcheck.workload.borrowing`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.instrument.graph_structure import release_graphs, upstream_leaves
from gradcheck.types.measurement import Assumption
from gradcheck.workload.borrowing import Borrowed, ran_out_of_memory, shielded
from gradcheck.workload.device import counting_saved, free_memory, memory_of
from gradcheck.workload.lockstep import agreed, several
from gradcheck.workload.process_state import untouched
from gradcheck.workload.rng import seed_all
from gradcheck.workload.sharding import is_sharded
from gradcheck.workload.tensors import batch_size, tensors_of
from gradcheck.workload.training_copy import TrainingCopy, few_samples, fork, lend
from gradcheck.workload.workload import Workload

LARGE = 1_000_000  # parameters
FEW = 2  # samples of a batch that models of this size are compared on, where the whole batch takes longer than
LONG = 1.0  # seconds
MORE = 32  # samples that a sharded model is timed on beside a few
NO_ROOM = "the device has too little memory for a copy of it"
OFFLOADED = "--offload keeps no copy of it in memory"


@dataclass
class Look:
    """What one computation of the first loss showed."""

    loss: float | None  # None: it raised
    modules: list[nn.Module] = field(default_factory=list)  # called, and not the copy's own
    tensors: list[torch.Tensor] = field(default_factory=list)  # reached by the gradient, and not the copy's own

    @property
    def strangers(self) -> bool:
        return bool(self.modules or self.tensors)

    def same(self, other: Look) -> bool:
        a, b = self.loss, other.loss
        return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def ensure_faithful(workload: Workload, seed: int = 0, *, offload: bool = False) -> None:
    """Decides whether copies of the workload's model are measured, or the model itself, as `offload` asks for."""
    if workload.checked and (workload.borrowed is not None or not offload):
        return
    if is_sharded(workload.model) and several():
        workload.checked = True
        workload.borrowed = Borrowed([workload.model], why="its parameters are sharded over several processes")
        said = "the model itself is measured and then put back as it was: its parameters are sharded over several processes"
        workload.assumptions = [*workload.assumptions, Assumption("model", said)]
        _time_over_ranks(workload, seed)
        return
    workload.checked = True
    with untouched(), torch.enable_grad():
        why, outside, spill = _by_itself(workload, seed, OFFLOADED) if offload else _unfaithful(workload, seed)
    if why:
        workload.borrowed = Borrowed([*_roots(workload), *outside.modules], outside.tensors, why=why, spill=spill)
        said = f"the model itself is measured and then put back as it was: {why}"
        workload.assumptions = [*workload.assumptions, Assumption("model", said)]


def _time_over_ranks(workload: Workload, seed: int) -> None:
    """How long the first loss takes, on all ranks together; of a small model nobody asks."""
    rows = batch_size(workload.batches[0])
    if rows <= FEW or sum(p.numel() for p in workload.model.parameters()) < LARGE:
        return
    took = list[float]()
    with untouched(), torch.enable_grad():
        for few in (FEW, min(rows, MORE)):  # gathering the parameters takes its time however few they are
            part = replace(workload, batches=[few_samples(workload.batches[0], few)])
            for _ in range(2):  # the first pass makes what later ones use again
                _look(fork(part, seed=seed), part, seed)
            took.append(part.forward_seconds)
    if workload.borrowed is not None:
        workload.borrowed.give_back()
    fixed, more = agreed(took)
    workload.forward_seconds = fixed + max(0.0, more - fixed) * (rows - FEW) / (min(rows, MORE) - FEW)


def _unfaithful(workload: Workload, seed: int) -> tuple[str, Look, bool]:
    """Why no copy will do ("": one will), what of the user's own it would train, and whether memory is short."""
    try:
        if _lacks_room(workload):
            raise TargetError(NO_ROOM) from MemoryError()
        copy = fork(workload, seed=seed)
    except TargetError as error:
        return _by_itself(workload, seed, NO_ROOM) if ran_out_of_memory(error) else (error.message, Look(None), False)
    if _is_large(workload):
        part, look = _sized(copy, workload, seed)
        if look.loss is not None and workload.forward_seconds > LONG:
            return *_compared(copy, part, seed, look), False
        copy = fork(workload, seed=seed)  # that pass may have changed it
    return *_compared(copy, workload, seed, _look(copy, workload, seed)), False


def _by_itself(workload: Workload, seed: int, why: str) -> tuple[str, Look, bool]:
    """Of a model that is not copied, with what its first loss uses from outside."""
    borrowed = Borrowed(_roots(workload), spill=True)
    try:
        copy = lend(workload, borrowed, seed=seed)
        look = _sized(copy, workload, seed)[1] if _is_large(workload) else _look(copy, workload, seed)
    finally:
        borrowed.give_back()
    return why, look, True


def _roots(workload: Workload) -> list[nn.Module]:
    return [workload.model, *([workload.loss] if isinstance(workload.loss, nn.Module) else [])]


def _is_large(workload: Workload) -> bool:
    return batch_size(workload.batches[0]) > FEW and sum(p.numel() for p in workload.model.parameters()) >= LARGE


def _sized(copy: TrainingCopy, workload: Workload, seed: int) -> tuple[Workload, Look]:
    """The loss of a few samples, which tells what all of them take of time and memory."""
    part = replace(workload, batches=[few_samples(workload.batches[0], FEW)])
    counts: list[int] = []
    with counting_saved(copy.model, counts):
        look = _look(copy, part, seed)
    workload.sample_bytes = counts[0] / FEW
    workload.forward_seconds = part.forward_seconds * batch_size(workload.batches[0]) / FEW
    return part, look


def _lacks_room(workload: Workload) -> bool:
    """Whether a device cannot hold the training of a copy beside the model."""
    free = free_memory(workload.device) if workload.device.type != "cpu" else None
    return free is not None and free < memory_of(workload.model, workload.optimizer).fixed


def _compared(copy: TrainingCopy, workload: Workload, seed: int, of_copy: Look) -> tuple[str, Look]:
    if of_copy.strangers:
        again = _look(copy, workload, seed)  # what is made again in each forward pass is not the user's
        known = set(map(id, again.modules)), set(map(id, again.tensors))
        of_copy.modules = [m for m in of_copy.modules if id(m) in known[0]]
        of_copy.tensors = [t for t in of_copy.tensors if id(t) in known[1]]
    if of_copy.strangers:
        names = ", ".join(dict.fromkeys(type(m).__name__ for m in of_copy.modules)) or f"{len(of_copy.tensors)} tensors"
        return f"its forward pass uses {names} from outside the model, which a copy would share with it", of_copy
    of_original = _of_original(workload, seed, Look(None))
    if of_original.loss is None or of_copy.same(of_original):
        return "", of_copy
    if not of_original.same(_of_original(workload, seed, Look(None))):
        return "", of_copy  # the copy is not to blame: the model computes a different loss each time
    if of_copy.loss is None:
        return "a copy of it does not run", of_original
    return f"a copy of it computes a different loss ({of_copy.loss:.9g} instead of {of_original.loss:.9g})", of_original


def _of_original(workload: Workload, seed: int, outside: Look) -> Look:
    """The first loss of the model itself, which is put back afterwards."""
    borrowed = Borrowed([*_roots(workload), *outside.modules], outside.tensors)
    try:
        return _look(lend(workload, borrowed, seed=seed), workload, seed)
    except TargetError:
        return Look(None)
    finally:
        borrowed.give_back()


def _look(copy: TrainingCopy, workload: Workload, seed: int) -> Look:
    try:
        return _seen(copy, workload, seed)
    finally:
        release_graphs()


def _seen(copy: TrainingCopy, workload: Workload, seed: int) -> Look:
    look, batch, began = Look(None), workload.batches[0], time.perf_counter()
    seed_all(seed)
    try:
        with shielded(copy.own) as look.modules:
            loss = copy.loss(batch)
    except Exception:  # what keeps the step from running is told when it is measured
        return look
    look.loss = float(loss.detach())
    workload.forward_seconds = min(time.perf_counter() - began, workload.forward_seconds or math.inf)
    found = upstream_leaves([loss.grad_fn]) if loss.grad_fn is not None else []
    known = copy.own | set(map(id, tensors_of(batch)))
    look.tensors = [t for t in found if id(t) not in known]
    return look
