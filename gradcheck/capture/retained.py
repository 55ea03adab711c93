"""Graphs of losses that are kept from step to step, and the variable that keeps them.

A graph lives as long as its nodes do, which torch holds. Each loss's first nodes get a small object into their `metadata`; it dies with the
last of them.
"""

import ast
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType, FunctionType, ModuleType
from typing import Any, Protocol

import torch

from gradcheck.instrument.loop_hooks import LoopListener
from gradcheck.instrument.running_code import here, outside
from gradcheck.types.location import Location
from gradcheck.types.loop import NOT_RETAINED, LoopRetained
from gradcheck.workload.assignments import expression_at, parsed
from gradcheck.workload.source_sites import origin_of

MARKED = 4  # nodes of a loss that are marked: scales of it are made again, the loss itself may be kept
KEPT = 8  # steps whose graphs must be alive at once before what keeps them is looked for
DENSE = 0.5  # share of the steps since the first of these
FOLLOWED = 256  # losses
GLANCE = 64  # of them, after which it is over where none is kept: what keeps graphs does so from the first step of a run or epoch on
NODE = 450  # bytes of a node of the graph after its backward pass. Measured: growth of the process over 1500 kept graphs of a net of linear
# layers (467 a node) and of a transformer (442)
FRAMES = 30  # up the stack
WALKED = 2000  # nodes from a variable's tensor that are looked at
ITEMS = 64  # of a container, from its end
DEPTH = 4  # containers and objects in one another: a logger's dict of meters with a sum each
_KEY = "gradcheck"
_ADDING = frozenset(("append", "extend", "add", "update", "appendleft"))


class _Mark:
    """In the metadata of the nodes of one loss."""


@dataclass(eq=False)
class _Loss:
    mark: weakref.ref[_Mark]
    step: int
    place: Location | None


class RetainedSteps(Protocol):
    """Of a loop that is listened to."""

    @property
    def steps(self) -> int: ...

    @property
    def busy(self) -> int: ...


