"""The statistics of a block in one read of its memory, by a Triton kernel. On CUDA only; elsewhere see `deferred_statistics`."""

import functools
import importlib.util
import logging
import math
from contextlib import nullcontext

import torch

_log = logging.getLogger(__name__)
BLOCK, TIMES = 1024, 16  # elements that a program takes at once, and how often
READABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_failed = False  # a kernel that does not compile here is not tried again


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def reduced(block: torch.Tensor) -> list[torch.Tensor] | None:
    """block: [tensors, count] -> least, largest, number of entries but zero, sum and norm, [tensors] each, accumulated in float64.

    Least and largest are NaN where an entry is. None where the kernel cannot run.
    """
    global _failed
    if _failed or block.device.type != "cuda" or block.dtype not in READABLE or block.stride(1) != 1 or not _installed():
        return None
    try:
        return run(block)
    except Exception as error:  # compilers fail in more ways than can be listed, and there is another way
        _failed = True
        _log.info("the fused kernel cannot be used: %s", error)
        return None


def run(block: torch.Tensor) -> list[torch.Tensor]:
    rows, count = block.shape
    programs = -(-count // (BLOCK * TIMES))
    parts = torch.empty(rows, programs, 6, dtype=torch.float64, device=block.device)
    from gradcheck.instrument.triton_kernel import kernel  # triton is installed on some machines only

    with torch.cuda.device(block.device) if block.is_cuda else nullcontext():  # triton launches on the current device
        kernel[(programs, rows)](block, parts, count, block.stride(0), BLOCK=BLOCK, TIMES=TIMES)
    sums = parts[..., 2:].sum(1)
    nan = sums[:, 3] > 0
    low, high = (torch.where(nan, math.nan, end) for end in (parts[..., 0].amin(1), parts[..., 1].amax(1)))
    return [low, high, sums[:, 0], sums[:, 1], sums[:, 2].sqrt()]
