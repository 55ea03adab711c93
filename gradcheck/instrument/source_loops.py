"""The `for` and `while` statements of the user's code around a call, and how often each runs, as far as the running frames tell."""

import ast
import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from gradcheck.workload.assignments import parsed
from gradcheck.workload.source_sites import origin_of

_WRAPPERS = frozenset(("enumerate", "tqdm", "track", "list", "tuple", "sorted", "reversed", "iter", "prefetch"))
_COUNTED = frozenset(("range", "trange", "islice", "zip"))  # their lengths are not those of the data
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Loop = ast.For | ast.AsyncFor | ast.While


@dataclass(frozen=True)
class Loop:
    """A loop that runs. Two are the same when they stand at the same place."""

    file: str
    function: int  # first line of the function that it stands in; 0: none
    line: int
    turns: int | None = field(default=None, compare=False)  # None: not known


@dataclass(frozen=True)
class _Place:
    """A loop in the text of a file, and the lines of its body."""

    node: _Loop
    function: int
    first: int
    last: int


def loops_around(frame: FrameType | None) -> tuple[Loop, ...]:
    """In all functions of the user's that are running at or above `frame`, the outermost loop first."""
    found: list[Loop] = []
    while frame is not None:
        code = frame.f_code
        if origin_of(code.co_filename) == "user":
            function = function_of(frame)
            inner = [p for p in _loops_of(code.co_filename) if p.function == function and p.first <= frame.f_lineno <= p.last]
            found = [Loop(code.co_filename, function, p.node.lineno, _turns(p.node, frame)) for p in inner] + found
        frame = frame.f_back
    return tuple(found)


def _of_user(frame: FrameType | None) -> FrameType | None:
    while frame is not None and origin_of(frame.f_code.co_filename) != "user":
        frame = frame.f_back
    return frame


def loop_begun(frame: FrameType | None) -> Loop | None:
    """The `for` of the user's that asks for its data at or above `frame`, where a call in its head makes them."""
    frame = _of_user(frame)
    if frame is None:
        return None
    function = function_of(frame)
    for place in _loops_of(frame.f_code.co_filename):
        head = getattr(place.node, "iter", None)
        if head is not None and place.function == function and head.lineno <= frame.f_lineno <= head.end_lineno < place.first:
            while isinstance(head, ast.Call) and _called(head) in _WRAPPERS and head.args:
                head = head.args[0]
            if isinstance(head, ast.Call) and _called(head) not in _COUNTED:
                return Loop(frame.f_code.co_filename, function, place.node.lineno)
    return None


def made_once(frame: FrameType | None) -> bool:
    """Whether the statement that runs makes what it assigns in one turn of a loop only, as below `if schedule is None:`."""
    frame = _of_user(frame)
    if frame is None or (tree := parsed(frame.f_code.co_filename)) is None:
        return False
    line = frame.f_lineno
    around = [
        n for n, home in _nodes(tree) if home == function_of(frame) and isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or 0)
    ]
    made = {name for n in around if isinstance(n, ast.Assign) for t in n.targets for name in _words(t)} - {"self"}
    turns = {name for n in around if isinstance(n, ast.For) for name in _words(n.target)}
    tests = [n.test for n in around if isinstance(n, ast.If)]
    return any(made & _words(t) or (isinstance(t, ast.Compare) and isinstance(t.ops[0], ast.Eq) and turns & _words(t.left)) for t in tests)


def _words(node: ast.AST) -> set[str]:
    """Names, attributes and texts."""
    given = (getattr(n, "id", None) or getattr(n, "attr", None) or getattr(n, "value", None) for n in ast.walk(node))
    return {w for w in given if isinstance(w, str)}


