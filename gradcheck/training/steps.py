"""One step of the user's optimizer, and what it is asked for."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from gradcheck.training.clip import clip_gradients
from gradcheck.workload.training_copy import TrainingCopy


def take_step(trainee: TrainingCopy, batch: Any) -> None:
    """The optimizer's step; with a closure for those that evaluate the loss themselves (LBFGS)."""
    if not needs_closure(trainee.optimizer):
        clip_gradients(trainee.clip, trainee.model)
        trainee.optimizer.step()
        return

    def closure() -> torch.Tensor:
        trainee.optimizer.zero_grad(set_to_none=True)
        loss = trainee.loss(batch)
        if loss.requires_grad:
            loss.backward()
            clip_gradients(trainee.clip, trainee.model)
        return loss

    trainee.optimizer.step(closure)  # type: ignore[arg-type]


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return isinstance(optimizer, torch.optim.LBFGS) or (parameter is not None and parameter.default is inspect.Parameter.empty)


def lr_of(optimizer: torch.optim.Optimizer) -> float | None:
    value = optimizer.param_groups[0].get("lr") if optimizer.param_groups else None
    return float(value) if value is not None else None
