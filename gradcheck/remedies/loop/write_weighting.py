"""Micro-batches whose elements weigh alike: each loss is a sum, over the number of elements of all micro-batches of the step."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.loop import calls, loops
from gradcheck.remedies.editing.nodes import argument, called, closed, own, scope_of, set_argument
from gradcheck.remedies.editing.statements import insert_before
from gradcheck.remedies.loop.write_steps import backward_of, loop_of
from gradcheck.types.fix import Fix

CLASSES = ("cross_entropy", "nll_loss")
NUMBERS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
COUNT = "elements"


def weigh(p: Fix, context: Context) -> None:
    """`F.cross_entropy(model(x), y) / 4` in a loop over a list of micro-batches becomes a sum, divided by what the list holds."""
    draft, backward = backward_of(context)
    scaler = loop_of(context).scaler
    around = loops(draft, backward)
    group = around[0] if around else None
    if not isinstance(group, ast.For) or not isinstance(group.iter, ast.Name) or len(around) < 2 or (scaler is not None and scaler.steps):
        raise Unwritable(
            f"{draft.path}:{backward.lineno}: the micro-batches of a step are not in a list, and cannot be counted before the first"
        )
    loss = _loss(draft, backward, group)
    taken = {n.id for n in ast.walk(group.target) if isinstance(n, ast.Name)}
    used = {n.id for n in ast.walk(loss.args[1]) if isinstance(n, ast.Name)}
    names = {n.id for n in own(scope_of(draft, backward)) if isinstance(n, ast.Name)}
    if not used or not used <= taken or COUNT in names:
        raise Unwritable(f"{draft.path}:{loss.lineno}: the targets are made in the loop, and cannot be counted before it")
    counting = f"{COUNT} = sum({_counted(draft, loss)} for {draft.source(group.target)} in {group.iter.id})"
    insert_before(draft, group, counting)
    _, backward = backward_of(context)
    _weighed(draft, _loss(draft, backward, loops(draft, backward)[0]), backward)


def _loss(draft: Draft, backward: ast.Call, group: ast.AST) -> ast.Call:
    """The only loss of the loop, which is a mean. Raises Unwritable where it is no plain call of torch's."""
    found = list(calls(group, *CLASSES, *NUMBERS))
    if len(found) != 1 or len(found[0].args) < 2 or any(argument(found[0], name) is not None for name in ("reduction", "weight")):
        raise Unwritable(f"{draft.path}:{backward.lineno}: no single plain loss of torch.nn.functional stands in the loop")
    return found[0]


def _counted(draft: Draft, loss: ast.Call) -> str:
    target = closed(draft, loss.args[1])
    if called(loss) not in CLASSES:
        return f"{target}.numel()"
    ignored = argument(loss, "ignore_index")
    return f"({target} != {draft.source(ignored) if ignored is not None else '-100'}).sum()"


def _weighed(draft: Draft, loss: ast.Call, backward: ast.Call) -> None:
    """The loss as a sum over the count; what it was divided by goes, there or where backward() is called."""
    value = backward.func.value if isinstance(backward.func, ast.Attribute) else None
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Div) and isinstance(value.left, ast.Name):
        draft.replace(backward.func, f"{value.left.id}.backward")
        loss = _again(draft, loss)
    whole = draft.parent(loss)
    if isinstance(whole, ast.BinOp):
        if not isinstance(whole.op, ast.Div) or whole.left is not loss or isinstance(draft.parent(whole), ast.BinOp):
            raise Unwritable(f"{draft.path}:{loss.lineno}: the loss is a part of a larger expression")
        draft.replace(whole.right, COUNT)
    else:
        draft.replace(loss, f"{draft.source(loss)} / {COUNT}")
    set_argument(draft, _again(draft, loss), "reduction", '"sum"')


def _again(draft: Draft, loss: ast.Call) -> ast.Call:
    return next(n for n in ast.walk(draft.tree) if isinstance(n, ast.Call) and ast.dump(n) == ast.dump(loss))


WRITERS: dict[str, Writer] = {"weigh-micro-batches": weigh}
