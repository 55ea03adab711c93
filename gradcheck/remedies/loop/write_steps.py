"""The training loop: when gradients are cleared, and when the optimizer steps."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.loop import CLIPPING, call_of, calls, common, following, loops, owner_of, plain
from gradcheck.remedies.editing.nodes import dotted, every, scope_of, statement_of
from gradcheck.remedies.editing.statements import block_of, insert_after, insert_before, remove_statement
from gradcheck.remedies.optimizer.write_settings import named
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopFacts

CLEARING = ("zero_grad",)


def loop_of(context: Context) -> LoopFacts:
    loop = context.measurement.loop
    if loop is None:
        raise Unwritable("no training loop was seen")
    return loop


def step_of(context: Context) -> tuple[Draft, ast.Call]:
    return call_of(context, loop_of(context).step_site, ("step",), "the optimizer's step", wrapped=True)


def backward_of(context: Context, *, wrapped: bool = False) -> tuple[Draft, ast.Call]:
    """`wrapped`: also `accelerator.backward(loss)`, where only its place matters."""
    return call_of(context, loop_of(context).backward_site, ("backward",), "the backward pass", wrapped=wrapped)


def optimizer_of(draft: Draft, step: ast.Call, loop: LoopFacts) -> str:
    """What the optimizer is called where it steps, by itself, with a closure or by a scaler."""
    name = dotted(step.args[0]) if step.args and loop.scaler is not None and loop.scaler.steps else owner_of(step)
    if not name:
        raise draft.refusal(step, "the optimizer that steps has no name")
    return name


# ------------------------------------------------------------------------- clear-gradients


def clear(p: Fix, context: Context) -> None:
    """Gradients are cleared once a step: before the first backward pass, or after the step where passes are accumulated."""
    loop = loop_of(context)
    if (loop.dropped or 0) > loop.steps / 2:
        _clear_after_step(context)
    elif (loop.lost or 0) > (loop.leftover or 0):
        _clear_earlier(context)
    else:
        _clear_each_step(context)


def _clear_each_step(context: Context) -> None:
    loop = loop_of(context)
    if _clear_by_hand(context, loop.step_site):
        return
    draft, step = step_of(context)
    name = optimizer_of(draft, step, loop)
    if _called(draft, step, f"{name}.zero_grad"):
        return
    first = _first_backward(context, draft, step)
    if first is not None:
        insert_before(draft, first, f"{name}.zero_grad()")
    elif step.args and owner_of(step) == name:  # with a closure, whose first statement clears
        _, backward = backward_of(context, wrapped=True)
        insert_before(draft, backward, f"{name}.zero_grad()")
    else:
        insert_after(draft, step_end(draft, step), f"{name}.zero_grad()")


def _clear_by_hand(context: Context, site: Location | None) -> bool:
    """`w.grad = None` after each `w -= rate * w.grad` of a block; False where an optimizer takes the step."""
    draft = context.draft(site.path) if site is not None and site.detail is None else None
    span = draft.where(site) if draft is not None and site is not None else None
    if draft is None or span is None:
        return False
    around = [s for s in every(draft.tree, ast.stmt) if draft.span(s)[0] <= span[0] and span[1] <= draft.span(s)[1]]
    update = min(around, key=lambda s: draft.span(s)[1] - draft.span(s)[0], default=None)
    if update is None or not updated_by_hand(update):
        return False
    for statement in [s for s in block_of(draft, update) if updated_by_hand(s)]:
        insert_after(draft, statement, f"{updated_by_hand(statement)}.grad = None")
    return True


def updated_by_hand(statement: ast.stmt) -> str:
    """The name of `w` in `w -= rate * w.grad`, `w.data.sub_(rate * w.grad)` and the like; "" for any other statement."""
    if not isinstance(statement, (ast.AugAssign, ast.Expr, ast.Assign)):
        return ""
    read = (n for n in every(statement, ast.Attribute) if n.attr == "grad" and isinstance(n.ctx, ast.Load))
    names = {dotted(n.value).removesuffix(".data") for n in read}
    changed: ast.expr | None = None
    if isinstance(statement, ast.AugAssign):
        changed = statement.target
    elif isinstance(statement, ast.Assign):
        changed = statement.targets[0] if len(statement.targets) == 1 else None
    elif isinstance(statement.value, ast.Call) and isinstance(statement.value.func, ast.Attribute):
        changed = statement.value.func.value
    name = dotted(changed).removesuffix(".data") if changed is not None else ""
    return name if name in names else ""


def _called(draft: Draft, node: ast.AST, method: str) -> bool:
    """Adds the brackets to a method that is named but not called, in a statement of the loop or function around a node."""
    around = loops(draft, node)
    scope = around[-1] if around else scope_of(draft, node)
    found = next((n.value for n in every(scope, ast.Expr) if dotted(n.value) == method), None)
    if found is not None:
        draft.replace(found, f"{method}()")
    return found is not None


def _first_backward(context: Context, draft: Draft, step: ast.Call) -> ast.stmt | None:
    """The first statement with a backward pass that leads to the step, in the step's own block; None where there is none."""
    home, backward = backward_of(context, wrapped=True)
    shared = common(draft, step, backward) if home is draft else None
    if shared is None:
        return None
    block, at_step, at_backward = shared
    if block[at_step] is not statement_of(draft, step) or at_backward >= at_step:
        return None
    earlier = next((i + 1 for i in range(at_step - 1, -1, -1) if next(calls(block[i], "step"), None) is not None), 0)
    first = next((one for one in block[earlier:at_step] if next(calls(one, "backward"), None) is not None), None)
    return _forward_of(draft, block, first) if first is not None and not earlier else first


