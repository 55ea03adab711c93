"""Modules that `fully_shard` has sharded, while they are measured: their parameters are shards whenever nothing runs, and it is known which
shard each whole parameter that autograd meets stands for.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradcheck.workload.dtensor import is_spread

_shards: dict[int, torch.Tensor] = {}  # by id of the whole parameter that stands in for them in forward and backward passes
# What a loop may switch off: reducing the gradients after a pass, and releasing the parameters. All is on while a pass is measured.
_COURSE = ("post_forward_mesh_info", "reduce_grads", "all_reduce_grads", "reshard_after_backward", "is_last_backward")
_groups: list[Any] = []  # of parameters, of the model that is being measured or recorded


def class_of(module: nn.Module) -> type:
    """Its class in the program: `fully_shard` gives it a new one, named FSDP..."""
    kind = type(module)
    return kind.__bases__[1] if kind.__bases__[0].__name__ == "FSDPModule" else kind


def is_sharded(model: nn.Module) -> bool:
    return any(is_spread(p) for p in model.parameters())


def trains_on_parts(model: nn.Module) -> bool:
    """Whether `fully_shard` averages gradients over several processes, each of which is to have batches of its own."""
    meshes = [group.mesh_info for state in _states_of(model) for group in state._fsdp_param_groups]
    return any(getattr(m, "shard_mesh_size", 1) * getattr(m, "replicate_mesh_size", 1) > 1 for m in meshes)


def shows_parts(model: nn.Module) -> bool:
    """Whether layers are split: what they return is a part on each rank. Shards that are gathered for the pass give whole outputs."""
    gathered = {id(p.sharded_param): p.is_dtensor for group in _groups for p in group.fsdp_params}
    return any(is_spread(p) and gathered.get(id(p), True) for p in model.parameters())


@contextmanager
def kept_sharded(model: nn.Module) -> Iterator[None]:
    """While active, parameters, including the root module's, are gathered for a forward or backward pass only."""
    states = _states_of(model)
    for state in states:  # as the first forward pass does: the outermost first
        state._lazy_init()
    with noting_shards() as groups:
        groups += [group for state in states for group in state._fsdp_param_groups]
        before = [(x, {name: vars(x)[name] for name in _COURSE if name in vars(x)}) for x in (*groups, *(s._state_ctx for s in states))]
        for x, found in before:
            vars(x).update({name: True for name in found if name != "post_forward_mesh_info"})
        for group in groups:
            group.post_forward_mesh_info = group.post_forward_mesh_info or group.mesh_info
        try:
            yield
        finally:
            reset(model)
            for x, found in before:
                vars(x).update(found)


@contextmanager
def noting_shards() -> Iterator[list[Any]]:
    """Collects the groups of parameters that are sharded while active: for these, the shard of a gathered parameter is known."""
    global _groups
    before, _groups = _groups, []
    try:
        yield _groups
    finally:
        _groups = before
        _shards.clear()


def holds_back() -> bool:
    """Whether gradients of some pass are kept back and reduced after a later one, so that the parameters do not show them."""
    parameters = (p for group in _groups for p in group.fsdp_params)
    late = any(getattr(group, "_partial_reduce_output", None) is not None for group in _groups)
    return late or any(p.unsharded_accumulated_grad is not None or _gathered_grad(p) is not None for p in parameters)


def _gathered_grad(p: Any) -> torch.Tensor | None:
    gathered: torch.Tensor | None = getattr(p, "_unsharded_param", None)
    return gathered.grad if gathered is not None else None


def _sharding_modules(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "set_reshard_after_forward")]


def _states_of(model: nn.Module) -> list[Any]:
    found = {id(s): s for m in _sharding_modules(model) if (s := m._get_fsdp_state()) is not None}
    return list(found.values())


def reset(model: nn.Module) -> None:
    """Resets after a pass that an error ended: nothing is gathered, and the next pass counts as the first."""
    for state in _states_of(model):
        if state._is_root and hasattr(state, "_reset_iter_state"):
            state._reset_iter_state()
    for module in _sharding_modules(model):
        module.reshard()


def as_held(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves of a graph, each gathered parameter replaced by the one that the model holds."""
    tensors = list(tensors)
    if _groups and any(id(t) not in _shards for t in tensors):
        for group in _groups:
            for p in group.fsdp_params:
                if hasattr(p, "_unsharded_param"):
                    _shards[id(p._unsharded_param)] = p.sharded_param
    return [_shards.get(id(t), t) for t in tensors] if _groups else tensors
