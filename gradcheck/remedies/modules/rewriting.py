"""Edited methods: what a module's own code does is changed on the copy as an edit of the source would change it.

The method is parsed, changed at the span of one expression, compiled with the positions of the user's file, and bound to
every module of the copy that runs it. Functions refer to the same globals as before; nothing of the user's is changed.
"""

import ast
import contextlib
import copy
import inspect
import linecache
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradcheck.types.location import Location
from gradcheck.workload.source_sites import display_path
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

# Maps an expression of a function to its replacement; None: it is not the one that is meant.
Edit = Callable[[ast.expr, types.FunctionType], ast.expr | None]
TreeEdit = Callable[[ast.FunctionDef], ast.FunctionDef | None]

IN_TORCH = "__import__('torch')."  # a name of torch in edited code, whatever its own imports are
_TREE = "_gradcheck_tree"  # on an edited function: its syntax tree, with the positions of the file


@dataclass(frozen=True)
class Method:
    """A method of modules of the copy that covers a place in the source."""

    name: str
    function: types.FunctionType  # as written, without decorators
    modules: tuple[nn.Module, ...]
    tree: ast.FunctionDef

    @property
    def lines(self) -> list[str]:
        return linecache.getlines(self.function.__code__.co_filename)


def rewrite(treated: TreatedWorkload, site: Location | None, edit: Edit) -> None:
    """Replaces the expression at a place in a module's code. Raises Inapplicable when it cannot be reached."""
    method = method_at(treated, site)
    assert site is not None

    def guarded(node: ast.expr, function: types.FunctionType) -> ast.expr | None:
        if _calls_a_module(node, method):
            raise Inapplicable(f"it lies in a module that is called at {site}")
        return edit(node, function)

    finder = _At(span_of(site, method.lines), lambda node: guarded(node, method.function))
    tree = finder.visit(copy.deepcopy(method.tree))
    if not finder.hits:
        raise Inapplicable(f"the expression at {site} is not of a form that can be changed")
    bind(method, tree)


def rewrite_method(treated: TreatedWorkload, site: Location | None, edit: TreeEdit) -> None:
    """Replaces the whole method around a place. Raises Inapplicable."""
    method = method_at(treated, site)
    tree = edit(copy.deepcopy(method.tree))
    if tree is None:
        raise Inapplicable(f"{method.function.__qualname__} has no form that can be changed")
    bind(method, tree)


def rewritten(function: types.FunctionType, site: Location, edit: Edit) -> Callable[..., Any]:
    """A twin of a plain function, a loss or a training step, with the expression at a place replaced. Raises Inapplicable."""
    inner = inspect.unwrap(function)
    if not isinstance(inner, types.FunctionType) or not _covers(inner, site):
        raise Inapplicable(f"{site} lies outside of {getattr(function, '__qualname__', function)}")
    lines = linecache.getlines(inner.__code__.co_filename)
    finder = _At(span_of(site, lines), lambda node: edit(node, inner))
    tree = finder.visit(copy.deepcopy(_tree(inner)))
    if not finder.hits:
        raise Inapplicable(f"the expression at {site} is not of a form that can be changed")
    return _compiled(inner, tree)


def transformed(function: types.FunctionType, edit: TreeEdit) -> Callable[..., Any] | None:
    """A twin of a plain function with its tree edited; None when the edit leaves it alone. Raises Inapplicable."""
    inner = inspect.unwrap(function)
    if not isinstance(inner, types.FunctionType):
        return None
    tree = edit(copy.deepcopy(_tree(inner)))
    return _compiled(inner, tree) if tree is not None else None


def own_methods(treated: TreatedWorkload) -> list[Method]:
    """Every method that the modules of a copy run, once each, where its source can be read; not those of torch."""
    methods = []
    for function, users in _users(treated).items():
        with contextlib.suppress(Inapplicable):
            methods.append(_method(function, users))
    return methods


def method_at(treated: TreatedWorkload, site: Location | None) -> Method:
    """The method that covers a place, with every module of the copy that runs it."""
    if site is None:
        raise Inapplicable("its place in the source is not known")
    if site.detail is not None:
        raise Inapplicable(f"it lies in an installed package ({site.detail})")
    found = {function: users for function, users in _users(treated).items() if _covers(function, site)}
    if not found:
        raise Inapplicable(f"{site} lies outside the methods of the model's modules")
    return _method(*max(found.items(), key=lambda item: item[0].__code__.co_firstlineno))


