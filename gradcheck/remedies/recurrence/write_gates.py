"""Gated layers where Elman layers are created."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.imports import original, spelled
from gradcheck.remedies.editing.nodes import argument, dotted, remove_item
from gradcheck.remedies.initialization.write_values import open_forget_gates
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location

NONLINEARITY = 3  # its position among the arguments of nn.RNN; nn.LSTM and nn.GRU have no such argument, and the others in that order
FORGET = 1.0


def gated(p: Fix, context: Context) -> None:
    """`nn.RNN(8, 64, nonlinearity="relu")` becomes `nn.LSTM(8, 64)`, and its forget gates start open."""
    kind = word(p, "kind", "LSTM")
    for place in context.sites(p.layers):
        if others := set(context.made_at(place)) - set(p.layers):
            raise Unwritable(f"{place} makes {min(others)} too, which stays as it is")
        _replace(context, place, kind)
    biased = [x for x in p.layers if any("bias_" in name for name in context.layer(x).parameters)]
    if kind == "LSTM" and biased:
        open_forget_gates(context, biased, literal(FORGET), f"set the forget gate's bias of {', '.join(biased)} to 1")


def _replace(context: Context, place: Location, kind: str) -> None:
    draft, call = context.call_at(place)
    name = original(draft, dotted(call.func))
    if not (name.startswith("torch.nn.") and name.endswith(".RNN")):
        raise Unwritable(f"{place}: no nn.RNN of torch is created there by its name")
    _without_nonlinearity(draft, call, place)
    if isinstance(call.func, ast.Attribute):
        function = context.call_at(place)[1].func
        draft.replace(function, draft.source(function).removesuffix("RNN") + kind)
    else:
        spelling = spelled(draft, f"torch.nn.{kind}")
        draft.replace(context.call_at(place)[1].func, spelling)


def _without_nonlinearity(draft: Draft, call: ast.Call, place: Location) -> None:
    """Takes the argument away, by keyword or by position; later ones move to where the gated layer has them."""
    if any(isinstance(a, ast.Starred) for a in call.args[: NONLINEARITY + 1]):
        raise Unwritable(f"{place}: the nonlinearity may be among the arguments that are unpacked there")
    given = argument(call, "nonlinearity", NONLINEARITY)
    if given is not None:
        keyword = next((k for k in call.keywords if k.arg == "nonlinearity"), None)
        remove_item(draft, keyword or given, [*call.args, *call.keywords])
    elif any(k.arg is None for k in call.keywords):
        raise Unwritable(f"{place}: the nonlinearity may be among the arguments that are unpacked there")


WRITERS: dict[str, Writer] = {"gated-recurrence": gated}
