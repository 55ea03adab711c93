"""What a step does to a weight: a sample of its entries before the step, their gradient, and by how much each moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

SAMPLED = 8192  # entries of all leaves of one training together, of each step
LEAST = 16  # entries of one leaf
KEPT = 200  # steps: as many as a script is followed
ALIKE = 0.2  # least cosine between a difference and the gradient that makes it a step; between unrelated numbers it is near 0

Tensor = torch.Tensor


@dataclass(eq=False)
class LeafChange:
    """One leaf in one step."""

    step: int
    before: Tensor
    gradient: Tensor
    delta: Tensor


@dataclass(eq=False)
class Waiting:
    """A leaf with a gradient, before it is known what becomes of it."""

    leaf: Tensor
    index: Tensor  # of the entries that are looked at
    before: Tensor
    gradient: Tensor
    norm: float  # of the whole gradient
    written: bool = False

    @classmethod
    def of(cls, leaf: Tensor, gradient: Tensor, index: Tensor) -> Waiting:
        return cls(leaf, index, sampled(leaf, index), sampled(gradient, index), norm_of(gradient))

    def take(self, gradient: Tensor) -> None:
        """The gradient as it is now, unless it was cleared."""
        found = sampled(gradient, self.index)
        if bool(found.any()):
            self.gradient, self.norm = found, norm_of(gradient)

    def moved(self, leaf: Tensor) -> Tensor:
        """By how much each entry differs in `leaf`: the same one, or the one in its place."""
        return sampled(leaf, self.index).double() - self.before.double()


@dataclass
class Changes:
    """The steps of one training that no optimizer of torch takes, by key of the weight."""

    by_leaf: dict[int, list[LeafChange]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)  # of the gradient of all its leaves, by step

    @property
    def happened(self) -> bool:
        return any(bool(change.delta.any()) for changes in self.by_leaf.values() for change in changes)

    def add(self, step: int, moved: Mapping[int, tuple[Waiting, Tensor]]) -> None:
        if step < KEPT:
            for key, (waiting, delta) in moved.items():
                self.by_leaf.setdefault(key, []).append(LeafChange(step, waiting.before, waiting.gradient, delta))
            self.norms.append(sum(waiting.norm**2 for waiting, _ in moved.values()) ** 0.5)


def chosen_entries(gradient: Tensor, leaves: int) -> Tensor:
    """Entries to look at in a leaf, one of `leaves`: those with the largest gradients, and as many evenly spaced ones."""
    count = max(LEAST, SAMPLED // max(1, leaves))
    flat = _flat(gradient)
    if flat.numel() <= count:
        return torch.arange(flat.numel(), device=flat.device)
    largest = flat.abs().topk(count // 2).indices
    spaced = torch.linspace(0, flat.numel() - 1, count - count // 2, device="cpu", dtype=torch.float64).long().to(flat.device)
    return torch.cat([largest, spaced]).unique()


def successors(waiting: Mapping[int, Waiting], reached: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The leaf that replaced each waiting one, by id, if a pass reaches new leaves that lie a step along the gradient from the old."""
    old = {key: w for key, w in waiting.items() if key not in reached and not w.written}
    new = [leaf for key, leaf in reached.items() if key not in waiting]
    if not old or [w.leaf.shape for w in old.values()] != [leaf.shape for leaf in new]:
        return {}
    delta = torch.cat([w.moved(leaf) for w, leaf in zip(old.values(), new, strict=True)])
    gradient = torch.cat([w.gradient.double() for w in old.values()])
    length = float(delta.norm() * gradient.norm())
    alike = length > 0 and abs(float(delta @ gradient)) > ALIKE * length
    return dict(zip(old, new, strict=True)) if alike else {}


def sampled(tensor: Tensor, index: Tensor) -> Tensor:
    return _flat(tensor)[index].to("cpu", torch.float32)


def norm_of(gradient: Tensor) -> float:
    return float(_flat(gradient).float().norm())


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)