class Retained(LoopListener):
    """Hears of the losses before the recording is busy with them."""

    def __init__(self, recording: RetainedSteps) -> None:
        self.recording = recording
        self.found: dict[Location | None, LoopRetained] = {}  # by the place of the backward pass
        self._losses: list[_Loss] = []  # whose graphs live
        self._followed = 0

    def before_backward(self, losses: Sequence[torch.Tensor], given: bool) -> None:
        if self.over or self.recording.busy:
            return
        for loss in losses:
            if loss.grad_fn is not None:
                self._look(loss, here())

    @property
    def over(self) -> bool:
        """Whether it looks at no further loss."""
        return self._followed >= (FOLLOWED if len(self._losses) >= KEPT // 2 else GLANCE)

    def most(self, places: Collection[Location | None] | None = None) -> LoopRetained:
        """The longest chain of graphs, of losses whose backward pass stands at one of these places."""
        found = [x for place, x in self.found.items() if places is None or place in places]
        return max(found, key=lambda x: x.steps, default=NOT_RETAINED)

    def _look(self, loss: torch.Tensor, place: Location | None) -> None:
        mark = _Mark()
        for node in _first_nodes(loss.grad_fn):
            node.metadata[_KEY] = mark
        step = self.recording.steps
        self._followed += 1
        self._losses = [x for x in self._losses if x.mark() is not None] + [_Loss(weakref.ref(mark), step, place)]
        if len(self._losses) < KEPT:
            return
        alive = sorted({x.step for x in self._losses if x.place == place})
        known = self.found.get(place)
        if len(alive) < KEPT or len(alive) < DENSE * (step - alive[0] + 1):
            return
        if known is None:
            name, site = _keeper(outside())
            known = LoopRetained(0, 0, sum(1 for _ in _nodes(loss.grad_fn, 100_000)) * NODE, name, site)
        self.found[place] = LoopRetained(max(known.steps, len(alive)), step - alive[0] + 1, known.bytes, known.name, known.site)


def _first_nodes(node: Any) -> Iterator[Any]:
    """A loss's own node, and those that it is a scale or a mean of."""
    for _ in range(MARKED):
        yield node
        behind = [n for n, _ in node.next_functions if n is not None]
        if len(behind) != 1 or not behind[0].next_functions:
            return
        node = behind[0]


def _nodes(start: Any, most: int) -> Iterator[Any]:
    seen, pending = {start}, [start]
    while pending and len(seen) <= most:
        node = pending.pop()
        yield node
        for behind, _ in node.next_functions:
            if behind is not None and behind not in seen:
                seen.add(behind)
                pending.append(behind)


def _marks(value: Any, depth: int = 0) -> set[int]:
    """Losses whose graphs a value keeps: a tensor, all items of a list, or what keeps most in a dict or an object, such as a meter."""
    if isinstance(value, torch.Tensor):
        found = _nodes(value.grad_fn, WALKED) if value.grad_fn is not None else ()
        return {id(node.metadata[_KEY]) for node in found if _KEY in node.metadata}
    if not depth or isinstance(value, (str, bytes, type, ModuleType, FunctionType)):
        return set()
    if isinstance(value, Sequence):
        return set[int]().union(*(_marks(item, depth - 1) for item in list(value)[-ITEMS:]))
    inside = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return max((_marks(x, depth - 1) for x in list(inside.values())[:ITEMS]), key=len, default=set())


def _keeper(frame: FrameType | None) -> tuple[str, Location | None]:
    """The variable, or attribute, of the running code that keeps the graphs, and the expression of the loss that is added to it."""
    for _ in range(FRAMES):
        if frame is None:
            break
        if origin_of(frame.f_code.co_filename) == "user":
            for depth in range(DEPTH):
                for name, value in _variables(frame):
                    if len(_marks(value, depth)) >= KEPT // 2:
                        return name, _added(frame, name)
        frame = frame.f_back
    return "", None


def _variables(frame: FrameType) -> Iterator[tuple[str, Any]]:
    for name, value in list(frame.f_locals.items()):
        if name == "self":
            yield from ((f"self.{key}", x) for key, x in vars(value).items()) if hasattr(value, "__dict__") else ()
        else:
            yield name, value


def _added(frame: FrameType, name: str) -> Location | None:
    """What a file adds to a variable: `total += loss`, `total = total + loss`, `losses.append(loss)`, `meter.update(loss, n)`."""
    file, variables = frame.f_code.co_filename, frame.f_locals
    tree = parsed(file)
    for node in ast.walk(tree) if tree is not None else ():
        given, plain = _given(node, name)
        graphs = [x for x in given if isinstance(x, ast.Name) and getattr(variables.get(x.id), "grad_fn", None) is not None]
        if len(graphs) == 1 or (plain and len(given) == 1):
            return expression_at(file, (graphs or given)[0])
    return None


def _given(node: ast.AST, name: str) -> tuple[list[ast.expr], bool]:
    """What a variable is given, and whether it is kept for certain."""
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and _root(node.target) == name:
        return list(_items(node.value)), True
    if isinstance(node, ast.Assign) and [_root(t) for t in node.targets] == [name] and isinstance(node.value, ast.BinOp):
        return [x for x in (node.value.left, node.value.right) if _root(x) != name], True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        root = _root(node.func.value)
        if root == name or root.startswith(f"{name}."):
            values = (*node.args, *(k.value for k in node.keywords))
            return [x for value in values for x in _items(value)], node.func.attr in _ADDING
    return [], False


def _items(node: ast.expr) -> Iterator[ast.expr]:
    """The parts of a literal `[epoch, loss]`, `{"loss": loss}`."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
        for part in node.values if isinstance(node, ast.Dict) else node.elts:
            yield from _items(part)
    else:
        yield node


def _root(node: ast.expr) -> str:
    """The variable, or attribute, that an expression is or is an item of."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
