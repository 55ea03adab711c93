"""Replacing attributes of classes and modules for a while."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


class Patches:
    """Attributes that were replaced; `undo` puts the originals back, the last one first."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, bool]] = []

    def wrap(self, home: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replaces `home.name` by `make(original)`, which looks like the original."""
        original = getattr(home, name)
        self.put(home, name, functools.wraps(original)(make(original)))

    def put(self, home: Any, name: str, value: Any) -> None:
        """A class keeps an inherited attribute inherited after `undo`."""
        own = name in vars(home)
        self._done.append((home, name, vars(home).get(name), own))
        setattr(home, name, value)

    def put_for(self, original: Any, value: Any) -> None:
        """Replaces `original` in every module that imported it by name, such as the user's."""
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            for name in [name for name, held in list(names.items()) if held is original]:
                self.put(module, name, value)

    def undo(self) -> None:
        while self._done:
            home, name, original, own = self._done.pop()
            if own:
                setattr(home, name, original)
            else:
                delattr(home, name)
