"""The processes that scan one model together, where it is trained by several."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradcheck.errors import TargetError
from gradcheck.workload.dtensor import is_spread
from gradcheck.workload.ranks import RankGroup, join
from gradcheck.workload.sharding import is_sharded


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