def method_of(treated: TreatedWorkload, module: nn.Module, name: str) -> Method:
    """A method of a module by its name, with every module of the copy that runs the same one. Raises Inapplicable."""
    function = dict(_methods(module)).get(name)
    if function is None:
        raise Inapplicable(f"{type(module).__name__} has no {name} of its own")
    return _method(function, [use for use in _users(treated)[function] if use[0] == name])


_Users = list[tuple[str, nn.Module]]  # modules that run a function, and what they call it


def _users(treated: TreatedWorkload) -> dict[types.FunctionType, _Users]:
    found: dict[types.FunctionType, _Users] = {}
    for module in treated.model.modules():
        for name, function in _methods(module):
            found.setdefault(function, []).append((name, module))
    return found


def _method(function: types.FunctionType, users: _Users) -> Method:
    return Method(users[0][0], function, tuple(module for _, module in users), _tree(function))


def _methods(module: nn.Module) -> Iterator[tuple[str, types.FunctionType]]:
    """Methods that a module runs, those that were edited before among them."""
    seen: set[str] = set()
    for name, value in vars(module).items():
        inner = inspect.unwrap(value.__func__) if isinstance(value, types.MethodType) else None
        if isinstance(inner, types.FunctionType):
            seen.add(name)
            yield name, inner
    for base in type(module).__mro__:
        if base.__module__.startswith("torch."):
            break
        for name, value in vars(base).items():
            plain = callable(value) and not isinstance(value, (staticmethod, classmethod, type))
            inner = inspect.unwrap(value) if plain else None
            if isinstance(inner, types.FunctionType) and name not in seen:
                seen.add(name)
                yield name, inner


def _covers(function: types.FunctionType, site: Location) -> bool:
    code = function.__code__
    if code.co_firstlineno > site.line or display_path(code.co_filename) != site.file:
        return False
    tree = getattr(function, _TREE, None)
    last = tree.end_lineno if tree is not None else max((line or 0 for _, line, *_ in code.co_positions()), default=0)
    return bool(last >= site.line)


def _tree(function: types.FunctionType) -> ast.FunctionDef:
    """The definition of a function: as edited, else in its file. Raises Inapplicable when the source cannot be read."""
    edited: ast.FunctionDef | None = getattr(function, _TREE, None)
    if edited is not None:
        return edited
    code = function.__code__
    try:
        module = ast.parse("".join(linecache.getlines(code.co_filename)))
    except (SyntaxError, ValueError):
        module = ast.Module([], [])
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    raise Inapplicable(f"the source of {function.__qualname__} cannot be read")


# --------------------------------------------------------------------------------- editing

Span = tuple[int, int, int, int]  # line, column, end line, end column as in `ast`: columns are UTF-8 bytes from 0


def span_of(site: Location, lines: list[str]) -> Span:
    def byte(line: int, column: int) -> int:
        return len(lines[line - 1][: column - 1].encode()) if 0 < line <= len(lines) else column - 1

    return site.line, byte(site.line, site.column), site.end_line, byte(site.end_line, site.end_column)


class _At(ast.NodeTransformer):
    """Replaces the outermost expression of a span that the edit takes."""

    def __init__(self, span: Span, edit: Callable[[ast.expr], ast.expr | None]) -> None:
        self.span, self.edit, self.hits = span, edit, 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset) == self.span:
            new = self.edit(node)
            if new is not None:
                self.hits += 1
                return ast.fix_missing_locations(ast.copy_location(new, node))
        return self.generic_visit(node)


class Substitute(ast.NodeTransformer):
    """Puts other expressions in place of some, which are known by identity, once each."""

    def __init__(self, new: Mapping[Any, ast.expr]) -> None:
        self.new = new

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and node in self.new:
            return ast.fix_missing_locations(ast.copy_location(self.new[node], node))
        return self.generic_visit(node)


def bind(method: Method, tree: ast.FunctionDef) -> None:
    """Gives the modules the edited method. A bound method is copied along with the module that holds it."""
    function = _compiled(method.function, tree)
    for module in method.modules:
        setattr(module, method.name, types.MethodType(function, module))


def _compiled(original: types.FunctionType, tree: ast.FunctionDef) -> Callable[..., Any]:
    """A function of the edited tree, with the globals, the closure and the defaults of the original one."""
    definition = _bare(copy.deepcopy(tree), original)
    free = original.__code__.co_freevars
    factory = ast.parse(f"def factory({', '.join(free)}):\n    pass\n    return {tree.name}")
    factory.body[0].body[0] = definition  # type: ignore[attr-defined]
    space: dict[str, Any] = {}
    cells = [cell.cell_contents for cell in original.__closure__ or ()]
    try:
        exec(compile(ast.fix_missing_locations(factory), original.__code__.co_filename, "exec"), original.__globals__, space)
        made: Callable[..., Any] = space["factory"](*cells)
    except Exception as error:
        raise Inapplicable(f"the changed {original.__qualname__} does not compile: {error}") from error
    inner = inspect.unwrap(made)
    assert isinstance(inner, types.FunctionType)
    inner.__defaults__, inner.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    inner.__code__ = inner.__code__.replace(co_qualname=original.__code__.co_qualname)
    inner.__qualname__, inner.__annotations__ = original.__qualname__, original.__annotations__
    setattr(inner, _TREE, tree)
    return made


