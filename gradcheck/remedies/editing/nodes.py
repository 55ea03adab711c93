"""Looking at and changing single expressions: calls and their arguments, the place where a value is written down."""

import ast
from collections.abc import Iterator, Sequence
from typing import TypeVar

from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable

Function = ast.FunctionDef | ast.AsyncFunctionDef
Node = TypeVar("Node", bound=ast.AST)


def dotted(node: ast.AST) -> str:
    """ "torch.nn.ReLU" for such an expression, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def called(node: ast.AST) -> str:
    """The last part of the name that a call calls: "relu" for `F.relu(x)` and for `x.relu()`."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""


def every(tree: ast.AST, kind: type[Node]) -> list[Node]:
    """The nodes of a kind in a tree, itself included."""
    return [n for n in ast.walk(tree) if isinstance(n, kind)]


def calls_in(tree: ast.AST, *names: str) -> list[ast.Call]:
    """Calls of what goes by one of these names."""
    return [n for n in every(tree, ast.Call) if called(n) in names]


def names_in(*nodes: ast.AST) -> set[str]:
    return {n.id for node in nodes for n in every(node, ast.Name)}


def reads(draft: Draft, name: str) -> list[ast.Name]:
    """Where the file takes the value of a name."""
    return [n for n in every(draft.tree, ast.Name) if n.id == name and isinstance(n.ctx, ast.Load)]


def values(draft: Draft, name: str) -> list[ast.expr]:
    """What the file gives a name, anywhere."""
    return [v for node in ast.walk(draft.tree) for target, v in bindings(node) if target == name]


def call_at_or_above(draft: Draft, node: ast.expr) -> ast.Call:
    """The call that an expression is, or is the function of. Raises Unwritable when it is neither."""
    if isinstance(node, ast.Call):
        return node
    parent = draft.parent(node)
    if isinstance(parent, ast.Call) and parent.func is node:
        return parent
    raise draft.refusal(node, "no call is written there")


ATOMS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant, ast.List, ast.Dict, ast.Set, ast.ListComp)
_OPERATORS = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Attribute, ast.Subscript, ast.Await)


def closed(draft: Draft, node: ast.expr) -> str:
    """The source of an expression, in brackets unless it needs none. A node's own brackets are not part of it."""
    text = draft.source(node)
    return text if isinstance(node, ATOMS) or (isinstance(node, ast.Tuple) and text.startswith("(")) else f"({text})"


def in_place_of(draft: Draft, node: ast.expr, place: ast.AST) -> str:
    """The source of an expression to replace another one: in brackets if an operator or a line end would tear it apart."""
    parent = draft.parent(place)
    needed = isinstance(parent, _OPERATORS) or "\n" in draft.source(node) or isinstance(node, (ast.NamedExpr, ast.GeneratorExp))
    return closed(draft, node) if needed else draft.source(node)


def statement_of(draft: Draft, node: ast.AST) -> ast.stmt:
    """The innermost statement that holds a node, itself included."""
    for one in (node, *draft.ancestors(node)):
        if isinstance(one, ast.stmt):
            return one
    raise Unwritable(f"{draft.path}: no statement holds this place")


def function_of(draft: Draft, node: ast.AST) -> Function | None:
    return next((a for a in draft.ancestors(node) if isinstance(a, Function)), None)


def self_of(draft: Draft, node: ast.AST) -> str:
    """What the method that holds a node calls its object: "self", or what its first parameter is called."""
    methods = (a for a in draft.ancestors(node) if isinstance(a, Function) and isinstance(draft.parent(a), ast.ClassDef))
    method = next(methods, None)
    first = [*method.args.posonlyargs, *method.args.args][:1] if method is not None else []
    return first[0].arg if first else "self"


def defined(draft: Draft, name: str) -> Function | ast.ClassDef | None:
    """The function or class of that name at the top level of the file."""
    found = (n for n in draft.tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))
    return next((n for n in found if n.name == name), None)


def forward_of(draft: Draft, kind: str) -> Function | None:
    """The forward method that a class of the file has."""
    holder = next((n for n in every(draft.tree, ast.ClassDef) if n.name == kind), None)
    return next((n for n in holder.body if isinstance(n, Function) and n.name == "forward"), None) if holder is not None else None


