"""Step functions with a derivative, and scales that are trained."""

import ast
from collections.abc import Iterator

from gradcheck.remedies.editing.context import Context, Writer, word
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.imports import original, spelled
from gradcheck.remedies.editing.nodes import Function, argument, called, dotted, function_of, remove_argument, statement_of
from gradcheck.remedies.editing.statements import indent_of, line_start
from gradcheck.types.fix import Fix

# ------------------------------------------------------------------------------ straight-through


def straight(p: Fix, context: Context) -> None:
    """`x = torch.round(x)` becomes `x = x + (torch.round(x) - x).detach()`; an operand without a name gets one first."""
    draft, call = context.call_at(p.location)
    z, function = _operand(draft, call), function_of(draft, call)
    if z is None or function is None:
        raise Unwritable(f"{draft.path}:{call.lineno}: it is not plain what torch.{word(p, 'operation')} is applied to")
    form = ".clamp(-1, 1)" if word(p, "operation") == "sign" else ""
    statement = statement_of(draft, call)
    if isinstance(z, ast.Name):
        edits, first, name = [], z.id, z.id
    elif isinstance(statement, (ast.Assign, ast.Return)) and statement.value is call and _first_on_line(draft, statement):
        first = name = _name(function, statement)
        start = draft.span(statement)[0]
        line_end = draft.document.newline + indent_of(draft, statement)
        edits = [Edit(start, start, f"{name} = {draft.source(z)}{line_end}")]
    else:
        name = _name(function)
        edits, first = [], f"({name} := {draft.source(z)})"
    text = f"{first}{form} + ({_applied(draft, call, z, name)} - {name}{form}).detach()"
    draft.edit([*edits, Edit(*draft.span(call), text if _stands_alone(draft, call) else f"({text})")])


def _operand(draft: Draft, call: ast.Call) -> ast.expr | None:
    """z of torch.round(z) and z.round()."""
    if isinstance(call.func, ast.Attribute) and original(draft, dotted(call.func.value)).split(".")[0] != "torch":
        return call.func.value
    return argument(call, "input", 0)


def _applied(draft: Draft, call: ast.Call, z: ast.expr, name: str) -> str:
    """The call with a name in place of its operand."""
    start, end = draft.span(call)
    first, last = draft.span(z)
    before, after = draft.text[start:first], draft.text[last:end]
    if before == "(" and after.startswith(")"):
        before, after = "", after[1:]  # (a + b).round()
    return before + name + after


def _first_on_line(draft: Draft, statement: ast.stmt) -> bool:
    start = draft.span(statement)[0]
    return not draft.text[line_start(draft.text, start) : start].strip()


def _name(function: Function, statement: ast.stmt | None = None) -> str:
    """The name that the statement assigns anyway; else one that the function does not use."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    taken = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)} | {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
    return next(n for n in ("z", *(f"z{i}" for i in range(1, 1000))) if n not in taken)


def _stands_alone(draft: Draft, call: ast.Call) -> bool:
    """Whether a sum may stand there without brackets."""
    parent = draft.parent(call)
    return isinstance(parent, (ast.stmt, ast.Call, ast.keyword, ast.Tuple, ast.List))


# ------------------------------------------------------------------------------- trainable-scale


def trainable(p: Fix, context: Context) -> None:
    """`self.register_buffer("scale", x)` and `self.scale = x` become `self.scale = nn.Parameter(x)`."""
    for kind, local in sorted({_definition(context, name) for name in word(p, "factors").split(",")}):
        found = [draft for draft in context.all_drafts() for _ in _given(draft, kind, local)]
        if len(found) != 1:
            raise Unwritable(f"{kind}.{local} is set {'in several places' if found else 'outside of your files'}")
        parameter = spelled(found[0], "torch.nn.Parameter")
        _train(found[0], next(_given(found[0], kind, local)), local, parameter)


def _definition(context: Context, name: str) -> tuple[str, str]:
    """Class and attribute of a path: ("Block", "scale") for "blocks.0.scale"."""
    holder, _, local = name.rpartition(".")
    return context.layer(holder).type, local


def _given(draft: Draft, kind: str, local: str) -> Iterator[ast.Call | ast.Assign | ast.AnnAssign]:
    """The statements or calls of a class that set an attribute of self."""
    classes = [n for n in ast.walk(draft.tree) if isinstance(n, ast.ClassDef) and n.name == kind]
    for node in (n for one in classes for n in ast.walk(one)):
        if isinstance(node, ast.Call) and called(node) in ("register_buffer", "register_parameter"):
            name = argument(node, "name", 0)
            if isinstance(name, ast.Constant) and name.value == local:
                yield node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Attribute) and t.attr == local and dotted(t.value) == "self" for t in targets):
                yield node


def _train(draft: Draft, node: ast.Call | ast.Assign | ast.AnnAssign, local: str, parameter: str) -> None:
    value = argument(node, "tensor", 1) if isinstance(node, ast.Call) else node.value
    if value is None or (isinstance(node, ast.Call) and called(node) != "register_buffer"):
        raise Unwritable(f"{draft.path}:{node.lineno}: it is not plain what {local} is")
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Attribute)
        draft.replace(node, f"{draft.source(node.func.value)}.{local} = {parameter}({draft.source(value)})")
    elif called(value) == "Parameter" and isinstance(value, ast.Call):
        remove_argument(draft, value, "requires_grad")
    else:
        draft.replace(value, f"{parameter}({draft.source(value)})")


WRITERS: dict[str, Writer] = {"straight-through": straight, "trainable-scale": trainable}