def _bare(tree: ast.FunctionDef, original: types.FunctionType) -> ast.FunctionDef:
    """Without annotations and defaults, which may refer to names of the class body; private names spelled out."""
    tree.returns = None
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    tree.args.defaults = [ast.Constant(None) for _ in tree.args.defaults]
    tree.args.kw_defaults = [None if d is None else ast.Constant(None) for d in tree.args.kw_defaults]
    classes = original.__qualname__.split(".")[:-1]
    if classes and classes[-1] != "<locals>":
        for node in ast.walk(tree):
            for field in ("id", "attr", "name", "arg"):
                name = getattr(node, field, None)
                if isinstance(name, str) and name.startswith("__") and not name.endswith("__"):
                    setattr(node, field, f"_{classes[-1].lstrip('_')}{name}")
    return tree


# ------------------------------------------------------------------------------ expressions


def expression(text: str) -> ast.expr:
    """A parsed expression that takes the place in the file of what it is put into."""
    tree = ast.parse(text, mode="eval").body
    for node in ast.walk(tree):
        for field in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            if hasattr(node, field):
                delattr(node, field)
    return tree


def torch_function(path: str, *arguments: ast.expr, **keywords: Any) -> ast.Call:
    """A call of a function of torch by its path: "nn.functional.gelu"."""
    return ast.Call(expression(IN_TORCH + path), list(arguments), [ast.keyword(k, ast.Constant(v)) for k, v in keywords.items()])


def operand(call: ast.expr, function: types.FunctionType) -> ast.expr | None:
    """What a call such as F.relu(x), torch.relu(x), relu(x), self.act(x) or x.relu() works on."""
    if not isinstance(call, ast.Call):
        return None
    if isinstance(call.func, ast.Attribute) and not _names_a_module(call.func.value, function) and not _own_function(call, function):
        return call.func.value
    named = next((k.value for k in call.keywords if k.arg in ("input", "x")), None)
    return call.args[0] if call.args else named


def _calls_a_module(node: ast.expr, method: Method) -> bool:
    """Whether an expression runs one of the modules that the method's own one keeps: by its name, or as the variable of a loop."""
    if not isinstance(node, ast.Call):
        return False
    callee = node.func
    if isinstance(callee, ast.Name):
        given = (
            (one.target, one.iter) if isinstance(one, (ast.For, ast.comprehension)) else (one.targets[0], one.value)
            for one in ast.walk(method.tree)
            if isinstance(one, (ast.For, ast.comprehension, ast.Assign))
        )
        sources = [value for target, value in given if any(isinstance(n, ast.Name) and n.id == callee.id for n in ast.walk(target))]
        return any(_kept(n, method) for value in sources for n in ast.walk(value) if isinstance(n, ast.Attribute))
    return _kept(callee.value if isinstance(callee, ast.Subscript) else callee, method)


def _kept(node: ast.expr, method: Method) -> bool:
    """Whether `self.a.b` is a module."""
    first, *rest = ast.unparse(node).split(".")
    if method.function.__code__.co_varnames[:1] != (first,):
        return False
    for found in method.modules:
        value: Any = found
        for name in rest:
            value = getattr(value, name, None)
        if isinstance(value, nn.Module):
            return True
    return False


def _own_function(call: ast.Call, function: types.FunctionType) -> bool:
    """Whether it calls a function that the module keeps: self.act(x)."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    first = function.__code__.co_varnames[:1]
    return isinstance(owner, ast.Name) and (owner.id,) == first and bool(call.args)


def _names_a_module(node: ast.expr, function: types.FunctionType) -> bool:
    root = node
    while isinstance(root, ast.Attribute):
        root = root.value
    if isinstance(root, ast.Call) and isinstance(root.func, ast.Name) and root.func.id == "__import__":
        return True  # an edit of ours
    if not isinstance(root, ast.Name):
        return False
    value = function.__globals__.get(root.id)
    free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if root.id in free:
        value = free[root.id].cell_contents
    return isinstance(value, types.ModuleType) or (isinstance(value, type) and root is node)
