"""What should be made once: an optimizer or a schedule that the loop makes anew moves before it; an average follows buffers, too.

And losses: what cuts one off from the model goes, and micro-batches weigh by their elements.
"""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.loop import Loop, calls, code_of, loops, owner_of, plain
from gradcheck.remedies.editing.names import original
from gradcheck.remedies.editing.nodes import (
    argument,
    called,
    closed,
    dotted,
    every,
    function_of,
    in_place_of,
    names_in,
    own,
    scope_of,
    set_argument,
    statement_of,
)
from gradcheck.remedies.editing.statements import insert_after, insert_before, remove_statement
from gradcheck.remedies.loop.write_steps import backward_of, loop_of
from gradcheck.types.fix import Fix

# ------------------------------------------------------------------ keep-optimizer, keep-scheduler


def keep(p: Fix, context: Context) -> None:
    """`optimizer = Adam(model.parameters())` moves before the outermost loop that changes nothing it is made from."""
    draft, call = _asked(context, *context.call_at(p.location))
    statement = plain(draft, call)
    if not isinstance(statement, ast.Assign):
        raise draft.refusal(call, "what is made gets no name")
    around = loops(draft, call)
    made, used = names_in(*statement.targets), names_in(call)
    outer = None
    for loop in around:
        if used & _bound(loop):
            break
        outer = loop
    if outer is None:
        raise draft.refusal(call, "it is made from what changes in the loop")
    others = [n for n in every(outer, ast.Assign) if n is not statement and made & names_in(*n.targets)]
    if others:
        raise draft.refusal(others[0], "the loop gives the name to something else as well")
    insert_before(draft, outer, code_of(draft, statement))
    remove_statement(draft, statement)


def _asked(context: Context, draft: Draft, call: ast.Call) -> tuple[Draft, ast.Call]:
    """Where a function makes and returns it: the one call of that function that stands in a loop."""
    maker, statement = function_of(draft, call), statement_of(draft, call)
    if loops(draft, call) or maker is None:
        return draft, call
    made = names_in(*statement.targets) if isinstance(statement, ast.Assign) else set[str]()
    returned = [n.value for n in own(maker) if isinstance(n, ast.Return)]
    if all(value is call or dotted(value) in made for value in returned if value is not None) and any(returned):
        found = [(d, c) for d, c in context.calls(maker.name) if loops(d, c)]
        if len(found) == 1:
            return found[0]
    why = f"each call of {maker.name}() makes it: make it once, before the loop, and hand it to what the loop calls"
    raise draft.refusal(call, why)


def _bound(loop: Loop) -> set[str]:
    """Names that a loop gives a value, its own target among them."""
    return {n.id for n in every(loop, ast.Name) if isinstance(n.ctx, ast.Store)}


# ---------------------------------------------------------------------------------- follow-buffers


def buffers(p: Fix, context: Context) -> None:
    """After a loop over the parameters of both models comes one over their buffers."""
    averages = context.measurement.loop.averages if context.measurement.loop is not None else None
    stale = [a for a in averages or () if a.stale]
    if len(stale) != 1:
        raise Unwritable("it is not plain which model is to follow")
    found = stale[0]
    for draft in context.all_drafts():
        for node in every(draft.tree, ast.For):
            pair = _followed(node, found.name.removesuffix(".module"))
            if pair is not None:
                mine, leader = pair
                copying = f"for followed, leading in zip({mine}.buffers(), {leader}.buffers()):\n    followed.copy_(leading)"
                insert_after(draft, node, copying)
                return
    raise Unwritable(f"it is not written in your files how {found.name or 'the model'} follows")


def _followed(node: ast.For, name: str) -> tuple[str, str] | None:
    """The models of `for a, b in zip(mine.parameters(), leader.parameters())`, in whichever order."""
    if called(node.iter) != "zip" or not isinstance(node.iter, ast.Call) or len(node.iter.args) != 2:
        return None
    sides = [owner_of(a) for a in node.iter.args if isinstance(a, ast.Call) and called(a) == "parameters"]
    if len(sides) != 2 or "" in sides or not name or name not in sides:
        return None
    other = sides[1 - sides.index(name)]
    return (name, other) if any(n.endswith("_") and not n.startswith("_") for n in map(called, ast.walk(node))) else None


