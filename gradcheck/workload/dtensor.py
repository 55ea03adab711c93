"""This process's part of a tensor that is spread over several: nothing here asks another process, and none is gathered whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_WHOLE = (torch.Tensor, nn.Parameter)  # the usual kinds: asking them for attributes that they lack takes longer


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The shard of a DTensor that lies in this process, detached; any other tensor as it is."""
    if type(tensor) in _WHOLE or not is_spread(tensor):
        return tensor
    with torch.no_grad():
        spread: Any = tensor.detach()
        return spread.to_local()


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor, as `fully_shard` and tensor parallelism make them."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def multiplicity(tensor: torch.Tensor, processes: int) -> float | None:
    """In how many of so many processes each of its entries lies; None for a tensor that is not sharded: each process has all of it."""
    if not is_spread(tensor):
        return None
    spread: Any = tensor
    mesh = spread.device_mesh
    if not any(p.is_shard() for p in spread.placements):
        return None
    whole = processes / mesh.size()
    for dimension, placement in enumerate(spread.placements):
        if not placement.is_shard():
            whole *= mesh.size(dimension)
    return whole
