"""Tensors in what modules are given and return: containers, and objects of any class (graphs, encodings, batches of a library's own)."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gradcheck.workload import tensors

_DEPTH = 4  # of containers
_MOST = 1000  # objects that are looked into for the tensors of one value
_NO_DATA = (nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


@dataclass(frozen=True, eq=False)
class Packed:
    """An object that holds tensors: a copy of it in which empty tensors stand for them, and what they stand for."""

    template: Any
    places: tuple[torch.Tensor, ...]
    parts: tuple[Any, ...]

    def with_parts(self, parts: tuple[Any, ...]) -> Packed:
        return Packed(self.template, self.places, parts)

    def unpacked(self) -> Any:
        """A new object with the parts, which are tensors now, in their places."""
        return copy.deepcopy(self.template, {id(place): part for place, part in zip(self.places, self.parts, strict=True)})


def pack(value: Any, encode: Callable[[torch.Tensor], Any]) -> Any:
    """The object with its tensors encoded, an array as it is now; itself when it holds no tensor, or cannot be copied."""
    if isinstance(value, np.ndarray):
        return value.copy()  # the script may go on to shuffle it
    held = list(_inside(value))
    if not held:
        return value
    places = tuple(torch.empty(0, device="cpu") for _ in held)
    try:
        template = copy.deepcopy(value, {id(t): place for t, place in zip(held, places, strict=True)})
    except Exception:  # objects that refer to files, locks, generators
        return value
    return Packed(template, places, tuple(encode(t) for t in held))


def tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    """The tensors of a value of any structure, in order; of an object, those that its attributes lead to."""
    return tensors.tensors_in(value, depth, _inside)


def _may_hold(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, _NO_DATA)


def _inside(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that an object's attributes lead to, each once."""
    seen: set[int] = set()
    pending = [value] if _may_hold(value) else []
    while pending and len(seen) < _MOST:
        item = pending.pop()
        if id(item) in seen:
            continue
        if isinstance(item, torch.Tensor):
            seen.add(id(item))
            yield item
        elif isinstance(item, Mapping):
            seen.add(id(item))
            pending += reversed(list(item.values()))
        elif isinstance(item, (list, tuple)):
            seen.add(id(item))
            pending += reversed(item)
        elif _may_hold(item):
            seen.add(id(item))
            pending += reversed(list(vars(item).values()))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether its rows can be taken one by one."""
    return tensor.layout is torch.strided and not tensor.is_nested
