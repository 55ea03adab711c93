"""A file that trains while it is imported is a script, not a model file: its first backward pass ends the import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradcheck.errors import TargetError


class TrainsWhenImported(TargetError):
    """It is a training script."""


class _Begins(BaseException):
    """Not an Exception, so that training code that catches those ends anyway."""


@contextmanager
def no_training(name: str) -> Iterator[None]:
    """Raises TrainsWhenImported when the code of a model file begins to train: calls backward(), or steps an optimizer."""
    original, begun = torch.autograd.backward, False

    def ends(*args: Any, **kwargs: Any) -> None:
        nonlocal begun
        begun = True
        raise _Begins

    step = register_optimizer_step_pre_hook(ends)
    torch.autograd.backward = ends
    try:
        yield
    except (_Begins, TargetError):
        if not begun:
            raise
    finally:
        torch.autograd.backward = original
        step.remove()
    if begun:
        hint = f"`gradcheck scan {name} --script` runs it as a training script"
        raise TrainsWhenImported(f"{name} trains when it is imported", hint=hint)
