"""A copy of a workload that remedies may change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.types.fix import Fix
from gradcheck.workload.step import make_training_step
from gradcheck.workload.training_copy import fork
from gradcheck.workload.workload import Batch, Workload

Prepare = Callable[[Batch], Batch]
Augment = Callable[[Batch, torch.Generator], Batch]


class Inapplicable(Exception):
    """The treatment cannot be applied to this copy; the message says why, in words for the user."""


@dataclass
class TreatedWorkload:
    """A copy of a workload, which treatments may change: model, optimizer, loss, clipping, batches.

    What acts at every step attaches itself to the optimizer as a step hook that refers to its `optimizer` argument only,
    so that a bare training loop with `optimizer.step()` gets it and copies carry it along.
    """

    workload: Workload
    preparations: list[Prepare] = field(default_factory=list)
    applied: list[Fix] = field(default_factory=list)
    augmentations: list[Augment] = field(default_factory=list)  # of training batches only, redrawn at each step
    renames: list[tuple[str, str]] = field(default_factory=list)  # (path, path now) of modules that were wrapped, in order

    @property
    def model(self) -> nn.Module:
        return self.workload.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.workload.optimizer

    def prepare(self, batch: Batch) -> Batch:
        """What becomes of a batch before the model sees it."""
        for one in self.preparations:
            batch = one(batch)
        return batch

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A training batch, which `prepare` has seen, as one step sees it."""
        for one in self.augmentations:
            batch = one(batch, generator)
        return batch

    def transform(self, prepare: Prepare) -> None:
        """Changes every batch from now on, those of the workload included."""
        self.preparations.append(prepare)
        self.workload.batches = [prepare(b) for b in self.workload.batches]
        self.workload.val_batches = [prepare(b) for b in self.workload.val_batches]

    def replace_loss(self, loss: Callable[[Any, Any], torch.Tensor]) -> None:
        """Raises Inapplicable when the training step computes its loss itself."""
        if self.workload.loss is None:
            raise Inapplicable("the training step computes its loss itself")
        self.workload.loss = loss
        self.workload.training_step = make_training_step(loss)

    def replace_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Replaces the optimizer; the new one takes over its place in the source and its step hooks."""
        old = self.optimizer
        optimizer._optimizer_step_pre_hooks.update(old._optimizer_step_pre_hooks)
        optimizer._optimizer_step_post_hooks.update(old._optimizer_step_post_hooks)
        if id(old) in self.workload.sites:
            self.workload.sites = {**self.workload.sites, id(optimizer): self.workload.sites[id(old)]}
        self.workload.optimizer = optimizer

    def copy(self) -> TreatedWorkload:
        """An independent copy, with the same weights."""
        return replace(
            self,
            workload=_copied(self.workload),
            preparations=list(self.preparations),
            applied=list(self.applied),
            augmentations=list(self.augmentations),
            renames=list(self.renames),
        )


def treated_copy(workload: Workload) -> TreatedWorkload:
    """A copy made from a workload, which stays as it is. Raises TargetError when the model cannot be copied faithfully."""
    if workload.borrowed is not None:
        raise TargetError(f"remedies are tried on copies, and {workload.borrowed.why}", hint="`gradcheck scan` measures the model itself")
    return TreatedWorkload(_copied(workload))


def _copied(workload: Workload) -> Workload:
    copied = fork(workload)
    loss = copied.loss_function
    return replace(
        workload,
        model=copied.model,
        optimizer=copied.optimizer,
        training_step=copied.training_step,
        loss=loss,
        sites=copied.sites,
        batches=list(workload.batches),
        val_batches=list(workload.val_batches),
        assumptions=copy.copy(workload.assumptions),
        rebuild=None,
    )
