"""The training loop in the source: where the optimizer steps, and what the loop calls the model and the optimizer."""

import ast
from collections.abc import Iterator

from gradcheck.remedies.editing.context import Context
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.nodes import called, dotted, scope_of, statement_of
from gradcheck.remedies.editing.statements import block_of


def steps(context: Context) -> Iterator[tuple[Draft, ast.Call]]:
    """Calls of `optimizer.step()` or `scaler.step(optimizer)` in training loops: where the loop was seen, else where one is written."""
    loop = context.measurement.loop
    if loop is not None and loop.step_site is not None:
        draft, call = context.call_at(loop.step_site)
        yield draft, call
        return
    for draft in context.all_drafts():
        for node in ast.walk(draft.tree):
            if called(node) == "step" and isinstance(node, ast.Call) and _after_backward(draft, node):
                yield draft, node


def _after_backward(draft: Draft, step: ast.Call) -> bool:
    """A backward pass stands before it in the same block, and it is the first step after that."""
    statement = statement_of(draft, step)
    before = []
    for one in block_of(draft, statement):
        if one is statement:
            break
        before.append(one)
    last = next((i for i in range(len(before) - 1, -1, -1) if any(called(n) == "backward" for n in ast.walk(before[i]))), None)
    return last is not None and not any(called(n) == "step" for one in before[last + 1 :] for n in ast.walk(one))


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
    for node in ast.walk(draft.tree):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args):
            continue
        given = node.value.args[0]
        same = any(dotted(t) == optimizer for t in node.targets)
        if same and called(given) == "parameters" and isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute):
            owner = dotted(given.func.value)
            if owner and (scope_of(draft, node) is scope_of(draft, step) or owner.startswith("self.") or _global(draft, node)):
                return f"{owner}.parameters()"
    return f'[p for group in {optimizer}.param_groups for p in group["params"]]'


def _global(draft: Draft, node: ast.AST) -> bool:
    return isinstance(scope_of(draft, node), ast.Module)
