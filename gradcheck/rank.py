"""Which of the processes of a distributed training this one is. Imports no torch: asks what is loaded, or what torchrun has said."""

import os
import sys


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process, and number of processes; (0, 1) for one that trains alone."""
    if is_initialized():
        distributed = sys.modules["torch.distributed"]
        return distributed.get_rank(), distributed.get_world_size()
    return launched()


def is_initialized() -> bool:
    """Whether there is a process group."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def launched() -> tuple[int, int]:
    """The same as the launcher says it in the environment."""
    try:
        rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, count) if 0 <= rank < count else (0, 1)


def is_rank_zero() -> bool:
    """Whether this process reports: of several, rank 0 does."""
    return rank_and_world_size()[0] == 0
