"""Where in its class a module gets an attribute: no constructor that could be watched makes parameters."""

import ast
import functools
import linecache
from types import FunctionType

from torch import nn

from gradcheck.types.location import Location
from gradcheck.workload.source_sites import display_path, origin_of


def assignment_of(module: nn.Module, name: str) -> Location | None:
    """The expression that a method of the module's class first sets `self.name` to, in code of the user's; None when there is none."""
    for kind in type(module).__mro__:
        for method in vars(kind).values():
            if isinstance(method, FunctionType) and origin_of(method.__code__.co_filename) == "user":
                node = _set_in(method, name)
                if node is not None:
                    return expression_at(method.__code__.co_filename, node, method.__qualname__)
    return None


def first_assignment(file: str, name: str) -> Location | None:
    """The expression that a file of the user's first sets a variable, or an attribute of an object, by that name to."""
    tree = parsed(file) if origin_of(file) == "user" else None
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and _sets(node, name)] if tree is not None else []
    first = min(found, key=lambda n: n.lineno, default=None)
    return expression_at(file, first, "") if first is not None else None


def _sets(node: ast.Assign, name: str) -> bool:
    targets = [t for target in node.targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return any((isinstance(t, ast.Name) and t.id == name) or (isinstance(t, ast.Attribute) and t.attr == name) for t in targets)


def expression_at(file: str, node: ast.expr, function: str = "") -> Location:
    """The place of an expression of a parsed file."""
    end = node.end_lineno or node.lineno
    return Location(display_path(file), node.lineno, node.col_offset + 1, end, (node.end_col_offset or 0) + 1, function)


def parsed(file: str) -> ast.Module | None:
    """The parsed source of a file; None if it is not Python."""
    return _parsed("".join(linecache.getlines(file)))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _set_in(method: FunctionType, name: str) -> ast.expr | None:
    """What a method assigns to an attribute of that name, or registers under it."""
    tree = parsed(method.__code__.co_filename)
    if tree is None:
        return None
    first = method.__code__.co_firstlineno
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == method.__name__)
    function = next((f for f in functions if min([f.lineno, *(d.lineno for d in f.decorator_list)]) == first), None)
    found = [value for node in ast.walk(function) if (value := _value_for(node, name)) is not None] if function is not None else []
    return min(found, key=lambda n: n.lineno, default=None)


def _value_for(node: ast.AST, name: str) -> ast.expr | None:
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return node.value if any(isinstance(t, ast.Attribute) and t.attr == name for t in targets) else None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "register_parameter":
        return None
    return node if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == name else None
