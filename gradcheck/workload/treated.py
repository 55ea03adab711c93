"""A copy of a workload that remedies may change."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.types.fix import Fix
from gradcheck.workload.step import make_training_step, split
from gradcheck.workload.tensors import map_structure, named_tensors, tensors_of
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


def target_index(batch: Batch, model: nn.Module) -> int | None:
    """Position of the target among the batch's tensors; None when there is none, or no single one."""
    _, target = split(batch, model, own_loss=True)
    if target is None and isinstance(batch, (tuple, list)) and len(batch) > 1:
        target = batch[-1]
    return next((i for i, t in enumerate(tensors_of(batch)) if t is target), None)


def input_indices(batch: Batch, model: nn.Module, names: Sequence[str] = ()) -> list[int]:
    """Positions of the floating-point inputs; only those of these names, as the measurement has them, where any are given."""
    target = target_index(batch, model)
    named = list(named_tensors(batch))
    return [i for i, (name, t) in enumerate(named) if i != target and t.is_floating_point() and (not names or name in names)]


def tensor_at(batch: Batch, index: int) -> torch.Tensor:
    return next(itertools.islice(tensors_of(batch), index, None))


def replaced(batch: Batch, new: Mapping[int, Any]) -> Batch:
    """The batch with the tensors at these positions replaced; its containers keep their kind."""
    count = itertools.count()

    def one(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        index = next(count)
        return new.get(index, value)

    return map_structure(one, batch)


def by_sample(batch: Batch) -> list[int]:
    """Positions of the tensors that have an entry for each sample on their first axis."""
    tensors = list(tensors_of(batch))
    size = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
    return [i for i, t in enumerate(tensors) if t.dim() and t.shape[0] == size]


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples. Raises Inapplicable where batches differ by more than their number of samples."""
    first = list(tensors_of(batches[0]))
    places = by_sample(batches[0])
    if len(places) < len(first):
        raise Inapplicable("some tensors of a batch have no entry for each sample")
    try:
        columns = [torch.cat([tensor_at(b, i) for b in batches]) for i in places]
    except (RuntimeError, StopIteration) as error:
        raise Inapplicable("samples of different batches have different shapes") from error
    return replaced(batches[0], dict(enumerate(columns)))


def picked(batch: Batch, samples: torch.Tensor) -> Batch:
    """The batch with these samples only: indices, or a mask."""
    return replaced(batch, {i: tensor_at(batch, i)[samples] for i in by_sample(batch)})
