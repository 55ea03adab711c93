"""Copies of a workload to experiment on."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.nouns.places import Location
from gradcheck.target.copying import copying, memo_for
from gradcheck.target.rng import seed_all
from gradcheck.target.workload import Batch, Clipping, TrainingStep, Workload


@dataclass
class Trainee:
    """A copy of the user's model, optimizer and loss that may be trained and thrown away."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    training_step: TrainingStep
    sites: Mapping[int, Location]  # id(module) -> the expression that constructed its original
    clip: Clipping | None = None  # `take_step` applies it
    loss_function: Callable[[Any, Any], torch.Tensor] | None = None  # what `training_step` is made of, where it is

    def loss(self, batch: Batch) -> torch.Tensor:
        """The scalar training loss. Raises what the user's code raises, and TargetError when it is no scalar."""
        value = self.training_step(self.model, batch)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            what = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise TargetError(f"the training step must return a scalar loss, not {what}", hint="reduce it, for example with .mean()")
        return value if value.dim() == 0 else value.reshape(())


def fork(workload: Workload, *, seed: int = 0) -> Trainee:
    """A fresh copy with the workload's initial weights and optimizer state, in training mode, random state seeded.

    Functions that refer to the model from outside (a penalty over its parameters, say) are made to refer to the copy.
    Raises TargetError when the model cannot be copied.
    """
    memo = memo_for(workload.model)
    with copying():
        model = copy.deepcopy(workload.model, memo)
        optimizer = copy_optimizer(workload.optimizer, memo)
        step = _rebind(workload.training_step, memo)
        loss = _rebind(workload.loss, memo)
    _set_training(model)
    seed_all(seed)
    sites = {id(memo[key]): place for key, place in workload.sites.items() if key in memo}
    return Trainee(model, optimizer, step, sites, workload.clip, loss)


def _set_training(model: nn.Module) -> None:
    """Training mode; what was put into evaluation mode on purpose stays there, as a `train` of the user's own says too."""
    if not model.training:
        model.train()
        return
    resting = [module for module in model.modules() if not module.training]
    for module in list(model.modules()):
        if module.training and type(module).train is not nn.Module.train:
            module.train()
    for module in resting:
        module.training = False


def copy_optimizer(optimizer: torch.optim.Optimizer, memo: dict[int, Any]) -> torch.optim.Optimizer:
    """A deep copy whose groups hold the copied parameters.

    `copy.deepcopy` drops what subclasses keep beside state and groups (LBFGS's list of parameters), and a learning-rate
    scheduler leaves a wrapped `step` on the instance that would step the original: neither is wanted.
    """
    twin = object.__new__(type(optimizer))
    memo[id(optimizer)] = twin
    for name, value in vars(optimizer).items():
        if name in ("step", "_zero_grad_profile_name"):
            continue
        twin.__dict__[name] = copy.deepcopy(value, memo)
    twin._patch_step_function()
    return twin


def _rebind(value: Any, memo: dict[int, Any]) -> Any:
    """A callable whose bound object, closure and globals refer to the copies where they referred to copied objects."""
    if isinstance(value, types.FunctionType):
        return _rebind_function(value, memo)
    if isinstance(value, functools.partial):
        return functools.partial(
            _rebind(value.func, memo), *(_copied(a, memo) for a in value.args), **{k: _copied(v, memo) for k, v in value.keywords.items()}
        )
    return _copied(value, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, (types.FunctionType, functools.partial)):
        return _rebind(value, memo)
    holds_state = isinstance(value, (nn.Module, nn.Parameter, torch.optim.Optimizer, types.MethodType))
    if holds_state or (hasattr(value, "__dataclass_fields__") and not isinstance(value, type)):
        return copy.deepcopy(value, memo)
    if isinstance(value, (list, tuple)) and any(isinstance(v, (nn.Module, nn.Parameter)) for v in value):
        return copy.deepcopy(value, memo)
    return value


def _rebind_function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A twin of a function that refers to anything copied; else the function itself."""
    if id(function) in memo:
        return memo[id(function)]
    space = dict(function.__globals__)
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    twin = types.FunctionType(function.__code__, space, function.__name__, None, cells or None)
    twin.__dict__.update(function.__dict__)
    memo[id(function)] = twin  # a recursive function refers to its own twin
    changed = False
    for cell, original in zip(cells, function.__closure__ or (), strict=True):
        try:
            content = original.cell_contents
        except ValueError:  # an empty cell
            continue
        cell.cell_contents = _copied(content, memo)
        changed |= cell.cell_contents is not content and cell.cell_contents is not twin
    for name in _global_names(function.__code__):
        content = space.get(name)
        if content is None or isinstance(content, (types.ModuleType, type)):
            continue
        if isinstance(content, types.FunctionType) and content.__globals__ is not function.__globals__:
            continue
        space[name] = _copied(content, memo)
        changed |= space[name] is not content and space[name] is not twin
    twin.__defaults__ = tuple(_copied(v, memo) for v in function.__defaults__) if function.__defaults__ else None
    twin.__kwdefaults__ = {k: _copied(v, memo) for k, v in function.__kwdefaults__.items()} if function.__kwdefaults__ else None
    given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    kept = [*(twin.__defaults__ or ()), *(twin.__kwdefaults__ or {}).values()]
    changed |= any(a is not b for a, b in zip(given, kept, strict=True))
    if not changed:
        memo[id(function)] = function
    return memo[id(function)]


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names
