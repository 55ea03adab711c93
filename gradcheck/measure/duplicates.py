"""Columns and samples of the data that say nothing new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gradcheck.types.data import InputFacts
from gradcheck.workload.transfers import on_host

MOST_ENTRIES = 1 << 22  # of an input that is looked at
FEWEST_SAMPLES = 16
FEWEST_OFF_MODE = 8  # samples in which a feature differs from its median: rarer ones agree by chance
CLOSE = 1e-6  # in standard deviations; of float32 data


@torch.no_grad()
def facts(found: InputFacts, tensors: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], whole: bool) -> InputFacts:
    """The facts of an input [samples, ...] with its duplicates, where it is floating, finite and not too large.

    `targets`: the class labels of each batch, if there are any. `whole`: a sample is this input, and nothing else.
    """
    if not _comparable(tensors) or found.non_finite:
        return found
    tensors, targets = _first_time(tensors, targets)
    x = torch.cat([t.double().flatten(1) for t in on_host(tensors)])
    if len(x) < FEWEST_SAMPLES or x.shape[1] < 2:
        return found
    labels = torch.cat([t.reshape(-1) for t in on_host(targets)]) if targets else None
    labels = labels if labels is not None and len(labels) == len(x) and not labels.is_floating_point() else None
    same, conflicting = samples(x, labels)
    found = replace(found, duplicate_features=features(x) if tensors[0].dim() == 2 else 0)
    return replace(found, duplicate_samples=same, conflicting_samples=conflicting, samples=len(x)) if whole else found


def _first_time(tensors: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The batches without repeated ones: loops may take several steps on a batch, as those of a critic do."""
    labelled = len(targets) == len(tensors)
    batches = list(zip(tensors, targets, strict=True)) if labelled else [(t,) for t in tensors]
    new: list[tuple[torch.Tensor, ...]] = []
    for batch in batches:
        if not any(_equal(batch, other) for other in new):
            new.append(batch)
    return [b[0] for b in new], [b[1] for b in new] if labelled else list(targets)


def _equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return torch.equal(one[0][:1], other[0][:1]) and all(torch.equal(a, b) for a, b in pairs)


def _comparable(tensors: Sequence[torch.Tensor]) -> bool:
    first = tensors[0]
    if not first.is_floating_point() or first.dim() < 2 or any(t.shape[1:] != first.shape[1:] for t in tensors):
        return False
    return sum(t.numel() for t in tensors) <= MOST_ENTRIES


def features(x: torch.Tensor) -> int:
    """x: [n, d] -> how many columns are a scaled and shifted copy of a column before them in some order."""
    varied = ((x - x.median(0).values).abs() > 0).sum(0) >= FEWEST_OFF_MODE
    x = x[:, varied]
    z = x - x.mean(0)
    spread = z.square().mean(0).sqrt()
    z = (z / spread)[:, spread > 1e-12 * x.abs().amax(0)] if x.shape[1] else z
    if z.shape[1] < 2:
        return 0
    z = z * torch.where(z.gather(0, z.abs().argmax(0)[None]) < 0, -1.0, 1.0)  # an inverted copy is a copy
    columns = z.T
    order = (columns @ _direction(columns)).argsort()
    one, other = columns[order[:-1]], columns[order[1:]]
    return int(((one - other).abs().amax(1) <= CLOSE).sum())


def samples(x: torch.Tensor, labels: torch.Tensor | None) -> tuple[int, int]:
    """x: [n, d], labels: [n] or None -> how many rows equal one before them in some order; how many of these have another label."""
    order = (x @ _direction(x)).argsort(stable=True)
    same = (x[order[:-1]] == x[order[1:]]).all(1)
    if labels is None:
        return int(same.sum()), 0
    return int(same.sum()), int((same & (labels[order[:-1]] != labels[order[1:]])).sum())


def _direction(rows: torch.Tensor) -> torch.Tensor:
    """A random vector: equal rows have equal products with it, and come to lie side by side when sorted by them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows.shape[1], generator=generator, dtype=rows.dtype, device="cpu")
