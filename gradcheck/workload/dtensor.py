"""This process's part of a tensor that is spread over several; only `whole` asks another process."""

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


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a DTensor, detached; all processes that hold it must ask together. Any other tensor as it is."""
    if type(tensor) in _WHOLE or not is_spread(tensor):
        return tensor
    spread: Any = tensor.detach()
    # A table that is sharded by rows leaves a mask with its output, for the one reduction that follows: the program's own.
    masks = [(p.mask_buffer, p.mask_buffer.data) for p in spread.placements if hasattr(p, "mask_buffer")]
    found: torch.Tensor = spread.full_tensor()
    for buffer, mask in masks:
        if buffer.data is None:
            buffer.materialize_mask(mask)
    return found


def laid_out(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A gradient spread as its parameter is: under tensor parallelism it may lie whole in each process, or still have to be summed over
    them. All processes that hold it must ask together."""
    if not (is_spread(gradient) and is_spread(parameter)):
        return gradient
    found: Any = gradient.detach()
    wanted: Any = parameter
    return found if found.placements == wanted.placements else found.redistribute(wanted.device_mesh, wanted.placements)


def part_like(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Of values that every process has whole, those that lie in this one where they are spread as a DTensor is."""
    if not is_spread(tensor):
        return values.to(tensor)
    from torch.distributed.tensor import distribute_tensor

    spread: Any = tensor
    with torch.no_grad():
        part: Any = distribute_tensor(values.to(spread.device, spread.dtype), spread.device_mesh, spread.placements, src_data_rank=None)
        return part.to_local()


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor, as `fully_shard` and tensor parallelism make them."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def is_freed(tensor: torch.Tensor) -> bool:
    """Whether its memory was given back, as sharding does with gathered parameters: reading it ends the process."""
    return tensor.layout is torch.strided and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def multiplicity(tensor: torch.Tensor, processes: int) -> float | None:
    """In how many of so many processes each of its entries lies; None for a tensor that is not sharded: each process has all of it."""
    if not is_spread(tensor):
        return None
    spread: Any = tensor
    mesh = spread.device_mesh
    if not any(map(_divides, spread.placements)):
        return None
    copies = processes / mesh.size()
    for dimension, placement in enumerate(spread.placements):
        if not _divides(placement):
            copies *= mesh.size(dimension)
    return copies


def _divides(placement: Any) -> bool:
    """Whether it gives each process a part; also if one sharding is on top of another, which torch does not call a shard."""
    return not (placement.is_replicate() or placement.is_partial())
