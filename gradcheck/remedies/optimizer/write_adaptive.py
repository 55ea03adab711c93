"""Another class of optimizer, at the expression that creates it."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Unwritable
from gradcheck.remedies.editing.imports import spelled
from gradcheck.remedies.editing.nodes import argument, called, remove_argument
from gradcheck.remedies.optimizer.adaptive import MOST_DECAY
from gradcheck.remedies.optimizer.write_settings import created, decay, keyword, own_values, rate
from gradcheck.types.fix import Fix

_SGD_ALONE = ("momentum", "dampening", "nesterov")
_MOST_POSITIONS = 2  # params and lr, which both take in this order


def adam(p: Fix, context: Context) -> None:
    """Adam, with weight decay AdamW, for SGD: its name, its rate and its decay; what only SGD has goes."""
    draft, call = created(context)
    if called(call) != "SGD":
        raise Unwritable(f"{draft.path}:{call.lineno}: the optimizer is not created as SGD there")
    if len(call.args) > _MOST_POSITIONS or any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        raise Unwritable(f"{draft.path}:{call.lineno}: not every setting of SGD has its name there")
    if any(own_values(draft, call, name) for name in _SGD_ALONE):
        raise Unwritable(f"{draft.path}:{call.lineno}: groups of the optimizer have settings that only SGD has")
    if any(called(node) == "CyclicLR" for node in ast.walk(draft.tree)):
        raise Unwritable(f"{draft.path}: a cyclic schedule has rates of its own")
    rate(p, context)
    for name in _SGD_ALONE:
        draft, call = created(context)
        if argument(call, name) is not None:
            remove_argument(draft, call, name)
    draft, call = created(context)
    strength = number(p, "weight_decay")
    old, name = draft.source(call.func), "AdamW" if strength else "Adam"
    draft.replace(
        call.func, spelled(draft, f"torch.optim.{name}") if isinstance(call.func, ast.Name) else f"{old.removesuffix('SGD')}{name}"
    )
    if strength >= MOST_DECAY:
        decay(p, context)
    draft, call = created(context)
    if strength and argument(call, "weight_decay") is None:
        keyword(context, "weight_decay", literal(0.0))  # AdamW has some where it is not told otherwise


WRITERS: dict[str, Writer] = {"adaptive-optimizer": adam}
