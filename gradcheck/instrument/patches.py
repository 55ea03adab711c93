"""Replacing attributes of classes and modules temporarily, and the place of a function mode among others."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._device import DeviceContext


class Patches:
    """Attributes that were replaced; `undo` puts the originals back, the last one first."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, bool]] = []
        self._everywhere: list[tuple[Any, Any]] = []  # originals, and what is in their place in every module

    def wrap(self, home: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replaces `home.name` by `make(original)`, which looks like the original."""
        original = getattr(home, name)
        self.put(home, name, functools.wraps(original)(make(original)))

    def put(self, home: Any, name: str, value: Any) -> None:
        """After `undo`, an attribute that a class inherits is inherited again."""
        own = name in vars(home)
        self._done.append((home, name, vars(home).get(name), own))
        setattr(home, name, value)

    def wrap_everywhere(self, home: Any, makers: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]) -> None:
        """The same for functions of a module, also where other modules, such as the user's, have imported them by name."""
        for name, make in makers.items():
            original = getattr(home, name)
            self.wrap(home, name, make)
            self._everywhere.append((original, getattr(home, name)))
        _replace({id(original): wrapper for original, wrapper in self._everywhere})

    def undo(self) -> None:
        while self._done:
            home, name, original, own = self._done.pop()
            if own:
                setattr(home, name, original)
            else:
                delattr(home, name)
        _replace({id(wrapper): original for original, wrapper in self._everywhere})  # also in what was imported meanwhile
        self._everywhere.clear()


def _replace(replaced: Mapping[int, Any]) -> None:
    """In the namespaces of all modules, by id of what is replaced."""
    for module in list(sys.modules.values()) if replaced else ():
        names = getattr(module, "__dict__", {})
        if replaced.keys().isdisjoint(map(id, list(names.values()))):
            continue
        for name in [name for name, held in list(names.items()) if id(held) in replaced]:
            setattr(module, name, replaced[id(names[name])])


def push_below(mode: TorchFunctionMode) -> None:
    """Puts a function mode under those that are active: those who entered these leave them by popping the topmost. Torch's own device
    mode must stay at the bottom."""
    above = []
    while _len_torch_function_stack():
        other = _pop_mode()
        if isinstance(other, DeviceContext):
            _push_mode(other)
            break
        above.append(other)
    for one in (mode, *reversed(above)):
        _push_mode(one)


# Calls of custom autograd Functions, which torch does not show to modes: of the user's code, and replayed from a tape.
Look = Callable[[Any, Callable[..., Any], Any, Any], Any]  # (function, what applies it, arguments, keyword arguments) to its result

_looks: list[Look] = []


def function_apply() -> Callable[..., Any]:
    """`torch.autograd.Function.apply`, which takes the class first; up to torch 2.14 it is a classmethod of Python, later one of C."""
    held = vars(torch.autograd.Function)["apply"]
    return lambda kind, *args, **kwargs: held.__get__(None, kind)(*args, **kwargs)


def applied(whole: Callable[..., Any], kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A call as it is replayed: whoever looks at calls sees it."""
    return _looks[-1](kind, whole, args, kwargs) if _looks else whole(kind, *args, **kwargs)


@contextmanager
def seen_by(look: Look) -> Iterator[None]:
    """While active, `look` makes the calls."""
    before, whole = vars(torch.autograd.Function)["apply"], function_apply()

    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
        return look(kind, whole, args, kwargs)

    setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010
    _looks.append(look)
    try:
        yield
    finally:
        _looks.remove(look)
        setattr(torch.autograd.Function, "apply", before)  # noqa: B010
