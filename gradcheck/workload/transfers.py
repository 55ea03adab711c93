"""Transfers from a device to the host, with one wait for many tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from gradcheck.workload.dtensor import whole


def on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors on the CPU, in their order, with one transfer from each device. Those that are there already are taken as they are."""
    found = [whole(t).detach() for t in tensors]
    for device in {t.device for t in found if not t.is_cpu}:
        there = [i for i, t in enumerate(found) if t.device == device]
        for i, t in zip(there, _moved([found[i] for i in there]), strict=True):
            found[i] = t
    return found


def in_groups(groups: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """Several lists of tensors on the CPU, with one transfer from each device."""
    arrived = iter(on_host([t for group in groups for t in group]))
    return [[next(arrived) for _ in group] for group in groups]


def _moved(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors of one device as bytes in a row: wide types first, so that each is aligned for its type."""
    order = sorted(range(len(tensors)), key=lambda i: (-tensors[i].element_size(), str(tensors[i].dtype)))
    joined = [torch.cat([tensors[i].reshape(-1) for i in same]) for _, same in groupby(order, key=lambda i: tensors[i].dtype)]
    whole = joined[0].cpu() if len(joined) == 1 else torch.cat([t.view(torch.uint8) for t in joined]).cpu()
    found = list(tensors)
    start = 0
    for i in order:
        t = tensors[i]
        size = t.numel() * (1 if len(joined) == 1 else t.element_size())
        part = whole[start : start + size]
        found[i] = (part if len(joined) == 1 else part.view(t.dtype)).view(t.shape)
        start += size
    return found


def as_numbers(scalars: Sequence[torch.Tensor]) -> list[float]:
    """Tensors of one entry each as numbers, with one transfer from each device."""
    if not scalars:
        return []
    first = scalars[0]
    if all(t.dtype is first.dtype and t.device == first.device and t.dim() == first.dim() for t in scalars):
        return torch.stack(list(scalars)).reshape(-1).tolist()
    return [float(t) for t in on_host(scalars)]