def loops_at_call(name: str, method: str, around: Sequence[Loop]) -> tuple[Loop, ...] | None:
    """The loops around the one place in the files of `around` that calls `name.method()`, if it stands in functions that run them.

    `around`: the loops around another call. None when there is no such place, or more than one.
    """
    for file, function in dict.fromkeys((x.file, x.function) for x in reversed(around)):
        lines = [line for line, home in _calls_of(file, name, method) if home == function]
        if len(lines) == 1:
            bodies = {p.node.lineno: (p.first, p.last) for p in _loops_of(file) if p.function == function}
            own = [x for x in around if (x.file, x.function) == (file, function)]
            above = around[: around.index(own[0])]
            return (*above, *(x for x in own if bodies[x.line][0] <= lines[0] <= bodies[x.line][1]))
        if lines:
            return None
    return None


def product(loops: Sequence[Loop]) -> int | None:
    """How often code inside all of them runs; None when that is not known, or when there is no loop."""
    turns = [x.turns for x in loops]
    return math.prod(t for t in turns if t is not None) if turns and None not in turns else None


# ------------------------------------------------------------------------------------------- the text of a file


def _nodes(tree: ast.Module | None) -> Iterator[tuple[ast.AST, int]]:
    """Every node of a file with the first line of its function."""
    pending: list[tuple[ast.AST, int]] = [(tree, 0)] if tree is not None else []
    while pending:
        node, function = pending.pop()
        yield node, function
        inside = function
        if isinstance(node, _Function):
            decorators = getattr(node, "decorator_list", [])
            inside = min([node.lineno, *(d.lineno for d in decorators)])
        pending += [(child, inside) for child in ast.iter_child_nodes(node)]


def function_of(frame: FrameType) -> int:
    """The first line of the function that runs in a frame; 0 for a module."""
    return 0 if frame.f_code.co_name == "<module>" else frame.f_code.co_firstlineno


def _called(call: ast.Call) -> str:
    """The last name of what is called."""
    return call.func.id if isinstance(call.func, ast.Name) else call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _loops_of(file: str) -> list[_Place]:
    """From the outermost inwards."""
    return _places(parsed(file))


@functools.lru_cache(maxsize=64)
def _places(tree: ast.Module | None) -> list[_Place]:
    found = [
        _Place(node, function, node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno)
        for node, function in _nodes(tree)
        if isinstance(node, _Loop)
    ]
    return sorted(found, key=lambda p: (p.node.lineno, -p.last))


def _calls_of(file: str, name: str, method: str) -> list[tuple[int, int]]:
    """Lines of calls `name.method()` and `self.name.method()`, and the first lines of their functions."""
    found = []
    for node, function in _nodes(parsed(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
            home = node.func.value
            called = home.id if isinstance(home, ast.Name) else home.attr if isinstance(home, ast.Attribute) else ""
            if called == name:
                found.append((node.lineno, function))
    return found


# ----------------------------------------------------------------------------------------------- how often it turns


class _Unknown(Exception):
    """An expression that is not evaluated, since that might have side effects."""


def _turns(node: _Loop, frame: FrameType) -> int | None:
    if isinstance(node, ast.While):
        return None
    with contextlib.suppress(Exception):  # the user's objects are asked here
        return _length(node.iter, frame)
    return None


def _length(node: ast.expr, frame: FrameType) -> int:
    if isinstance(node, ast.Call):
        name = _called(node)
        if name in ("range", "trange"):
            return len(range(*(evaluated(a, frame) for a in node.args)))
        if name == "islice":
            return min(_length(node.args[0], frame), *(evaluated(a, frame) for a in node.args[1:2]))
        if name == "zip":
            return min(_length(a, frame) for a in node.args)
        if name in _WRAPPERS and node.args:
            return _length(node.args[0], frame)
        raise _Unknown
    return len(evaluated(node, frame))


def evaluated(node: ast.expr, frame: FrameType) -> Any:
    """What an expression without calls is in a frame. Raises _Unknown for others, and what the user's objects raise."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return frame.f_locals[node.id] if node.id in frame.f_locals else frame.f_globals[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(evaluated(node.value, frame), node.attr)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](evaluated(node.left, frame), evaluated(node.right, frame))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("len", "int") and len(node.args) == 1:
        return _length(node.args[0], frame) if node.func.id == "len" else int(evaluated(node.args[0], frame))
    raise _Unknown
