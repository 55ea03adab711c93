"""A recorded loss, computed again with other weights: the calls of a tape as a program over the tensors of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.capture.layout import Layout, counter, resized
from gradcheck.capture.nodes import Constant, Node, Ref, Weight, nodes_behind, submodule
from gradcheck.capture.slices import Slice, data_in
from gradcheck.capture.structures import Packed, tensors_in
from gradcheck.workload.rng import put_back, put_back_host
from gradcheck.workload.tensors import with_items


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
class _Counter:
    """A tensor that counts samples: made again for the number that there is."""

    make: Callable[[int], torch.Tensor]


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

    def __init__(self, needed: Slice, roots: Sequence[nn.Module], axis: int = 0) -> None:
        """`roots`: the user's modules, in the order of the modules that `run` is given. `axis`: of the samples."""
        self._roots = {id(root): i for i, root in enumerate(roots)}
        self.entries: list[torch.Tensor] = []  # with the samples on their first axis
        self._axes: list[int] = []  # where the recorded ones have them
        self.fixed: list[torch.Tensor] = []
        self._leaves: set[int] = set()
        self._known: dict[tuple[int, int], _Entry | _Fixed | _Counter] = {}  # id(constant), or id(call) and position -> where it went
        self._steps: dict[int, int] = {}  # id(node) -> instruction
        self._shaping: set[int] = set()  # instructions that give constants their shape
        self._data = data_in(needed.nodes)
        self.data: set[str] = set()  # names of the entries that the script hands to its modules
        self.made: set[str] = set()  # names of those that a recorded call made
        self.layout = Layout.of(needed.nodes, axis)
        self.instructions: list[Instruction] = []
        for node in needed.nodes:
            self._add(node)
        self.results = [_Value(self._steps[id(r.node)], r.index) for r in needed.results]

    @property
    def size(self) -> int:
        """Samples in the recorded batch."""
        return self.layout.size

    def _add(self, node: Node) -> None:
        root = self._roots[id(node.owner.original)] if node.owner is not None else -1
        args, kwargs = self._resolved(node.args, node.call is None), self._resolved(node.kwargs, node.call is None)
        self._steps[id(node)] = len(self.instructions)
        self.instructions.append(Instruction(node, root, args, kwargs))

    def _resolved(self, value: Any, given: bool) -> Any:
        """`given`: to a module, as data."""
        if isinstance(value, Ref):
            if id(value.node) in self._steps:
                return _Value(self._steps[id(value.node)], value.index)
            place = self._constant((id(value.node), value.index), value.node.values[value.index], False, given)
            if isinstance(place, _Entry):
                self.made.add(str(place.index))
            return place
        if isinstance(value, Constant):
            return self._moved(value) if self._is_moved(value) else self._own(value, given)
        if isinstance(value, Weight):
            return _Parameter(self._roots[id(value.owner.original)], value.name)
        if isinstance(value, range) and value == range(self.size) and self.size > 1:
            return _Counter(torch.arange)
        if isinstance(value, Packed):
            return value.with_parts(self._resolved(value.parts, given))
        return value if (items := with_items(lambda v: self._resolved(v, given), value)) is None else items

    def _own(self, constant: Constant, given: bool) -> _Entry | _Fixed | _Counter:
        place = self._constant((id(constant), 0), constant.value, constant.leaf, given)
        if id(constant) in self._data and isinstance(place, _Entry):
            self.data.add(str(place.index))
        return place

    def _is_moved(self, constant: Constant) -> bool:
        """Whether its first axis is no longer the samples', which the constant that it was made from has."""
        if constant.origin is None or (self.layout.axis_of(constant.value) is not None and not self.layout.behind(constant)):
            return False
        source = constant.origin.args[0]
        return isinstance(source, Constant) and (self.layout.axis_of(source.value) is not None or self._is_moved(source))

    def _moved(self, constant: Constant) -> _Value:
        assert constant.origin is not None
        if id(constant.origin) not in self._steps:
            self._add(constant.origin)
            self._shaping.add(self._steps[id(constant.origin)])
        return _Value(self._steps[id(constant.origin)], 0)

    def _constant(self, key: tuple[int, int], tensor: torch.Tensor, leaf: bool, given: bool) -> _Entry | _Fixed | _Counter:
        if key not in self._known:
            axis = self.layout.axis_of(tensor)
            make = counter(tensor, self.size) if axis is not None and not given else None
            if make is not None:
                self._known[key] = _Counter(make)
            elif axis is not None:
                self._known[key] = _Entry(len(self.entries))
                self._leaves |= {len(self.entries)} if leaf else set()
                self._axes.append(axis)
                self.entries.append(tensor.movedim(axis, 0) if axis else tensor)
            else:
                self._known[key] = _Fixed(len(self.fixed))
                self.fixed.append(tensor.requires_grad_() if leaf else tensor)
        return self._known[key]

    # ------------------------------------------------------------------ running

    def run(self, modules: Sequence[nn.Module], entries: Sequence[torch.Tensor], *, random: bool = False) -> torch.Tensor:
        """The sum of the losses, a scalar, with `modules` in place of the roots. `random`: with the random numbers of the recording."""
        losses = self.losses(modules, entries, random=random)
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    def losses(self, modules: Sequence[nn.Module], entries: Sequence[torch.Tensor], *, random: bool = False) -> list[torch.Tensor]:
        """The loss of each backward pass."""
        values: list[list[torch.Tensor]] = []
        inputs = [t.movedim(0, a) if a else t for t, a in zip(entries, self._axes, strict=True)]
        inputs = [t.detach().clone().requires_grad_() if i in self._leaves else t for i, t in enumerate(inputs)]
        count = self._count(entries)
        context = _Scene(modules, values, inputs, self.fixed, count)
        for instruction in self.instructions:
            values.append(self._step(instruction, context, count, random))
        return [values[r.step][r.index] for r in self.results]

    def _count(self, entries: Sequence[torch.Tensor]) -> int:
        """How many samples these are. A single sample's tensors have no axis of samples, and may have any number of rows."""
        if not entries or not entries[0].dim() or entries[0].shape[0] == self.entries[0].shape[0]:
            return self.size
        return entries[0].shape[0]

    def _step(self, instruction: Instruction, context: _Scene, count: int, random: bool) -> list[torch.Tensor]:
        node = instruction.node
        args, kwargs = context.filled(instruction.args), context.filled(instruction.kwargs)
        function: Any = node.call if node.call is not None else submodule(context.modules[instruction.root], node.path)
        args = resized(getattr(function, "__name__", ""), args, self.size, count)
        if node.in_place and self._is_constant(instruction.args[0]):
            args = (args[0].clone(), *args[1:])
        if random and node.random is not None:
            put_back(node.random)
            if node.host is not None:
                put_back_host(node.host)
        with ExitStack() as stack:
            if node.grad != torch.is_grad_enabled():
                stack.enter_context(torch.set_grad_enabled(node.grad))
            for kind, dtype in node.autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            heard: list[torch.Tensor] = []
            for path in node.heard:
                hook = submodule(function, path).register_forward_hook(lambda _, args, out: heard.extend(tensors_in(out)), prepend=True)
                stack.callback(hook.remove)
            output = _call(function, args, kwargs, node)
        if getattr(function, "__name__", "") == "__setitem__":
            return [args[0]]
        return [*tensors_in(output), *(submodule(function, path) for path in node.kept), *(heard[i] for i in node.taken)]

    def _is_constant(self, value: Any) -> bool:
        return isinstance(value, (_Entry, _Fixed)) or (isinstance(value, _Value) and value.step in self._shaping)


def _call(function: Any, args: Any, kwargs: Any, node: Node) -> Any:
    recorded_place = node.place  # noqa: F841  where the user calls it: gradcheck.workload.source_sites reads it from this frame
    return function(*args, **kwargs)


@dataclass
class _Scene:
    modules: Sequence[nn.Module]
    values: list[list[torch.Tensor]]
    entries: Sequence[torch.Tensor]
    fixed: Sequence[torch.Tensor]
    count: int  # of samples

    def filled(self, value: Any) -> Any:
        if isinstance(value, _Value):
            return self.values[value.step][value.index]
        if isinstance(value, _Entry):
            return self.entries[value.index]
        if isinstance(value, _Counter):
            return value.make(self.count)
        if isinstance(value, _Fixed):
            return self.fixed[value.index]
        if isinstance(value, _Parameter):
            return self.modules[value.root].get_parameter(value.name)
        if isinstance(value, Packed):
            return value.with_parts(self.filled(value.parts)).unpacked()
        return value if (items := with_items(self.filled, value)) is None else items


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
    every = nodes_behind([end], since)
    calls = [n for n in every if n.call is None] or every
    return [n for n in calls if n.grad] or calls
