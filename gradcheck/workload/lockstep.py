"""Processes that measure one sharded model together: each runs the same code on the same batches, and asks here for what it cannot know by
itself or what all must decide alike. A single process gets its own answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from gradcheck.errors import TargetError
from gradcheck.workload.dtensor import multiplicity

if TYPE_CHECKING:
    from gradcheck.workload.ranks import RankGroup

T = TypeVar("T")

_ranks: RankGroup | None = None


class OutOfStep(TargetError):
    """A process took a different path from the others, or ended: nothing more can be measured."""


@contextmanager
def in_step(ranks: RankGroup) -> Iterator[None]:
    """While active, all ranks run the same code."""
    global _ranks
    before, _ranks = _ranks, ranks
    try:
        yield
    finally:
        _ranks = before


def several() -> bool:
    """Whether other processes measure with this one."""
    return _ranks is not None


def everyone(said: T) -> list[T]:
    """What each process says, by rank. Raises OutOfStep if one does not come."""
    if _ranks is None:
        return [said]
    try:
        return _ranks.everyone(said)
    except Exception as error:
        why = _ranks.failure() or "one of them took a different path, or was ended"
        raise OutOfStep(f"the ranks cannot go on together: {why}", hint="the logs of the other ranks may say more") from error


def agreed(value: T) -> T:
    """Rank 0's value."""
    return everyone(value)[0] if _ranks is not None else value


def now() -> float:
    """time.perf_counter() of rank 0, so that the time runs out for all at the same point."""
    return agreed(time.perf_counter())


def whole_norms(tensors: Sequence[torch.Tensor], norms: Sequence[float]) -> list[float]:
    """2-norms of whole tensors from those of this process's shards."""
    if _ranks is None:
        return list(norms)
    shards = everyone(list(norms))
    copies = [multiplicity(t, len(shards)) for t in tensors]
    return [n if c is None else root([s[i] for s in shards]) / c**0.5 for i, (n, c) in enumerate(zip(norms, copies, strict=True))]


def root(values: Sequence[float]) -> float:
    """Square root of the sum of squares; not finite if one is not."""
    bad = [v for v in values if not math.isfinite(v)]
    return bad[0] if bad else math.hypot(*values) if values else 0.0
