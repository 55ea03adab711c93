"""The training that a script comes to when the one that runs is over, read from its text."""

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType

from gradcheck.capture.detect import Definition, Function, trains_further
from gradcheck.instrument.source_loops import evaluated, function_of
from gradcheck.types.location import Location
from gradcheck.workload.assignments import parsed
from gradcheck.workload.source_sites import display_path, origin_of


def further_training(running: Iterable[tuple[FrameType, int]]) -> Location | None:
    """Where the training begins that comes next, as far as the text tells. `running`: frames and their lines, the outermost first.

    What stands in a loop that runs, or is called by it, belongs to the training that is known, or may have run.
    """
    found, begun = None, False
    for frame, line in running:
        file = frame.f_code.co_filename
        own = origin_of(file) == "user"
        begun = begun or own
        tree = parsed(file) if begun else None
        if tree is None:
            continue
        body, home = _function_body(tree, function_of(frame))
        before, ahead, in_loop = _around(body, line)
        later = (s for statement in ahead for s in _that_run(statement, frame)) if own else ()
        for statement in later:
            if trains_further(statement, [*tree.body, *before], tree, Path(file).parent, home):
                found = Location.at(display_path(file), statement.lineno)
                break
        if in_loop:
            break
    return found


def _function_body(tree: ast.Module, line: int) -> tuple[Sequence[ast.stmt], ast.ClassDef | None]:
    """Of the function that begins in a line, or of the module (0), with the class whose method it is."""
    if not line:
        return tree.body, None
    for node, home in ((n, parent) for parent in ast.walk(tree) for n in ast.iter_child_nodes(parent)):
        if isinstance(node, Function) and line == min([node.lineno, *(d.lineno for d in node.decorator_list)]):
            return node.body, home if isinstance(home, ast.ClassDef) else None
    return (), None


def _around(body: Sequence[ast.stmt], line: int) -> tuple[list[ast.stmt], list[ast.stmt], bool]:
    """The statements before and after the one that runs, those beside it first; and whether it is a loop."""
    for i, statement in enumerate(body):
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            if isinstance(statement, (ast.For, ast.AsyncFor, ast.While)):
                return list(body[:i]), list(body[i + 1 :]), True
            inner = [_around(getattr(statement, block, ()), line) for block in ("body", "orelse", "finalbody")]
            before = [s for first, _, _ in inner for s in first]
            ahead = [s for _, then, _ in inner for s in then]
            return [*body[:i], *before], [*ahead, *body[i + 1 :]], any(in_loop for _, _, in_loop in inner)
    return [], [], False


def _that_run(statement: ast.stmt, frame: FrameType) -> Sequence[ast.stmt]:
    """Of an `if` whose test is a variable that is known, the branch that it leads to. Definitions run nothing."""
    if isinstance(statement, Definition):
        return ()
    if not isinstance(statement, ast.If):
        return (statement,)
    try:
        branch = statement.body if evaluated(statement.test, frame) else statement.orelse
    except Exception:  # the user's objects are asked, and names may have no value yet
        return (statement,)
    return [s for inner in branch for s in _that_run(inner, frame)]
