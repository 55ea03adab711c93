"""The training loop: clipping goes between backward pass and step, and a scaler gets its missing calls."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.loop import CLIPPING, call_of, calls, code_of, owner_of, parameters, plain, preceding
from gradcheck.remedies.editing.nodes import closed, every, scope_of, statement_of
from gradcheck.remedies.editing.statements import block_of, insert_after, insert_before, remove_statement
from gradcheck.remedies.loop.write_steps import backward_of, loop_of, optimizer_of, step_of, updated_by_hand
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopClip

# ------------------------------------------------------------------------------ move-clipping


def clipping(p: Fix, context: Context) -> None:
    """A call of a clipping function goes before the step, gets its parameters again, or unscaled gradients."""
    clip = next((c for c in loop_of(context).clips or () if c.site is not None and c.site == p.location), None)
    if clip is None:
        raise Unwritable("the place of the clipping is not known")
    faults = {"given": clip.empty + clip.foreign, "order": clip.late + clip.early, "scaled": clip.scaled}
    worst = max(faults, key=lambda name: faults[name])
    if worst == "order":
        _before_step(context, clip)
    elif worst == "given":
        draft, call = call_of(context, clip.site, CLIPPING, "the clipping")
        _, step = step_of(context)
        if not call.args:
            raise draft.refusal(call, "the call names its parameters by keyword")
        draft.replace(call.args[0], parameters(draft, step, optimizer_of(draft, step, loop_of(context))))
    else:
        _unscale(context, clip.site)


def _before_step(context: Context, clip: LoopClip) -> None:
    step: ast.expr | ast.stmt
    if loop_of(context).by_hand:
        draft, call = call_of(context, clip.site, CLIPPING, "the clipping")
        step = _update_by_hand(draft, call)
    else:
        draft, call, step = _beside_step(context, clip.site)
    statement = plain(draft, call)
    insert_before(draft, step, code_of(draft, statement))
    remove_statement(draft, statement)


def _update_by_hand(draft: Draft, call: ast.Call) -> ast.stmt:
    """The first statement beside the call that is `w -= rate * w.grad`, or a loop of those."""
    found = (one for one in block_of(draft, statement_of(draft, call)) if any(map(updated_by_hand, every(one, ast.stmt))))
    first = next(found, None)
    if first is None:
        raise draft.refusal(call, "it does not stand beside the update, which is written by hand")
    return first


def _beside_step(context: Context, site: Location | None) -> tuple[Draft, ast.Call, ast.Call]:
    """The call that clips, and the step, in one function. Raises Unwritable when they are not."""
    draft, call = call_of(context, site, CLIPPING, "the clipping")
    home, step = step_of(context)
    if home is not draft or scope_of(draft, call) is not scope_of(draft, step):
        raise draft.refusal(call, "it stands in another function than the step")
    return draft, call, step


# ---------------------------------------------------------------------------- complete-scaler


def scaler(p: Fix, context: Context) -> None:
    """The other half of a GradScaler: unscaled clipping, `scaler.step`, `scaler.update`, `scaler.scale`."""
    loop = loop_of(context)
    used = loop.scaler
    if used is None or not (used.scaled or used.steps):
        raise Unwritable("no scaler was seen")
    if used.scaled and used.bare:
        _step_by_scaler(context, _scaler_where_scaled(context))
        return
    scaled = next((c for c in loop.clips or () if c.scaled), None)
    if scaled is not None:
        _unscale(context, scaled.site)
    elif not used.scaled:
        draft, step = step_of(context)
        _, backward = backward_of(context)
        assert isinstance(backward.func, ast.Attribute)
        loss = backward.func.value
        draft.replace(loss, f"{owner_of(step)}.scale({draft.source(loss)})")
    else:
        draft, step = step_of(context)
        insert_after(draft, step, f"{owner_of(step)}.update()")


def _step_by_scaler(context: Context, name: str) -> None:
    """`optimizer.step()` becomes `scaler.step(optimizer)` and `scaler.update()`."""
    draft, step = step_of(context)
    if step.args or step.keywords:
        raise draft.refusal(step, "the step has arguments")
    optimizer = optimizer_of(draft, step, loop_of(context))
    if not any(owner_of(c) == name for c in calls(scope_of(draft, step), "update")):
        insert_after(draft, plain(draft, step), f"{name}.update()")
    draft.replace(step, f"{name}.step({optimizer})")


def _scaler_where_scaled(context: Context) -> str:
    used = loop_of(context).scaler
    draft, scale = call_of(context, used.scale_site if used is not None else None, ("scale",), "where the loss is scaled")
    if not owner_of(scale):
        raise draft.refusal(scale, "the scaler has no name")
    return owner_of(scale)


def _unscale(context: Context, site: Location | None) -> None:
    draft, call, step = _beside_step(context, site)
    name = _scaler_where_scaled(context)
    if any(owner_of(c) == name for one in preceding(draft, call) for c in calls(one, "unscale_")):
        raise draft.refusal(call, "the gradients are unscaled before it already")
    insert_before(draft, call, f"{name}.unscale_({optimizer_of(draft, step, loop_of(context))})")


# --------------------------------------------------------------------------------- scale-loss


def average(p: Fix, context: Context) -> None:
    """`loss.backward()` becomes `(loss / 4).backward()`, by the number that the loop itself counts to where it is written."""
    loop = loop_of(context)
    draft, backward = backward_of(context)
    assert isinstance(backward.func, ast.Attribute)
    if loop.weight is None or loop.accumulated is None or abs(loop.weight - loop.accumulated) > 0.01 * loop.accumulated:
        raise draft.refusal(backward, "the loss is divided already, by another number")
    number = _count(context, draft, loop.accumulated)
    loss = backward.func.value
    scale = loop.scaler is not None and isinstance(loss, ast.Call) and bool(loss.args) and next(calls(loss, "scale"), None) is loss
    if scale and isinstance(loss, ast.Call):
        draft.replace(loss.args[0], f"{closed(draft, loss.args[0])} / {number}")
        return
    start, end = draft.span(backward)
    tail = draft.text[draft.span(loss)[1] : end]
    head = draft.text[start : draft.span(loss)[0]]
    text = f"{closed(draft, loss)} / {number}"
    if head.endswith("("):  # the receiver has brackets of its own
        draft.edit([Edit(*draft.span(loss), text)])
    else:
        draft.edit([Edit(start, end, f"{head}({text}){tail}")])


def _count(context: Context, draft: Draft, accumulated: int) -> str:
    """How the loop writes the number of passes: in `if (i + 1) % count == 0:` around the step; else the number itself."""
    home, step = step_of(context)
    scope = scope_of(draft, backward_of(context)[1])
    if home is draft and scope_of(draft, step) is scope:
        for above in draft.ancestors(step):
            if above is scope:
                break
            for node in every(above.test, ast.BinOp) if isinstance(above, ast.If) else ():
                if isinstance(node.op, ast.Mod) and isinstance(node.right, (ast.Name, ast.Attribute)):
                    return draft.source(node.right)
    return str(accumulated)


WRITERS: dict[str, Writer] = {"move-clipping": clipping, "complete-scaler": scaler, "scale-loss": average}
