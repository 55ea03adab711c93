"""Calls of custom autograd Functions, which torch does not show to modes: of the user's code, and replayed from a tape."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Look = Callable[[Any, Callable[..., Any], Any, Any], Any]  # (function, what applies it, arguments, keyword arguments) to its result

_looks: list[Look] = []


def applied(whole: Callable[..., Any], kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A call as it is replayed: whoever looks at calls sees it."""
    return _looks[-1](kind, whole, args, kwargs) if _looks else whole(kind, *args, **kwargs)


@contextmanager
def seen_by(look: Look) -> Iterator[None]:
    """While active, `look` makes the calls."""
    before = vars(torch.autograd.Function)["apply"]

    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
        return look(kind, before.__func__, args, kwargs)

    setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010
    _looks.append(look)
    try:
        yield
    finally:
        _looks.remove(look)
        setattr(torch.autograd.Function, "apply", before)  # noqa: B010
