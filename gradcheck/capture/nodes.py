"""What a tape holds: calls, and what went into them (results of other calls, constants, weights and their owners)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.capture.structures import Packed
from gradcheck.types.location import Location
from gradcheck.workload.rng import HostStates, TorchStates
from gradcheck.workload.tensors import with_items


@dataclass(frozen=True, eq=False)
class Ref:
    """The tensor at a position among those that a call returned."""

    node: Node
    index: int


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that depends on nothing live, as it was when it was used."""

    value: torch.Tensor
    leaf: bool  # gradients with respect to it are asked for
    rows: int | None = None  # entries of the tensor that it was cut out of, where that is known
    chosen: bool = False  # its rows were picked or stacked one by one: they are samples
    origin: Node | None = None  # the call that made its first axis out of the axes of another constant


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter of a root module, or a free one."""

    owner: Owner
    name: str
    key: int  # id of the user's own parameter, of the first one where others took its place


class Loose(nn.Module):
    """Stands for the module of weights that no module holds: `tensors`, by key, and their `versions` when they were copied."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, torch.Tensor] = {}
        self.versions: dict[int, int] = {}


def submodule(root: nn.Module, path: str) -> Any:
    """As `root.get_submodule(path)`, which scripted modules refuse."""
    return functools.reduce(getattr, path.split("."), root) if path else root


CHANGED = (None, None, None)  # versions of a root that is not what it was when it was copied


@dataclass(eq=False)
class Owner:
    """A root module of the user, and what it was before training: a copy, or its state where it cannot be copied."""

    original: nn.Module
    copy: nn.Module | None
    memo: dict[int, Any]  # id(object of the original) -> its copy; of tensors also without a copy of the module
    versions: tuple[Any, ...]
    label: str  # its variable in the script
    why: str = ""  # there is no copy
    short: bool = False  # for want of memory
    unmade: nn.Module | None = None  # the copy as it was before its first call made its parameters, with random numbers of that call

    @property
    def is_free(self) -> bool:
        return isinstance(self.original, Loose)

    def held(self, path: str) -> Iterator[int]:
        """id of each of the user's parameters below a path."""
        return map(id, submodule(self.original, path).parameters())

    def before(self, weight: Weight) -> torch.Tensor:
        """A parameter as it was before training."""
        return self.memo[weight.key]


@dataclass(eq=False)
class Node:
    """One recorded call."""

    serial: int
    call: Callable[..., Any] | None  # a function; None: a module
    owner: Owner | None
    path: str  # of the module in its owner
    args: Any
    kwargs: Any
    place: Location | None
    grad: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    random: TorchStates | None = None  # states of the generators before a call that draws numbers, or a module's
    host: HostStates | None = None  # before a module's
    in_place: bool = False
    kept: tuple[str, ...] = ()  # attributes of a module, with their paths, that stand after what it returns: losses that it leaves there
    heard: tuple[str, ...] = ()  # paths of parts of a module whose outputs the user's hooks take out,
    taken: tuple[int, ...] = ()  # and which of those outputs stand after what is kept
    values: dict[int, torch.Tensor] = field(default_factory=dict)  # results that carry no gradient, by their position
    counts: dict[int, int] = field(default_factory=dict)  # of the entries of its results
    read: bool = False  # the loop took its values out of torch: what it computed from them fits no other values

    def inputs(self) -> Iterator[Any]:
        return references((self.args, self.kwargs))

    def constants(self) -> list[Constant]:
        return [x for x in self.inputs() if isinstance(x, Constant)]


def references(value: Any) -> Iterator[Any]:
    """The Refs, Constants and Weights in the arguments of a call."""
    if isinstance(value, (Ref, Constant, Weight)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from references(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, Packed):
        yield from references(value.parts)


def replaced(value: Any, old: Any, new: Any) -> Any:
    """The arguments of a call with one of them in place of another."""
    if value is old:
        return new
    if isinstance(value, Packed):
        return value.with_parts(replaced(value.parts, old, new))
    return value if (items := with_items(lambda v: replaced(v, old, new), value)) is None else items


def nodes_behind(ends: Iterable[Node], since: int = -1) -> list[Node]:
    """All calls that the ends depend on, after the call `since`, in their order."""
    found: dict[int, Node] = {}
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node.serial > since and id(node) not in found:  # what a call depends on was called before it
            found[id(node)] = node
            pending += [x.node for x in node.inputs() if isinstance(x, Ref)]
    return sorted(found.values(), key=lambda n: n.serial)


Tensor = torch.Tensor
_IN_PLACE = frozenset(f"__i{name}__" for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul".split()) | {
    "__setitem__"
}


def is_in_place(name: str) -> bool:
    """Whether a function of torch by this name changes its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def written(whole: Tensor, part: Tensor, size: tuple[int, ...], stride: tuple[int, ...], start: int) -> Tensor:
    """`whole` with `part` in its place; unchanged if the part is a view of it, since then it has been written already."""
    if part._base is whole:
        return whole
    result = whole.clone()
    result.as_strided(size, stride, start).copy_(part)
    return result
