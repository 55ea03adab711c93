"""A recorded loss, computed again with other weights: the calls of a tape as a program over the tensors of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.capture.inputs import data_in
from gradcheck.capture.slices import Slice
from gradcheck.capture.structures import Packed, is_plain, shape_of, tensors_in
from gradcheck.capture.tape import Constant, Node, Ref, Weight, nodes_behind

_RESHAPES = frozenset(("view", "reshape", "expand"))


@dataclass(frozen=True)
class _Value:
    """Result of an earlier instruction."""

    step: int
    index: int


@dataclass(frozen=True)
class _Entry:
    """A tensor of the batch."""

    index: int


@dataclass(frozen=True)
class _Fixed:
    """A tensor that belongs to the loss, and to no sample."""

    index: int


@dataclass(frozen=True)
class _Parameter:
    root: int
    name: str


@dataclass(frozen=True, eq=False)
class Instruction:
    node: Node
    root: int  # of a module's call
    args: Any
    kwargs: Any


class Program:
    """The losses of the backward passes of one step, summed."""

    def __init__(self, needed: Slice, roots: Sequence[nn.Module]) -> None:
        """`roots`: the user's modules, in the order of the modules that `run` is given."""
        self._roots = {id(root): i for i, root in enumerate(roots)}
        self.entries: list[torch.Tensor] = []
        self.fixed: list[torch.Tensor] = []
        self._leaves: set[int] = set()
        self._known: dict[tuple[int, int], _Entry | _Fixed] = {}  # id(constant), or id(call) and position -> where it went
        self._steps: dict[int, int] = {}  # id(node) -> instruction
        self._data = data_in(needed.nodes)
        self.data: set[str] = set()  # names of the entries that the script hands to its modules
        self.made: set[str] = set()  # names of those that a recorded call made
        self.size = self._batch_size(needed.nodes)
        self.instructions = [self._instruction(node) for node in needed.nodes]
        self.results = [_Value(self._steps[id(r.node)], r.index) for r in needed.results]

    def _batch_size(self, nodes: Sequence[Node]) -> int:
        """Of the first tensor that is given. Modules come first: what they are called with is the data."""
        made = {id(n) for n in nodes}
        for node in sorted(nodes, key=lambda n: n.call is not None):
            for x in node.inputs():
                given = x.value if isinstance(x, Constant) else x.node.values.get(x.index) if isinstance(x, Ref) else None
                if given is not None and given.dim() and not (isinstance(x, Ref) and id(x.node) in made):
                    single = node.call is None and given.dim() == 1 and given.is_floating_point()  # one sample without a batch axis
                    return 1 if single else shape_of(given)[0]
        return 1

    def _instruction(self, node: Node) -> Instruction:
        root = self._roots[id(node.owner.original)] if node.owner is not None else -1
        args, kwargs = self._resolved(node.args), self._resolved(node.kwargs)
        self._steps[id(node)] = len(self._steps)
        return Instruction(node, root, args, kwargs)

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, Ref):
            if id(value.node) in self._steps:
                return _Value(self._steps[id(value.node)], value.index)
            place = self._constant((id(value.node), value.index), value.node.values[value.index], False)
            if isinstance(place, _Entry):
                self.made.add(str(place.index))
            return place
        if isinstance(value, Constant):
            place = self._constant((id(value), 0), value.value, value.leaf)
            if id(value) in self._data and isinstance(place, _Entry):
                self.data.add(str(place.index))
            return place
        if isinstance(value, Weight):
            return _Parameter(self._roots[id(value.owner.original)], value.name)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)._make(self._resolved(v) for v in value)  # type: ignore[attr-defined]
        if isinstance(value, (tuple, list)):
            return type(value)(self._resolved(v) for v in value)
        if isinstance(value, Mapping):
            return {k: self._resolved(v) for k, v in value.items()}
        if isinstance(value, Packed):
            return value.with_parts(self._resolved(value.parts))
        return value

    def _constant(self, key: tuple[int, int], tensor: torch.Tensor, leaf: bool) -> _Entry | _Fixed:
        if key not in self._known:
            rows = tensor.shape[0] if tensor.dim() and is_plain(tensor) else None
            of_samples = rows is not None and ((rows == self.size and self.size > 1) or (tensor.dim() > 1 and self.size == 1))
            home = self.entries if of_samples else self.fixed
            place = _Entry(len(home)) if of_samples else _Fixed(len(home))
            home.append(tensor.requires_grad_() if leaf and not of_samples else tensor)
            if leaf and of_samples:
                self._leaves.add(place.index)
            self._known[key] = place
        return self._known[key]

    # ------------------------------------------------------------------ running

    def run(self, modules: Sequence[nn.Module], entries: Sequence[torch.Tensor], *, random: bool = False) -> torch.Tensor:
        """The sum of the losses, a scalar, with `modules` in the place of the roots. `random`: with the random numbers of the recording."""
        losses = self.losses(modules, entries, random=random)
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    def losses(self, modules: Sequence[nn.Module], entries: Sequence[torch.Tensor], *, random: bool = False) -> list[torch.Tensor]:
        """The loss of each backward pass."""
        values: list[list[torch.Tensor]] = []
        inputs = [t.detach().clone().requires_grad_() if i in self._leaves else t for i, t in enumerate(entries)]
        count = entries[0].shape[0] if entries and entries[0].dim() else self.size
        scene = _Scene(modules, values, inputs, self.fixed)
        for instruction in self.instructions:
            values.append(self._step(instruction, scene, count, random))
        return [values[r.step][r.index] for r in self.results]

    def _step(self, instruction: Instruction, scene: _Scene, count: int, random: bool) -> list[torch.Tensor]:
        node = instruction.node
        args, kwargs = scene.filled(instruction.args), scene.filled(instruction.kwargs)
        function: Any = node.call if node.call is not None else scene.modules[instruction.root].get_submodule(node.path)
        if count != self.size and getattr(function, "__name__", "") in _RESHAPES:
            args = _resized(args, self.size, count)
        if node.in_place and isinstance(instruction.args[0], (_Entry, _Fixed)):
            args = (args[0].clone(), *args[1:])
        if random and node.random is not None:
            torch.set_rng_state(node.random)
        with ExitStack() as stack:
            if node.grad != torch.is_grad_enabled():
                stack.enter_context(torch.set_grad_enabled(node.grad))
            for kind, dtype in node.autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            output = _call(function, args, kwargs, node)
        if getattr(function, "__name__", "") == "__setitem__":
            return [args[0]]
        return list(tensors_in(output))


