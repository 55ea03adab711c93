"""A few samples of a batch, if a training step runs on them."""

from __future__ import annotations

from typing import Any

import torch

from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import fork
from gradcheck.workload.workload import Workload

TRIED = 8  # samples with which to find out whether batches can be cut


def some_samples(workload: Workload, count: int) -> Any:
    """The first samples of the first batch; the whole batch when the step does not run on a part of it (a graph, one episode)."""
    batch = workload.batches[0]
    return few_samples(batch, count) if batch_size(batch) > count and is_divisible(workload) else batch


def is_divisible(workload: Workload) -> bool:
    """Whether the training step runs on a part of the first batch. Found out once, on a copy."""
    if workload.divisible is None:
        workload.divisible = batch_size(workload.batches[0]) <= TRIED or _runs(workload)
    return workload.divisible


def _runs(workload: Workload) -> bool:
    try:
        with torch.no_grad():
            fork(workload).loss(few_samples(workload.batches[0], TRIED))
    except Exception:  # the user's code runs here with fewer samples than it was written for
        return False
    return True


def few_samples(batch: Any, count: int) -> Any:
    """The first samples of every tensor that has one entry a sample; the batch itself when that cannot be told."""
    size = batch_size(batch)
    return batch if size <= count else cut(batch, size, slice(count))


def cut(value: Any, size: int, samples: slice) -> Any:
    """These samples of every tensor that has one entry for each of `size` samples."""
    if isinstance(value, torch.Tensor):
        return value[samples] if value.dim() and value.shape[0] == size else value
    if isinstance(value, dict):
        return {key: cut(item, size, samples) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(cut(item, size, samples) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(cut(item, size, samples) for item in value)
    return value
