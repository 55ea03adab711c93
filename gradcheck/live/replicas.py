"""Which parameters all ranks of a watched run should share, and whether their losses are alike: with the same weights, only
the data differ.
"""

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradcheck.live.models import unwrapped
from gradcheck.types.gauges import RankLevel
from gradcheck.workload.dtensor import multiplicity
from gradcheck.workload.replicas import are_divided


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel that the model, or a part of it, is trained in."""
    inner = {id(m) for m in model.modules()}
    wrapped = (x for x in gc.get_objects() if issubclass(type(x), DistributedDataParallel))
    return next((x for x in wrapped if "module" in x._modules and id(unwrapped(x)) in inner), None)


def replicated(model: nn.Module, wrapper: DistributedDataParallel | None) -> frozenset[str] | str:
    """Names of the parameters that are the same on every rank; or why that cannot be told."""
    kinds = {type(m).__name__ for m in model.modules()}
    if "FullyShardedDataParallel" in kinds or any(_flat(p) for p in model.parameters()):
        return "each rank holds parts of the parameters that only their owner can tell apart"
    count = dist.get_world_size()
    if wrapper is not None and dist.get_world_size(wrapper.process_group) != count:
        return "the ranks are divided into groups: replicas within one were not compared"
    if wrapper is None and are_divided(count):
        return "the ranks are divided into groups: which parameters are replicas is not known"
    left_out: Any = wrapper.parameters_to_ignore if wrapper is not None else ()
    whole = [name for name, p in model.named_parameters() if multiplicity(p, count) is None and not _own_affair(p)]
    return frozenset(name for name in whole if not any(name == n or n.endswith(f".{name}") for n in left_out))


def _flat(p: nn.Parameter) -> bool:
    return type(p).__name__ == "FlatParameter" or hasattr(p, "_is_flat_param") or hasattr(p, "ds_id")


def _own_affair(p: nn.Parameter) -> bool:
    """Megatron and its kin mark parameters that each rank has a part of, or that only some ranks share."""
    return bool(getattr(p, "tensor_model_parallel", False)) or getattr(p, "allreduce", True) is False


BLOCK, ENDS = 10, 2  # steps whose mean counts, without so many at both ends: a single batch moves nothing
HISTORY = 100  # steps: of fewer blocks before it any is the furthest now and then


@dataclass
class _Rank:
    own: float = 0.0  # sums over the steps, as the next three
    others: float = 0.0
    apart: float = 0.0
    squares: float = 0.0
    block: list[tuple[float, float]] = field(default_factory=list)  # own and the others' losses since the last whole one
    reach: float = 0.0  # furthest apart of all blocks so far
    before: float = 0.0  # own level in the last block


@dataclass
class RankLevels:
    """Fed with the losses of each step that all ranks took."""

    steps: int = 0
    jump: RankLevel | None = None  # of all blocks the one furthest beyond those before it
    _ranks: dict[int, _Rank] = field(default_factory=dict)

    def note(self, losses: Mapping[int, float], step: int) -> None:
        """`losses`: by rank. Steps whose losses are not all finite are left out."""
        if len(losses) < 2 or not all(map(math.isfinite, losses.values())):
            return
        self.steps += 1
        total = math.fsum(losses.values())
        for rank, own in losses.items():
            seen = self._ranks.setdefault(rank, _Rank())
            others = (total - own) / (len(losses) - 1)
            seen.own += own
            seen.others += others
            seen.apart += own - others
            seen.squares += (own - others) ** 2
            seen.block.append((own, others))
        if not self.steps % BLOCK:
            self._end_block(step + 1 - BLOCK)

    def _end_block(self, since: int) -> None:
        found = []
        for rank, seen in self._ranks.items():
            own, others, apart = (_middle(x) for x in zip(*((a, b, a - b) for a, b in seen.block), strict=True))
            score = abs(apart) / seen.reach if seen.reach else 0.0
            found.append((abs(own - seen.before), RankLevel(rank, self.steps - BLOCK, own, others, min(score, 1e9), since)))
            seen.block, seen.reach, seen.before = [], max(seen.reach, abs(apart)), own
        moved = max(found, key=lambda f: f[0])[1]
        if moved.steps >= HISTORY and (self.jump is None or moved.score > self.jump.score):
            self.jump = moved

    def furthest(self) -> RankLevel | None:
        """The rank whose losses lie furthest above those of the others, or below; of two the one with the higher losses."""
        known = [self._level(rank, seen) for rank, seen in self._ranks.items()]
        return max(known, key=lambda x: (abs(x.own - x.others), x.own)) if known and self.steps > 1 else None

    def _level(self, rank: int, seen: _Rank) -> RankLevel:
        mean = seen.apart / self.steps
        error = math.sqrt(max(seen.squares / self.steps - mean * mean, 0.0) / self.steps)
        score = abs(mean) / error if error > 0 else math.inf if mean else 0.0
        return RankLevel(rank, self.steps, seen.own / self.steps, seen.others / self.steps, min(score, 1e9))


def _middle(values: Sequence[float]) -> float:
    return fmean(sorted(values)[ENDS:-ENDS])
