"""Processes that measure one sharded model together: each runs the same code on the same batches, and asks here for what it cannot know by
itself or what all must decide alike. A single process gets its own answers.
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradcheck.errors import TargetError
from gradcheck.workload.dtensor import is_spread, multiplicity
from gradcheck.workload.ranks import RankGroup, join
from gradcheck.workload.sharding import is_sharded

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


def hidden_shards(watching: str) -> TargetError:
    """Of the first version of FSDP. `watching`: how to watch the training."""
    hint = f"use fully_shard, or scan the model before it is wrapped; {watching} judges the training as it runs"
    return TargetError("FullyShardedDataParallel does not show which entries of the parameters a process has", hint=hint)


@contextmanager
def ranks_of(model: Any) -> Iterator[RankGroup | None]:
    """All ranks, if all of them train the model; `joined` says whether they came. None for a model of this process.

    An error of one ends it for all. Raises TargetError for shards that no process can put together.
    """
    inner = getattr(model, "_orig_mod", model)
    sharded = isinstance(inner, nn.Module) and is_sharded(inner)
    if isinstance(inner, nn.Module) and any(type(m).__name__ == "FullyShardedDataParallel" for m in inner.modules()):
        raise hidden_shards("gradcheck.watch(model, optimizer)")
    replica = isinstance(inner, DistributedDataParallel)
    advice = "call gradcheck.scan(...) on every rank" + (", or scan model.module on one" if replica else "")
    ranks = join("scan", alone=sharded, advice=advice) if sharded or replica else None
    if ranks is None or not ranks.joined:
        if sharded:
            why = ranks.why if ranks is not None else "torch.distributed is not initialised"
            hint = "call gradcheck.scan(...) on every rank, at the same point"
            raise TargetError(f"the parameters are sharded over several processes, and these did not come together: {why}", hint=hint)
        if ranks is not None:
            print(f"gradcheck: rank {ranks.rank} is scanned alone, without the other ranks: {ranks.why}", file=sys.stderr, flush=True)
        yield ranks
        return
    with _all_or_none(ranks):
        yield ranks


@contextmanager
def ranks_of_script(trained: Iterable[torch.Tensor], *, failed: bool) -> Iterator[RankGroup | None]:
    """The processes that have run the same script; None where it is one, or where they do not come together: one may have `failed`.

    A process by itself whose `trained` parameters are sharded measures in place, too.
    """
    ranks = join("script", alone=any(map(is_spread, trained))) if not failed else None
    if ranks is None or not ranks.joined:
        yield None
        return
    with _all_or_none(ranks):
        yield ranks


@contextmanager
def _all_or_none(ranks: RankGroup) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        ranks.fail(str(error))
        why = ranks.failure()  # of the first that failed: to the others its end may look like anything
        if not why or str(error) in why or "ranks cannot" in str(error):
            raise
        raise TargetError(f"the ranks cannot go on together: {why}", hint="the logs of the other ranks may say more") from error
    except BaseException as error:
        ranks.fail(type(error).__name__)
        raise
    finally:
        ranks.leave(None)
