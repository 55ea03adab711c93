"""What a step does to a weight: a sample of its entries before the step, their gradient, and by how much each moved."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch

SAMPLED = 8192  # entries of all leaves of one training together, of each step
LEAST = 16  # entries of one leaf
KEPT = 200  # steps: as many as a script is followed


@dataclass(eq=False)
class Change:
    """One leaf in one step."""

    step: int
    before: torch.Tensor
    gradient: torch.Tensor
    delta: torch.Tensor


@dataclass(eq=False)
class Waiting:
    """A leaf with a gradient, before it is known what becomes of it."""

    leaf: weakref.ref[torch.Tensor]
    index: torch.Tensor  # of the entries that are looked at
    before: torch.Tensor
    gradient: torch.Tensor
    norm: float  # of the whole gradient
    written: bool = False

    def look(self, gradient: torch.Tensor) -> None:
        """Takes the gradient as it is now, unless it was cleared."""
        found = sampled(gradient, self.index)
        if bool(found.any()):
            self.gradient, self.norm = found, norm_of(gradient)


@dataclass
class Changes:
    """The steps of one training whose updates are no optimizer's of torch, by id of the leaf."""

    by_leaf: dict[int, list[Change]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)  # of the gradient of all its leaves, by step

    def add(self, key: int, waiting: Waiting, delta: torch.Tensor, step: int) -> None:
        if step < KEPT:
            self.by_leaf.setdefault(key, []).append(Change(step, waiting.before, waiting.gradient, delta))


def chosen_entries(gradient: torch.Tensor, leaves: int) -> torch.Tensor:
    """Entries to look at in a leaf, one of `leaves`: those with the largest gradients, and as many evenly spaced ones."""
    count = max(LEAST, SAMPLED // max(1, leaves))
    flat = _flat(gradient)
    if flat.numel() <= count:
        return torch.arange(flat.numel(), device=flat.device)
    largest = flat.abs().topk(count // 2).indices
    spaced = torch.linspace(0, flat.numel() - 1, count - count // 2, device=flat.device, dtype=torch.float64).long()
    return torch.cat([largest, spaced]).unique()


def sampled(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return _flat(tensor)[index].to("cpu", torch.float32)


def norm_of(gradient: torch.Tensor) -> float:
    return float(_flat(gradient).float().norm())


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.to_dense() if tensor.is_sparse else tensor).reshape(-1)
