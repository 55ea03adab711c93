"""Copies of a workload to experiment on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.nouns.places import Location
from gradcheck.target.copying import bind_copies, bound, copying, memo_for
from gradcheck.target.rng import seed_all
from gradcheck.target.training_mode import set_mode
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
        step = bound(workload.training_step, memo)
        loss = bound(workload.loss, memo)
        bind_copies(memo)
    _set_training(model)
    seed_all(seed)
    sites = {id(memo[key]): place for key, place in workload.sites.items() if key in memo}
    return Trainee(model, optimizer, step, sites, workload.clip, loss)


def _set_training(model: nn.Module) -> None:
    """Training mode; what was put into evaluation mode on purpose stays there, as a `train` of the user's own says too."""
    if not model.training:
        set_mode(model, True)
        return
    resting = [module for module in model.modules() if not module.training]
    for module in list(model.modules()):
        if module.training and type(module).train is not nn.Module.train:
            set_mode(module, True)
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