def _call(function: Any, args: Any, kwargs: Any, node: Node) -> Any:
    recorded_place = node.place  # noqa: F841  where the user calls it: gradcheck.target.sites reads it from this frame
    return function(*args, **kwargs)


@dataclass
class _Scene:
    modules: Sequence[nn.Module]
    values: list[list[torch.Tensor]]
    entries: Sequence[torch.Tensor]
    fixed: Sequence[torch.Tensor]

    def filled(self, value: Any) -> Any:
        if isinstance(value, _Value):
            return self.values[value.step][value.index]
        if isinstance(value, _Entry):
            return self.entries[value.index]
        if isinstance(value, _Fixed):
            return self.fixed[value.index]
        if isinstance(value, _Parameter):
            return self.modules[value.root].get_parameter(value.name)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)._make(self.filled(v) for v in value)  # type: ignore[attr-defined]
        if isinstance(value, (tuple, list)):
            return type(value)(self.filled(v) for v in value)
        if isinstance(value, dict):
            return {k: self.filled(v) for k, v in value.items()}
        if isinstance(value, Packed):
            return value.with_parts(self.filled(value.parts)).unpacked()
        return value


def _resized(args: Any, size: int, count: int) -> Any:
    """Arguments of a reshape for another number of samples: its first number is a multiple of them."""
    flat = list(args[1]) if len(args) == 2 and isinstance(args[1], (tuple, list)) else list(args[1:])
    if flat and isinstance(flat[0], int) and flat[0] > 0 and flat[0] % size == 0:
        flat[0] = flat[0] // size * count
    return (args[0], *flat)


class Models(nn.Module):
    """Several models that are trained together, under their names in the script."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, model in models.items():
            self.add_module(name, model)
        self.training = any(m.training for m in models.values())


@dataclass
class Helpers:
    """Which roots are the model's parts."""

    parts: tuple[str, ...]  # names of the children of `Models`; empty: the model is the only root


def replay(helpers: Helpers, model: nn.Module, batch: Any) -> torch.Tensor:
    """A training step over a recorded batch: its tensors, and its program as the last element."""
    *entries, program = batch
    modules = [getattr(model, name) for name in helpers.parts] if helpers.parts else [model]
    return program.run(modules, entries)


def calls_behind(end: Node, since: int = -1) -> list[Node]:
    """The calls of modules among them; all, when there is none. Those that carry gradient, where some do, and after the call `since`."""
    every = [n for n in nodes_behind([end]) if n.serial > since]
    calls = [n for n in every if n.call is None] or every
    return [n for n in calls if n.grad] or calls
