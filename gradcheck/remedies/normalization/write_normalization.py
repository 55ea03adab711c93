"""Normalization: after layers that have none, another kind, the right order with dropout and bias."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, number, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.imports import spelled
from gradcheck.remedies.editing.names import Reader
from gradcheck.remedies.editing.nodes import argument, call_at_or_above, called, insert_after_item, remove_item, set_argument
from gradcheck.remedies.editing.placing import New, in_sequence, put_behind
from gradcheck.types.fix import Fix

MOST_GROUPS = 8


def insert(p: Fix, context: Context) -> None:
    kind = word(p, "kind", "LayerNorm")
    biased = [x for x in p.layers if p.settings.get("drop_bias") and _loses_bias(context, x)]
    put_behind(context, p.layers, New(lambda draft, call: _norm(p, context, draft, call, kind), "norm"))
    for place in context.sites(biased):
        draft, call = context.call_at(place)
        if argument(call, "bias") is None:
            set_argument(draft, call, "bias", "False")


def _norm(p: Fix, context: Context, draft: Draft, call: ast.Call, kind: str) -> str:
    """ "nn.BatchNorm1d(64)", with the width as the layer's creation writes it."""
    conv = "Conv" in called(call)
    width = argument(call, "out_channels" if conv else "out_features", 1)
    if width is None:
        raise Unwritable(f"{draft.path}:{call.lineno}: the width of the layer is not written there")
    text = draft.source(width)
    dims = called(call)[-2:]
    if kind.startswith("BatchNorm"):
        kind = f"BatchNorm{dims}" if conv else "BatchNorm1d"
    elif conv:
        kind = "GroupNorm"
    elif kind == "GroupNorm":
        kind = "LayerNorm"
    groups = f"{round(number(p, 'groups', MOST_GROUPS))}, " if kind == "GroupNorm" else ""
    return f"{spelled(draft, 'torch.nn.' + kind)}({groups}{text})"


def _loses_bias(context: Context, name: str) -> bool:
    """No code of the user's touches the bias of the layer."""
    for draft in context.all_drafts():
        reader = Reader(context, draft)
        for node in ast.walk(draft.tree):
            if isinstance(node, ast.Attribute) and node.attr == "bias" and name in reader.layers(node.value):
                return False
    return True


def batch_free(p: Fix, context: Context) -> None:
    kind = word(p, "kind", "GroupNorm")
    groups = f"{round(number(p, 'groups', MOST_GROUPS))}, " if kind == "GroupNorm" else ""
    for place in context.sites(p.layers):
        draft, call = context.call_at(place)
        width = argument(call, "num_features", 0)
        if width is None or "BatchNorm" not in called(call):
            raise Unwritable(f"{place}: no batch normalization of torch is created there")
        text = f"({groups}{draft.source(width)})"
        name = spelled(draft, f"torch.nn.{kind}")
        draft.replace(call_at_or_above(draft, draft.at(place)), name + text)


def remove_bias(p: Fix, context: Context) -> None:
    for place in context.sites(p.layers):
        if others := set(context.made_at(place)) - set(p.layers):
            raise Unwritable(f"{place} makes {min(others)} too, which keeps its bias")
        if any(not _loses_bias(context, x) for x in context.made_at(place)):
            raise Unwritable(f"{place}: other code of yours reads or sets the bias")
        draft, call = context.call_at(place)
        set_argument(draft, call, "bias", "False")


def move_dropout(p: Fix, context: Context) -> None:
    """After the normalization, where both are items of one Sequential or list."""
    if len(p.layers) != 2:
        raise Unwritable("the dropout and the normalization are not both modules")
    places = [context.site(x) for x in p.layers]
    (draft, dropout), (other, norm) = (context.call_at(x) for x in places)
    parent = draft.parent(dropout)
    if other is not draft or parent is not draft.parent(norm) or not in_sequence(draft, dropout):
        raise Unwritable(f"{places[0]}: dropout and normalization are not items of one Sequential")
    items = list(parent.args) if isinstance(parent, ast.Call) else list(getattr(parent, "elts", []))
    text = draft.source(dropout)
    remove_item(draft, dropout, items)
    insert_after_item(draft, draft.at(places[1]), text)


def query_norm(p: Fix, context: Context) -> None:
    """LayerNorm after the projections to queries and to keys."""
    names = [x for x in word(p, "projections").split(",") if x]
    if len(names) != 2 * len(p.layers):
        raise Unwritable("queries and keys are not made by a layer each")
    put_behind(context, names, New(lambda draft, call: _norm(p, context, draft, call, "LayerNorm"), "norm"))


WRITERS: dict[str, Writer] = {
    "qk-norm": query_norm,
    "insert-normalization": insert,
    "batch-normalization": insert,
    "layer-normalization": insert,
    "group-normalization": insert,
    "batch-free-normalization": batch_free,
    "remove-bias": remove_bias,
    "move-dropout": move_dropout,
}
