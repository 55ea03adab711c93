"""Whether a training fits into the available memory, checked before it begins."""

from __future__ import annotations

from collections.abc import Iterator

from gradcheck.errors import TargetError
from gradcheck.workload.memory import Memory, free_memory, gigabytes, memory_of
from gradcheck.workload.tensors import batch_size
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