LEAVING = ("detach", "detach_", "item", "numpy", "cpu", "tolist")  # methods on the way from a tensor to its numbers
MAKING = ("torch.tensor", "torch.as_tensor", "torch.from_numpy", "torch.Tensor", "torch.FloatTensor", "float")
DRESSING = ("requires_grad_", "clone", "to", "float")  # methods of the new tensor that the old one does not need


def keep_graph(p: Fix, context: Context) -> None:
    """`torch.tensor(loss.item(), requires_grad=True)` becomes `loss`, and `model(x).detach()` becomes `model(x)`."""
    draft, node = context.at(p.location)
    kept = _tensor(node)
    if kept is None:
        raise draft.refusal(node, "it is not written there what cuts the gradient off")
    whole = _whole(draft, node)
    statement = statement_of(draft, whole)
    if isinstance(statement, ast.Assign) and statement.value is whole and [dotted(t) for t in statement.targets] == [dotted(kept)]:
        remove_statement(draft, statement)  # loss = loss
    else:
        draft.replace(whole, in_place_of(draft, kept, whole))


def _tensor(node: ast.expr) -> ast.expr | None:
    """What is cut off: the expression before `.detach()`, `.cpu().numpy()`, `.item()`, `.data`."""
    cut = None
    while True:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and called(node) in LEAVING:
            cut = node = node.func.value
        elif isinstance(node, ast.Attribute) and node.attr == "data":
            cut = node = node.value
        else:
            return cut


def _whole(draft: Draft, node: ast.expr) -> ast.expr:
    """The largest expression around a cut that is still the same numbers: to numpy, and back into a tensor."""
    remade = False
    while True:
        above = draft.parent(node)
        call = draft.parent(above) if isinstance(above, ast.Attribute) and above.value is node else above
        if not isinstance(call, ast.Call):
            return node
        left = (*LEAVING, *(DRESSING if remade else ("requires_grad_",)))
        if isinstance(above, ast.Attribute) and call.func is above and above.attr in left:
            node = call
        elif call.args[:1] == [node] and original(draft, dotted(call.func)) in MAKING:
            node, remade = call, True
        else:
            return node


def let_go(p: Fix, context: Context) -> None:
    """`total += loss` becomes `total += loss.detach()`."""
    kept = loop_of(context).retained
    if kept is None or kept.site is None:
        keeper = kept.name if kept is not None else ""
        raise Unwritable(f"what is put into {keeper} is not known" if keeper else "the variable that keeps the losses was not found")
    draft, node = context.at(kept.site)
    draft.replace(node, f"{closed(draft, node)}.detach()")


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
        raise draft.refusal(backward, "the micro-batches of a step are not in a list, and cannot be counted before the first")
    loss = _loss(draft, backward, group)
    taken, used = names_in(group.target), names_in(loss.args[1])
    names = {n.id for n in own(scope_of(draft, backward)) if isinstance(n, ast.Name)}
    if not used or not used <= taken or COUNT in names:
        raise draft.refusal(loss, "the targets are made in the loop, and cannot be counted before it")
    counting = f"{COUNT} = sum({_counted(draft, loss)} for {draft.source(group.target)} in {group.iter.id})"
    insert_before(draft, group, counting)
    _weighed(draft, loss, backward)


def _loss(draft: Draft, backward: ast.Call, group: ast.AST) -> ast.Call:
    """The only loss of the loop, which is a mean. Raises Unwritable where it is no plain call of torch's."""
    found = list(calls(group, *CLASSES, *NUMBERS))
    if len(found) != 1 or len(found[0].args) < 2 or any(argument(found[0], name) is not None for name in ("reduction", "weight")):
        raise draft.refusal(backward, "no single plain loss of torch.nn.functional stands in the loop")
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
    set_argument(draft, loss, "reduction", '"sum"')
    whole = draft.parent(loss)
    if isinstance(whole, ast.BinOp):
        if not isinstance(whole.op, ast.Div) or whole.left is not loss or isinstance(draft.parent(whole), ast.BinOp):
            raise draft.refusal(loss, "the loss is a part of a larger expression")
        draft.replace(whole.right, COUNT)
    else:
        draft.replace(loss, f"{draft.source(loss)} / {COUNT}")


WRITERS: dict[str, Writer] = {
    "keep-optimizer": keep,
    "keep-scheduler": keep,
    "follow-buffers": buffers,
    "keep-tensor": keep_graph,
    "detach-kept": let_go,
    "weigh-micro-batches": weigh,
}
