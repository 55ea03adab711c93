"""Whether the parameters that all ranks should share are still equal: told from what the ranks report anyway."""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradcheck.live.models import unwrapped
from gradcheck.live.rank_statistics import ParameterShare
from gradcheck.types.gauges import RankStep
from gradcheck.workload.dtensor import multiplicity

ROUNDING = 1e-6  # relative: replicas of a sound training are equal to the last bit
NAMED = 3  # parameters


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
    if wrapper is None and any(1 < size < count for size in _group_sizes()):
        return "the ranks are divided into groups: which parameters are replicas is not known"
    left_out: Any = wrapper.parameters_to_ignore if wrapper is not None else ()
    whole = [name for name, p in model.named_parameters() if multiplicity(p, count) is None and not _own_affair(p)]
    return frozenset(name for name in whole if not any(name == n or n.endswith(f".{name}") for n in left_out))


def _flat(p: nn.Parameter) -> bool:
    return type(p).__name__ == "FlatParameter" or hasattr(p, "_is_flat_param") or hasattr(p, "ds_id")


def _own_affair(p: nn.Parameter) -> bool:
    """Megatron and its kin mark parameters that each rank has a part of, or that only some ranks share."""
    return bool(getattr(p, "tensor_model_parallel", False)) or getattr(p, "allreduce", True) is False


def _group_sizes() -> Iterator[int]:
    groups: Mapping[Any, Any] = getattr(getattr(dist.distributed_c10d, "_world", None), "pg_map", {})
    for group in list(groups):
        try:
            yield group.size()
        except RuntimeError:  # one that was taken down
            continue


def compare(step: int, shares: Sequence[Mapping[str, ParameterShare]], names: frozenset[str]) -> RankStep | None:
    """`shares`: of each rank. None if there is nothing to compare."""
    worst, name, rank = 0.0, "", 0
    differing = compared = 0
    gradients, one_sided = 0.0, []
    for key, first in shares[0].items():
        others = [(r, s[key]) for r, s in enumerate(shares[1:], 1) if key in s]
        same = [(r, o) for r, o in others if len(o.sample) == len(first.sample)]
        if key not in names or not same:
            continue
        compared += 1
        far, where = max((_distance(first, o), r) for r, o in same)
        differing += far > ROUNDING
        if far > worst or not name:
            worst, name, rank = far, key, where
        norms = [first.step.gradient_norm, *(o.step.gradient_norm for _, o in same)]
        if None in norms and any(n is not None for n in norms):
            one_sided.append(key)
        gradients = max(gradients, _spread([n for n in norms if n is not None]))
    if not compared:
        return None
    return RankStep(step, worst, name, rank, differing, compared, gradients, tuple(one_sided[:NAMED]))


def _distance(first: ParameterShare, other: ParameterShare) -> float:
    """The larger of the relative distances of the samples and of the norms: entries outside the sample show in the norm alone."""
    return max(_apart(first.sample, other.sample), _spread([first.step.norm, other.step.norm]))


def _apart(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    fine, also = np.isfinite(a), np.isfinite(b)
    if not np.array_equal(fine, also):
        return math.inf
    distance, norm = float(np.linalg.norm((a - b)[fine])), float(np.linalg.norm(a[fine]))
    return distance / norm if norm > 0 else math.inf if distance > 0 else 0.0


def _spread(norms: Sequence[float]) -> float:
    """Largest distance of two norms over the largest. Where all are not finite there is nothing to compare."""
    finite = [n for n in norms if math.isfinite(n)]
    if len(finite) < len(norms):
        return math.inf if finite else 0.0
    top = max(finite, default=0.0)
    return (top - min(finite)) / top if top > 0 else 0.0
