"""Which parameters all ranks of a watched run should share."""

import gc
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradcheck.live.models import unwrapped
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
