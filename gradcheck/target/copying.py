"""A copy to try things on, so that the user's objects stay as they are."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from gradcheck.errors import TargetError

T = TypeVar("T")


def duplicate(value: T, model: nn.Module) -> T:
    """Deep copy of `value`, a structure that holds `model`. Raises TargetError when something in it cannot be copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for attribute in vars(module).values():
            if isinstance(attribute, torch.Tensor) and not attribute.is_leaf:  # torch refuses to copy these (old weight_norm keeps one)
                memo[id(attribute)] = attribute.detach().clone()
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise TargetError(
            f"the model cannot be copied: {type(error).__name__}: {error}",
            hint="gradcheck measures a copy, so that nothing of yours changes; give the attribute that fails a __deepcopy__",
        ) from error
