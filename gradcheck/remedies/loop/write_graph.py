"""The training loop: removes what cuts the loss off from the model, or makes a new tensor of its numbers."""

import ast

from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.imports import original
from gradcheck.remedies.editing.nodes import called, closed, dotted, in_place_of, statement_of
from gradcheck.remedies.editing.statements import remove_statement
from gradcheck.types.fix import Fix

LEAVING = ("detach", "detach_", "item", "numpy", "cpu", "tolist")  # methods on the way from a tensor to its numbers
MAKING = ("torch.tensor", "torch.as_tensor", "torch.from_numpy", "torch.Tensor", "torch.FloatTensor", "float")
DRESSING = ("requires_grad_", "clone", "to", "float")  # methods of the new tensor that the old one does not need


def keep(p: Fix, context: Context) -> None:
    """`torch.tensor(loss.item(), requires_grad=True)` becomes `loss`, and `model(x).detach()` becomes `model(x)`."""
    draft, node = context.at(p.location)
    kept = _tensor(node)
    if kept is None:
        raise Unwritable(f"{draft.path}:{node.lineno}: it is not written there what cuts the gradient off")
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
        if (
            isinstance(above, ast.Attribute)
            and call.func is above
            and above.attr in (*LEAVING, *(DRESSING if remade else ("requires_grad_",)))
        ):
            node = call
        elif call.args[:1] == [node] and original(draft, dotted(call.func)) in MAKING:
            node, remade = call, True
        else:
            return node


def let_go(p: Fix, context: Context) -> None:
    """`total += loss` becomes `total += loss.detach()`."""
    draft, node = context.at(p.location)
    draft.replace(node, f"{closed(draft, node)}.detach()")


WRITERS: dict[str, Writer] = {"keep-tensor": keep, "detach-kept": let_go}