def class_of(draft: Draft, node: ast.AST) -> ast.ClassDef | None:
    return next((a for a in draft.ancestors(node) if isinstance(a, ast.ClassDef)), None)


def scope_of(draft: Draft, node: ast.AST) -> Function | ast.Module:
    return function_of(draft, node) or draft.tree


def own(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of functions and classes in it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, (*Function.__args__, ast.ClassDef, ast.Lambda)):
            yield from own(child)


# ----------------------------------------------------------------------------- arguments


def argument(call: ast.Call, name: str, position: int | None = None) -> ast.expr | None:
    """The expression given for a parameter, by keyword or by position."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    if position is not None and position < len(call.args) and not any(isinstance(a, ast.Starred) for a in call.args[: position + 1]):
        return call.args[position]
    return None


def set_argument(draft: Draft, call: ast.Call, name: str, value: str, position: int | None = None) -> None:
    """Gives a call an argument: in place of the one that it has, where that is written down, or after the last one."""
    given = argument(call, name, position)
    if given is not None:
        set_value(draft, given, value)
        return
    draft.edit([_appended(draft, call, f"{name}={value}")])


def _appended(draft: Draft, call: ast.Call, text: str) -> Edit:
    """After the last argument, on a line of its own where the arguments have lines of their own."""
    arguments: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
    if not arguments:
        close = draft.span(call)[1] - 1
        return Edit(close, close, text)
    last = max(arguments, key=lambda a: draft.span(a)[1])
    unpacking = next((k for k in call.keywords if k.arg is None), None)
    if unpacking is not None and last is unpacking:
        start = draft.span(unpacking)[0]
        return Edit(start, start, f"{text}, ")
    end = draft.span(last)[1]
    if isinstance(last, ast.GeneratorExp):  # f(x for x in y): the brackets are those of the call
        raise draft.refusal(call, "a bare generator leaves no room for a second argument")
    start = draft.span(last)[0]
    head = draft.text[draft.text.rfind("\n", 0, start) + 1 : start]
    if len(arguments) > 1 and not head.strip() and last.lineno != call.lineno:
        return Edit(end, end, f",{draft.document.newline}{head}{text}")
    return Edit(end, end, f", {text}")


def remove_argument(draft: Draft, call: ast.Call, name: str) -> None:
    """Removes a keyword, with its comma."""
    keyword = next((k for k in call.keywords if k.arg == name), None)
    if keyword is None:
        raise draft.refusal(call, f"the call has no {name}=")
    remove_item(draft, keyword, [*call.args, *call.keywords])


def remove_item(draft: Draft, item: ast.AST, items: Sequence[ast.AST]) -> None:
    """Removes an item of a call or list, and its line if it has one to itself. Comments on the other items stay."""
    ordered = sorted(items, key=lambda a: draft.span(a)[0])
    index = next(i for i, one in enumerate(ordered) if one is item)
    start, end = draft.span(item)
    text = draft.text
    after = _skip_comma(text, end)
    line_start = text.rfind("\n", 0, start) + 1
    line_end = _line_end(text, after)
    if not text[line_start:start].strip() and after > end and not _without_comment(text[after:line_end]).strip():
        draft.edit([Edit(line_start, line_end, "")])
    elif index + 1 < len(ordered) and "#" not in text[end : (following := draft.span(ordered[index + 1])[0])]:
        draft.edit([Edit(start, following, "")])
    elif index > 0 and "#" not in text[(previous := draft.span(ordered[index - 1])[1]) : start]:
        draft.edit([Edit(previous, end, "")])
    else:
        draft.edit([Edit(start, after, "")])


def insert_after_item(draft: Draft, item: ast.AST, text: str) -> None:
    """A further item after one of a call's or list's, on a line of its own where that one has one."""
    start, end = draft.span(item)
    line_start = draft.text.rfind("\n", 0, start) + 1
    head = draft.text[line_start:start]
    after = _skip_comma(draft.text, end)
    alone = not head.strip() and not _without_comment(draft.text[after : _line_end(draft.text, after)]).strip()
    if alone and after > end:
        place = _line_end(draft.text, after)
        draft.edit([Edit(place, place, f"{head}{text},{draft.document.newline}")])
    elif alone:
        draft.edit([Edit(end, end, f",{draft.document.newline}{head}{text}")])
    else:
        draft.edit([Edit(end, end, f", {text}")])


def _skip_comma(text: str, end: int) -> int:
    """After the comma that follows, or where we are."""
    place = end
    while place < len(text) and text[place] in " \t":
        place += 1
    return place + 1 if text[place : place + 1] == "," else end


def _line_end(text: str, place: int) -> int:
    """After the line ending that follows."""
    newline = text.find("\n", place)
    return newline + 1 if newline >= 0 else len(text)


def _without_comment(text: str) -> str:
    return text.partition("#")[0]


# -------------------------------------------------------------------- where a value is written


def set_value(draft: Draft, value: ast.expr, text: str) -> None:
    """Changes a number where it is written down: in place, or where the only definition of its name is.

    A name that is read elsewhere too keeps its value, and the number is written in place.
    """
    draft.replace(definition(draft, value) or value, text)


def definition(draft: Draft, value: ast.expr) -> ast.expr | None:
    """The literal that a name stands for, when it stands for nothing else and is read nowhere else."""
    if isinstance(value, ast.Attribute):
        return _option(draft, value)
    if not isinstance(value, ast.Name):
        return None
    if len(reads(draft, value.id)) != 1:
        return None
    function = function_of(draft, value)
    if function is not None and any(a.arg == value.id for a in (*function.args.args, *function.args.kwonlyargs)):
        return _default(draft, function, value.id)
    found = values(draft, value.id)
    return found[0] if len(found) == 1 and is_literal(found[0]) else None


def is_literal(node: ast.AST | None) -> bool:
    """A number written down, with its sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        node = node.operand
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (int, float)))


def bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names and the expressions that a statement gives them."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple) and len(target.elts) == len(node.value.elts):
                yield from ((t.id, v) for t, v in zip(target.elts, node.value.elts, strict=True) if isinstance(t, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, node  # type: ignore[misc]  # not a literal: the name has more than one value


def _default(draft: Draft, function: Function, name: str) -> ast.expr | None:
    """The default of a parameter that no call in the file gives."""
    position = next((i for i, a in enumerate(function.args.args) if a.arg == name), None)
    made = calls_in(draft.tree, function.name)
    if any(argument(c, name, position) is not None or any(k.arg is None for k in c.keywords) for c in made):
        return None
    arguments = function.args
    defaults = dict(zip([a.arg for a in arguments.args][len(arguments.args) - len(arguments.defaults) :], arguments.defaults, strict=True))
    defaults |= {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None}
    return defaults[name] if is_literal(defaults.get(name)) else None


def _option(draft: Draft, value: ast.Attribute) -> ast.expr | None:
    """The default of a command line option, for `arguments.lr` of an argparse parser in the same file."""
    if sum(n.attr == value.attr and isinstance(n.ctx, ast.Load) for n in every(draft.tree, ast.Attribute)) != 1:
        return None
    for call in calls_in(draft.tree, "add_argument"):
        flags = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if any(flag.lstrip("-").replace("-", "_") == value.attr for flag in flags):
            default = argument(call, "default")
            return default if is_literal(default) else None
    return None


def target_of(draft: Draft, value: ast.expr) -> ast.expr | None:
    """What an assignment gives a value to, also as one in a tuple of several; None where its statement is none."""
    statement = statement_of(draft, value)
    if isinstance(statement, ast.AnnAssign):
        return statement.target if statement.value is value else None
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target, pairs = statement.targets[0], [(statement.targets[0], statement.value)]
    if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple) and len(target.elts) == len(statement.value.elts):
        pairs = list(zip(target.elts, statement.value.elts, strict=True))
    return next((held for held, made in pairs if made is value), None)


def assigned(draft: Draft, name: ast.Name) -> ast.expr | None:
    """The expression of the only assignment of a name in its own scope, or else in the module."""
    for scope in (scope_of(draft, name), draft.tree):
        found = [v for node in own(scope) for target, v in bindings(node) if target == name.id]
        if found:
            return found[0] if len(found) == 1 else None
    return None
