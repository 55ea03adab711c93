"""Tensors in batches of any structure: which of them is the target, and batches with some of them replaced."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gradcheck.workload.step import split
from gradcheck.workload.tensors import map_structure, named_tensors, tensors_of
from gradcheck.workload.treated import Inapplicable
from gradcheck.workload.workload import Batch


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
