"""Norms of gradients, in one batched call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from gradcheck.workload.dtensor import local


def total_norm(parameters: Iterable[nn.Parameter]) -> float:
    """2-norm of all gradients together."""
    gradients = [g for p in parameters if (g := gradient_of(p)) is not None and g.numel()]
    return math.sqrt(math.fsum(n * n for n in norms_of(gradients)))


def norms_of(tensors: Sequence[torch.Tensor]) -> list[float]:
    """2-norms in one batched call; in float64 where float32 underflows or overflows."""
    if not tensors:
        return []
    found = as_numbers(torch._foreach_norm(list(tensors)))
    for i, (value, tensor) in enumerate(zip(found, tensors, strict=True)):
        if not 1e-15 < value < 1e18:
            found[i] = tensor.double().norm().item()
    return found


def as_numbers(scalars: Sequence[torch.Tensor]) -> list[float]:
    """0-d tensors as numbers, with one transfer from each device."""
    if not scalars:
        return []
    devices = {t.device for t in scalars}
    return torch.stack([t.double().cpu() for t in scalars] if len(devices) > 1 else [t.float() for t in scalars]).tolist()


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """As real float32 or float64; of a DTensor the local part, here and below."""
    tensor = local(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def gradient_of(p: torch.Tensor) -> torch.Tensor | None:
    if p.grad is None:
        return None
    gradient = local(p.grad.detach())
    return as_real(gradient.coalesce().values() if gradient.is_sparse else gradient)
