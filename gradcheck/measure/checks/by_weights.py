"""Derivatives by all trained parameters. Of a sharded model each process has a part of them, and sums are taken over all processes, which
come here together.
"""

import math
from collections.abc import Sequence

import torch

from gradcheck.workload.device import as_numbers, wide
from gradcheck.workload.dtensor import laid_out, local, multiplicity, part_like
from gradcheck.workload.lockstep import everyone, several

Vector = list[torch.Tensor]  # one tensor for each parameter, or this process's part of it


def gradients(
    of: torch.Tensor, parameters: Sequence[torch.Tensor], weights: torch.Tensor | None = None, *, retain: bool = False
) -> list[torch.Tensor | None]:
    """None where the value does not depend on a parameter. `weights`: of the entries of `of`; `retain`: its graph is used again."""
    if not several():
        return list(torch.autograd.grad(of, list(parameters), weights, retain_graph=retain, allow_unused=True))
    for p in parameters:
        p.grad = None
    of.backward(weights, retain_graph=retain)
    found = [None if p.grad is None else local(laid_out(p.grad, p)) for p in parameters]
    for p in parameters:
        p.grad = None
    return found


def dot(one: Vector, other: Vector, parameters: Sequence[torch.Tensor]) -> float:
    """Inner product."""
    parts = as_numbers([(wide(a.detach()) * wide(b.detach())).sum() for a, b in zip(one, other, strict=True)])
    if not several():
        return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)
    of_ranks = everyone([x / c for x, c in zip(parts, copies(parameters), strict=True)])
    return sum(x for rank in of_ranks for x in rank)


def norm(vector: Vector, parameters: Sequence[torch.Tensor]) -> float:
    """2-norm."""
    return math.sqrt(dot(vector, vector, parameters))


def copies(parameters: Sequence[torch.Tensor]) -> list[float]:
    """In how many processes each entry of a parameter lies."""
    count = len(everyone(None))
    return [multiplicity(p, count) or count for p in parameters]


def like(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Of values for a whole parameter those that go with what this process has of it."""
    return part_like(values, parameter) if several() else values.to(parameter)
