"""The prediction and the loss in what a model returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from gradcheck.errors import TargetError

_OUTPUT_NAMES = ("logits", "out", "output", "prediction", "predictions", "last_hidden_state")


def first_tensor(output: Any) -> torch.Tensor:
    """The prediction in a model's output: `logits` and the like by name, else the first floating-point tensor. Raises TargetError."""
    found = next(_predictions(output), None)
    if found is None:
        raise TargetError(
            f"the model returns {type(output).__name__} without a floating-point tensor",
            hint="define compute_loss(model, batch) in the file, or pass training_step=, to say how its loss is computed",
        )
    return found


def _predictions(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output
        return
    if isinstance(output, Mapping):
        names = [*(n for n in _OUTPUT_NAMES if n in output), *(n for n in output if n not in _OUTPUT_NAMES)]
        parts: list[Any] = [output[name] for name in names]
    elif isinstance(output, (tuple, list)):
        named = [getattr(output, n) for n in _OUTPUT_NAMES if n in getattr(output, "_fields", ())]
        parts = [*named, *output]
    elif is_dataclass(output) and not isinstance(output, type):
        present = [f.name for f in fields(output)]
        parts = [getattr(output, n) for n in (*(n for n in _OUTPUT_NAMES if n in present), *present)]
    else:
        parts = [getattr(output, n) for n in _OUTPUT_NAMES if hasattr(output, n)]
    for part in parts:
        yield from _predictions(part)


def own_loss_of(output: Any) -> torch.Tensor | None:
    """The loss that the model computed itself: a scalar output, `.loss`, (logits, loss), or a dict of losses (their sum)."""
    if isinstance(output, torch.Tensor):
        return output if _is_scalar(output) else None
    if isinstance(output, Mapping):
        if _is_scalar(output.get("loss")):
            return output["loss"].reshape(())
        parts = list(output.values())
        return torch.stack([part.reshape(()) for part in parts]).sum() if parts and all(map(_is_scalar, parts)) else None
    if _is_scalar(getattr(output, "loss", None)):
        return output.loss.reshape(())
    if isinstance(output, (tuple, list)):
        return next((part for part in output if isinstance(part, torch.Tensor) and part.ndim == 0 and part.is_floating_point()), None)
    return None


def _is_scalar(value: Any) -> bool:
    """Losses gathered from replicas, and those of some libraries, come as a vector with one entry."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and (value.ndim == 0 or value.shape == (1,))


def as_scalar(value: Any) -> torch.Tensor:
    """What a user's function returns as the loss: a scalar tensor, or a dict or tuple that holds it. Raises TargetError."""
    found = own_loss_of(value)
    if found is None and isinstance(value, torch.Tensor) and value.numel() == 1:
        found = value
    if found is None:
        what = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TargetError(f"the loss must be a scalar tensor, not {what}", hint="reduce it, for example with .mean()")
    return found.reshape(())
