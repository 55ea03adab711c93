"""Device and dtype: where things go, and moving them there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.workload.batches import map_structure

FLOATS = {
    "float32": torch.float32,
    "float": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
    "double": torch.float64,
    "fp64": torch.float64,
    "float16": torch.float16,
    "half": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. Raises TargetError when the device is unknown or absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TargetError(f"unknown device {name!r}", hint="choose auto, cpu, cuda, cuda:1 or mps") from error
    absent = (device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count())) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise TargetError(f"there is no device {name}", hint="choose --device cpu or auto")
    return device


def choose_dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in FLOATS:
        raise TargetError(f"unknown dtype {name!r}", hint="choose float32, float64, bf16 or fp16")
    return FLOATS[name]


def place_module(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Moves in place; parameters keep their identity, so that an optimizer's groups stay valid. Raises TargetError."""
    try:
        if device is not None and any(t.device != device for t in (*module.parameters(), *module.buffers())):
            module.to(device)
        if dtype is not None:
            module.to(dtype)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise TargetError(f"the model cannot be moved to {device}: {error}", hint="choose another --device or --dtype") from error


def place_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Moves what the optimizer remembers of each parameter to the parameter's device."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = value.to(parameter.device)


def place_batch(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch on the device; with a dtype, its floating-point tensors in it. Leaves with gradient are copied, so that theirs stays."""

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if item.requires_grad and item.is_leaf:
                item = item.detach().clone().requires_grad_()
            return item.to(device, dtype) if dtype is not None and item.is_floating_point() else item.to(device)
        return item.to(device) if hasattr(item, "to") and not isinstance(item, type) else item

    return map_structure(move, batch)
