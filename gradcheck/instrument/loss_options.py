"""The options of a loss function's call, by the names that torch has for them now, however they were given."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any


def options_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name, those without one among them; `size_average` and `reduce`, which came before it, as `reduction`."""
    given = dict(zip(_names(function), args, strict=False)) | dict(kwargs)
    average, reduce = given.pop("size_average", None), given.pop("reduce", None)
    if average is not None or reduce is not None:
        given["reduction"] = "none" if reduce is not None and not reduce else "mean" if average is None or average else "sum"
    return given


def reduction_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """ "mean", "sum", "none", "batchmean"."""
    given = options_of(function, args, kwargs).get("reduction")
    return given if isinstance(given, str) else next((x for x in args if isinstance(x, str)), "mean")


@cache
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a function of torch's own that is not written in Python
        return "input", "target"
