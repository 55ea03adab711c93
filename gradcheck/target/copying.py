"""A copy to try things on, so that the user's objects stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from gradcheck.errors import TargetError

T = TypeVar("T")


def duplicate(value: T, model: nn.Module) -> T:
    """Deep copy of `value`, a structure that holds `model`. Raises TargetError when something in it cannot be copied."""
    memo = memo_for(model)
    with copying():
        return copy.deepcopy(value, memo)


def memo_for(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` with what torch refuses to copy: tensors that are no leaves (old weight_norm keeps one)."""
    kept = (a for module in model.modules() for a in vars(module).values() if isinstance(a, torch.Tensor) and not a.is_leaf)
    return {id(a): a.detach().clone() for a in kept}


@contextmanager
def copying() -> Iterator[None]:
    """Turns what a copy may raise into one TargetError."""
    try:
        yield
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(
            f"the model cannot be copied: {type(error).__name__}: {error}",
            hint="gradcheck measures a copy, so that nothing of yours changes; give the attribute that fails a __deepcopy__",
        ) from error