def _forward_of(draft: Draft, block: list[ast.stmt], backward: ast.stmt) -> ast.stmt:
    """The top of a loop's body, where one clears by custom; anywhere else the backward pass itself."""
    parent = draft.parent(block[0])
    return block[0] if isinstance(parent, (ast.For, ast.While)) and parent.body[0] is block[0] else backward


def step_end(draft: Draft, step: ast.Call) -> ast.stmt:
    """The step, or the update of the scaler that follows it."""
    behind = following(draft, step)
    return behind[0] if behind and next(calls(behind[0], "update"), None) is not None else statement_of(draft, step)


def _clear_earlier(context: Context) -> None:
    """Clearing between backward pass and step goes before the backward pass, unless it is cleared there too."""
    draft, step = step_of(context)
    _, backward = backward_of(context, wrapped=True)
    shared = common(draft, step, backward)
    if shared is None:
        raise draft.refusal(step, "backward pass and step are not in one function")
    block, at_step, at_backward = shared
    between = [c for one in block[at_backward : at_step + 1] for c in calls(one, *CLEARING) if _between(draft, backward, c, step)]
    if len(between) != 1:
        raise draft.refusal(step, "no single call of zero_grad stands between backward pass and step")
    moved = plain(draft, between[0])
    text = draft.source(moved)
    before = [dotted(c.func) for one in block[:at_backward] for c in calls(one, *CLEARING)]
    remove_statement(draft, moved)
    if dotted(between[0].func) not in before:
        draft, step = step_of(context)
        first = _first_backward(context, draft, step)
        insert_before(draft, first if first is not None else backward_of(context, wrapped=True)[1], text)


def _between(draft: Draft, backward: ast.Call, clearing: ast.Call, step: ast.Call) -> bool:
    return draft.span(backward)[1] <= draft.span(clearing)[0] and draft.span(clearing)[1] <= draft.span(step)[0]


def _clear_after_step(context: Context) -> None:
    """Clearing with each accumulated pass becomes clearing after the step."""
    loop = loop_of(context)
    draft, clearing = call_of(context, loop.clear_site, CLEARING, "where gradients are cleared", wrapped=True)
    moved = plain(draft, clearing)
    home, step = step_of(context)
    if home is not draft or scope_of(draft, clearing) is not scope_of(draft, step):
        raise draft.refusal(clearing, "gradients are cleared in another function than the step")
    insert_after(draft, step_end(draft, step), draft.source(moved))
    remove_statement(draft, moved)


# ------------------------------------------------------------------------------- call-step


def step(p: Fix, context: Context) -> None:
    """`optimizer.step()` after the backward pass and the clipping, before the gradients are cleared for the next one."""
    loop = loop_of(context)
    draft, backward = backward_of(context)
    name = _optimizer(context, draft, backward)
    if _called(draft, backward, f"{name}.step"):
        return
    scaler = _scaler(context, draft, backward)
    text = f"{scaler}.step({name})\n{scaler}.update()" if scaler else f"{name}.step()"
    clearing = _clearing_behind(draft, backward, name) if loop.clear_site is not None else None
    if clearing is not None:
        insert_before(draft, clearing, text)
        return
    last: ast.AST = backward
    for one in following(draft, backward):
        if next(calls(one, *CLIPPING), None) is not None:
            last = one
    insert_after(draft, last, text)


def _clearing_behind(draft: Draft, backward: ast.Call, name: str) -> ast.Call | None:
    around = loops(draft, backward)
    body = around[0].body if around else []
    found = (c for one in body for c in calls(one, *CLEARING) if owner_of(c) == name)
    return next((c for c in found if draft.span(c)[0] > draft.span(backward)[1]), None)


def _optimizer(context: Context, draft: Draft, backward: ast.Call) -> str:
    """What the optimizer is called where the backward pass is: by the call that clears, or by where it is made."""
    site, scope = loop_of(context).clear_site, scope_of(draft, backward)
    if site is not None:
        home, clearing = call_of(context, site, CLEARING, "where gradients are cleared")
        if home is draft and scope_of(draft, clearing) is scope and owner_of(clearing):
            return owner_of(clearing)
    home, made = context.call_at(context.measurement.optimizer.site, "the optimizer")
    name = named(home, made)
    if home is draft and (name.startswith("self.") or scope_of(draft, made) in (scope, draft.tree)) and name:
        return name
    raise draft.refusal(backward, "it is not plain what the optimizer is called there")


def _scaler(context: Context, draft: Draft, backward: ast.Call) -> str:
    """What the scaler is called, when the loss is scaled."""
    scaler = loop_of(context).scaler
    if scaler is None or not scaler.scaled:
        return ""
    _, scale = call_of(context, scaler.scale_site, ("scale",), "where the loss is scaled")
    return owner_of(scale)


WRITERS: dict[str, Writer] = {"clear-gradients": clear, "call-step": step}
