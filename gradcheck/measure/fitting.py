"""What large models need: whether a training fits into memory, and batches cut so that enough of its steps fit into the time."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.types.measurement import Assumption
from gradcheck.workload.device import Memory, free_memory, gigabytes, memory_of
from gradcheck.workload.lockstep import everyone
from gradcheck.workload.process_state import untouched
from gradcheck.workload.rng import seed_all
from gradcheck.workload.tensors import batch_size, tensors_of
from gradcheck.workload.training_copy import cut, few_samples, fork
from gradcheck.workload.workload import Workload

SMALL = 100e6  # bytes; a training that takes less is not checked


def require_memory(workload: Workload, *, copied: bool = True) -> Memory:
    """The memory that a training takes. Raises TargetError if it is more than is free. `copied`: a copy is trained."""
    rows, each = batch_size(workload.batches[0]), workload.sample_bytes
    memory = memory_of(workload.model, workload.optimizer, rows * each if each else None)
    free = free_memory(workload.device)
    # Copies are trained; a device that has no room for one trains the model itself (see faithful.py).
    copied = copied and workload.device.type == "cpu" and workload.borrowed is None
    fixed = memory.fixed if copied else memory.gradients + memory.state
    needed = fixed + (memory.activations or 0.0)
    if free is None or needed <= max(free, SMALL):
        return memory
    what = f"the memory cannot hold a training of {workload.name}: it needs {gigabytes(needed)} more, and {gigabytes(free)} are free"
    raise TargetError(f"{what}; a training takes {memory.text}", hint="; ".join(_fitting(memory, free - fixed, rows, each, copied)))


def _fitting(memory: Memory, left: float, rows: int, each: float, copied: bool) -> Iterator[str]:
    """`left`: bytes for activations."""
    if copied:
        yield "--offload keeps no copy in memory"
    if each and left >= each:
        yield f"batches of {min(rows - 1, int(left / each))} samples would fit"
        yield "torch.utils.checkpoint keeps fewer activations"
    elif left >= 0:
        yield "torch.utils.checkpoint keeps fewer activations"
    else:
        yield "parameters in bf16 take half of it"
        if memory.state:
            yield "SGD without momentum keeps no state"
    yield "--init-only looks at how a model is built and needs no memory for it"


LARGE = 1_000_000  # parameters: batches of smaller models stay whole
PASSES = 3.0  # forward passes that a step takes the time of
SHARE = 0.5  # of the time for the short training
FEWEST = 20  # steps in that time with which batches stay whole; fewer allow no verdict (convergence.FEWEST_STEPS)
WANTED = 60  # steps in that time that batches are cut for
LONG = 40  # steps in that time with which sequences stay whole: a step of GPT-2 small took half as long again as its passes
TERMS = 32  # of the loss (labels, tokens) that a batch keeps: fewer leave little but noise (heuristic)
NORMALIZED = 32  # samples that a batch keeps where it is normalised by its own statistics (E10: from 16 on they do no harm)
COMPARED = 4  # samples that checks compare with each other
AGREE = 0.1  # relative: the loss of two samples, or positions, must be the mean of their losses, so that it does not tell them apart


def fitted(workload: Workload, seconds: float, seed: int = 0) -> Workload:
    """The workload, or one whose batches are cut and whose `uncut` is this one; `seconds`: for all of measuring."""
    rows, step = batch_size(workload.batches[0]), PASSES * workload.forward_seconds
    if _size(workload.model) < LARGE or SHARE * seconds >= FEWEST * step:
        return workload
    few, said = min(rows, max(int(rows * SHARE * seconds / (WANTED * step)), _least(workload))), []
    if few < rows:
        if not all(everyone(_adds_up(workload, rows, few, seed))):
            return workload
        workload, step = cut_to(workload, few), step * few / rows
        said.append(f"from {rows} to {few} of their samples")
    length = _positions(workload.batches[0]) or 0
    short = max(int(length * SHARE * seconds / (WANTED * step)), -(-TERMS // batch_size(workload.batches[0])))
    may = short < length and SHARE * seconds < LONG * step and all(_begins(b, short) for b in workload.batches)
    if all(everyone(may)) and all(everyone(_adds_up(workload, length, short, seed, axis=1))):
        workload = cut_to(workload, few, short)
        said.append(f"from {length} to {short} positions")
    if not said:
        return workload
    whole = PASSES * workload.forward_seconds
    text = f"batches are cut {' and '.join(said)}: a step on all of them takes about {whole:.2g} s of the {seconds:.3g} s"
    return replace(workload, assumptions=[*workload.assumptions, Assumption("batches", text)])


def cut_to(workload: Workload, rows: int, length: int | None = None) -> Workload:
    """The same with at most so many samples in a batch, and positions in a sequence; the workload may have been cut before."""
    whole, length = workload.uncut or workload, length or workload.length
    batches, val_batches = ([_shorter(few_samples(b, rows), length) for b in some] for some in (whole.batches, whole.val_batches))
    return replace(workload, batches=batches, val_batches=val_batches, uncut=whole, length=length, divisible=True)


def _shorter(batch: Any, length: int | None) -> Any:
    whole = _positions(batch) if length else None
    return batch if whole is None else cut(batch, whole, slice(length), 1)


def _positions(batch: Any) -> int | None:
    """How many a sample has, where all that a batch holds of it are sequences of one length, some of them of tokens, as labels are."""
    tensors = list(_by_sample(batch, batch_size(batch)))
    lengths = {t.shape[1] if t.dim() > 1 else 0 for t in tensors}
    tokens = any(t.dim() == 2 and t.dtype in (torch.int64, torch.int32) for t in tensors)
    return lengths.pop() if tokens and len(lengths) == 1 else None


def _begins(batch: Any, short: int) -> bool:
    """Whether no sequence begins with padding, or with what has no label, for so many positions."""
    for t in _by_sample(batch, batch_size(batch)):
        low, high = t[:, :short].flatten(1).double().aminmax(dim=1)
        if bool(((low == high) & (high < t.flatten(1).double().amax(1))).any()):
            return False
    return True


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))


def _least(workload: Workload) -> int:
    """The fewest samples with which a batch still makes the same training."""
    batch = workload.batches[0]
    rows = batch_size(batch)
    terms = min((t[0].numel() for t in _by_sample(batch, rows)), default=1)  # of a sample: its labels or tokens, if it is no number
    own = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in workload.model.modules())
    return max(1, -(-TERMS // max(1, terms)), NORMALIZED if own else 1)


def _by_sample(batch: Any, rows: int) -> Iterable[torch.Tensor]:
    return (t for t in tensors_of(batch) if t.dim() and t.shape[0] == rows)


def _adds_up(workload: Workload, size: int, few: int, seed: int, axis: int = 0) -> bool:
    """Whether the step runs on parts of the first batch, and the loss of a part is the mean over its samples, or positions (axis 1)."""
    half = min(few, size // 2)
    losses = []
    try:
        with untouched(), torch.no_grad():
            copy = fork(workload, seed=seed)
            for part in (slice(half), slice(half, 2 * half), slice(2 * half)):
                seed_all(seed)
                losses.append(float(copy.loss(cut(workload.batches[0], size, part, axis))))
    except Exception:  # the user's code runs here with fewer of them than it was written for
        return False
    finally:
        if workload.borrowed is not None:
            workload.borrowed.give_back()
    first, second, both = losses
    return abs(both - (first + second) / 2) <= AGREE * max(abs(first), abs(second), abs(both))
