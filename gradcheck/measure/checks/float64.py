"""Runs a copy in float64: weights, batch, and what the code casts on its way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradcheck.workload.tensors import map_structure

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_CASTS = frozenset(("float", "half", "bfloat16"))


class Wide(TorchFunctionMode):
    """Turns casts to narrower types, and constants of narrower types, into float64, so that no result is rounded to them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _CASTS and args and isinstance(args[0], torch.Tensor):
            return args[0].double()
        if any(isinstance(a, torch.dtype) for a in args):
            args = tuple(_WIDE.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        if isinstance(kwargs.get("dtype"), torch.dtype):
            kwargs = {**kwargs, "dtype": _WIDE.get(kwargs["dtype"], kwargs["dtype"])}
        try:
            return func(*args, **kwargs)
        except RuntimeError:  # a narrow constant meets a float64 tensor
            if not any(t.dtype in _WIDE for t in _tensors((args, kwargs))):
                raise
            return func(*widened(args), **widened(kwargs))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def widened(value: Any) -> Any:
    """The same structure with its floating-point and complex tensors in double precision; the others are the same objects."""
    return map_structure(lambda x: x.to(_WIDE[x.dtype]) if isinstance(x, torch.Tensor) and x.dtype in _WIDE else x, value)


def widen(model: nn.Module) -> None:
    """Makes the parameters and buffers of a copy double precision, in place."""
    model._apply(lambda t: t.to(_WIDE[t.dtype]) if t.dtype in _WIDE else t)


@contextmanager
def in_double() -> Iterator[None]:
    """While active, new tensors are float64, at half the speed of float32 or less."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
