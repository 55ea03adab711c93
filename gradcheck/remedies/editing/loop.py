"""The training loop in the source: its blocks of statements, moving one, where the optimizer steps, and what the loop calls its parts."""

import ast
import textwrap
from collections.abc import Iterator

from gradcheck.remedies.editing.context import Context
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.nodes import called, calls_in, dotted, every, function_of, scope_of, statement_of
from gradcheck.remedies.editing.statements import block_of, indent_of
from gradcheck.types.location import Location

Loop = ast.For | ast.While
CLIPPING = ("clip_grad_norm_", "clip_grad_value_")


def call_of(
    context: Context, place: Location | None, names: tuple[str, ...], what: str, *, wrapped: bool = False
) -> tuple[Draft, ast.Call]:
    """A call of the loop, which is the user's own code. Raises Unwritable when a package makes it; `wrapped`: other than by wrapping it."""
    if place is None or (place.detail is not None and not wrapped):
        raise Unwritable(f"{what} is not written in your files")
    draft, call = context.call_at(place, what)
    if called(call) not in names:
        raise draft.refusal(call, f"{what} is not a plain call of {names[0]}")
    return draft, call


def owner_of(call: ast.Call) -> str:
    """The object whose method is called: "self.optimizer" for `self.optimizer.step()`; "" for anything without a name."""
    return dotted(call.func.value) if isinstance(call.func, ast.Attribute) else ""


def calls(node: ast.AST, *names: str) -> Iterator[ast.Call]:
    """Calls of these names in a statement or function, in the order of the source; those of functions defined in it left out."""
    if isinstance(node, ast.Call) and called(node) in names:
        yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from calls(child, *names)


def holders(draft: Draft, node: ast.AST) -> list[ast.stmt]:
    """The statements around a node in its function, innermost first, its own among them."""
    found: list[ast.stmt] = []
    for one in (node, *draft.ancestors(node)):
        if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and one is not node:
            break
        if isinstance(one, ast.stmt):
            found.append(one)
    return found


def loops(draft: Draft, node: ast.AST) -> list[Loop]:
    """The loops around a node in its function, innermost first."""
    return [one for one in holders(draft, node)[1:] if isinstance(one, Loop)]


def common(draft: Draft, one: ast.AST, other: ast.AST) -> tuple[list[ast.stmt], int, int] | None:
    """The innermost block of one function that holds both nodes, and where in it; None when there is none."""
    if function_of(draft, one) is not function_of(draft, other):
        return None
    around = {id(s): s for s in holders(draft, other)}
    for statement in holders(draft, one):
        block = block_of(draft, statement)
        match = next((s for s in block if id(s) in around), None)
        if match is not None:
            return block, _index(block, statement), _index(block, match)
    return None


def _index(block: list[ast.stmt], statement: ast.stmt) -> int:
    return next(i for i, one in enumerate(block) if one is statement)


def following(draft: Draft, node: ast.AST) -> list[ast.stmt]:
    """The statements after a node's own in its block."""
    statement = statement_of(draft, node)
    block = block_of(draft, statement)
    return block[_index(block, statement) + 1 :]


def preceding(draft: Draft, node: ast.AST) -> list[ast.stmt]:
    statement = statement_of(draft, node)
    block = block_of(draft, statement)
    return block[: _index(block, statement)]


def code_of(draft: Draft, statement: ast.stmt) -> str:
    """The source of a statement, without its indentation. Raises Unwritable for strings over several lines."""
    strings = (n for n in ast.walk(statement) if isinstance(n, (ast.Constant, ast.JoinedStr)) and n.end_lineno != n.lineno)
    if next(strings, None) is not None:
        raise draft.refusal(statement, "a string over several lines stands in the statement")
    return textwrap.dedent(indent_of(draft, statement) + draft.source(statement))


def plain(draft: Draft, call: ast.Call) -> ast.stmt:
    """The statement that a call is, by itself or with its result given a name. Raises Unwritable when it is a part of more."""
    statement = statement_of(draft, call)
    if isinstance(statement, (ast.Expr, ast.Assign)) and statement.value is call:
        return statement
    raise draft.refusal(call, "the call is a part of a larger statement")


def steps(context: Context) -> Iterator[tuple[Draft, ast.Call]]:
    """Calls of `optimizer.step()` or `scaler.step(optimizer)` in training loops: where the loop was seen, else where one is written."""
    loop = context.measurement.loop
    if loop is not None and loop.step_site is not None:
        yield context.call_at(loop.step_site)
    else:
        yield from ((draft, call) for draft, call in context.calls("step") if _after_backward(draft, call))


def _after_backward(draft: Draft, step: ast.Call) -> bool:
    """A backward pass stands before it in the same block, and it is the first step after that."""
    before = preceding(draft, step)
    last = next((i for i in range(len(before) - 1, -1, -1) if calls_in(before[i], "backward")), None)
    return last is not None and not any(calls_in(one, "step") for one in before[last + 1 :])


def stepped(call: ast.Call) -> tuple[str, str | None]:
    """What the loop calls the optimizer, and the scaler if one takes the step. Raises Unwritable for anything else."""
    if not isinstance(call.func, ast.Attribute):
        raise Unwritable("the optimizer's step is not a method call")
    owner = dotted(call.func.value)
    if call.args and dotted(call.args[0]):
        return dotted(call.args[0]), owner
    if not owner:
        raise Unwritable("the optimizer that steps has no name")
    return owner, None


def parameters(draft: Draft, step: ast.Call, optimizer: str) -> str:
    """An expression for what the optimizer trains, valid where it steps: `model.parameters()` where that is what it was given."""
    for node in every(draft.tree, ast.Assign):
        given = node.value.args[0] if isinstance(node.value, ast.Call) and node.value.args else None
        if isinstance(given, ast.Call) and called(given) == "parameters" and any(dotted(t) == optimizer for t in node.targets):
            owner, scope = owner_of(given), scope_of(draft, node)
            if owner and (scope in (scope_of(draft, step), draft.tree) or owner.startswith("self.")):
                return f"{owner}.parameters()"
    return f'[p for group in {optimizer}.param_groups for p in group["params"]]'
