"""Regularisation: rates of dropout, decay, penalties, smoothed labels."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.imports import spelled
from gradcheck.remedies.editing.nodes import argument, bindings, called, class_of, definition, is_literal, set_argument
from gradcheck.remedies.editing.placing import New, put_behind
from gradcheck.remedies.loss import write_loss
from gradcheck.remedies.optimizer import write_settings
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location

# Layers of torch that take the rate of the dropouts inside them.
HOLDERS = ("TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer", "MultiheadAttention", "LSTM", "GRU", "RNN")


def lower_dropout(p: Fix, context: Context) -> None:
    rate = literal(number(p, "rate"))
    done: set[Location] = set()
    for place in _dropouts(p, context):
        if place not in done:
            done.add(place)
            _rate(context, place, rate)


def _dropouts(p: Fix, context: Context) -> list[Location]:
    """Where the dropouts of these layers are created or called."""
    facts = context.measurement.regularization
    seen = {d.layer: d.site for d in facts.dropouts} if facts is not None else {}
    found = []
    for name in p.layers:
        place = seen.get(name) or context.layer(name).site
        if place is None:
            raise Unwritable(f"{name} is not created by code of yours")
        found.append(place)
    return found


def _rate(context: Context, place: Location, rate: str) -> None:
    draft, call = context.call_at(place)
    name = called(call)
    if name in HOLDERS:
        given, word, position = argument(call, "dropout"), "dropout", None
    elif "dropout" in name.lower() and place.detail is None:
        position = 0 if name[0].isupper() else 1
        word, given = "p", argument(call, "p", position)
    else:
        raise Unwritable(f"{place}: the rate is not written there")
    if given is None:
        set_argument(draft, call, word, rate)
        return
    if draft.source(given) == rate:
        return
    draft.replace(_shared(draft, given) or given, rate)


def _shared(draft: Draft, given: ast.expr) -> ast.expr | None:
    """The number behind a name that only dropouts read."""
    if not isinstance(given, ast.Name):
        return definition(draft, given)
    reads = [n for n in ast.walk(draft.tree) if isinstance(n, ast.Name) and n.id == given.id and isinstance(n.ctx, ast.Load)]
    values = [v for n in ast.walk(draft.tree) for name, v in bindings(n) if name == given.id]
    only = all("dropout" in called(draft.parent(n) or n).lower() for n in reads)
    if only and len(values) == 1 and is_literal(values[0]):
        return values[0]
    return definition(draft, given)


def dropout(p: Fix, context: Context) -> None:
    """Another rate; or dropout after activations."""
    if not p.settings.get("insert", True):
        lower_dropout(p, context)
        return
    rate = literal(number(p, "rate"))
    functional = [x for x in p.layers if ":" in x]
    modules = [x for x in p.layers if ":" not in x]
    for place in context.sites(functional):
        draft, call = context.call_at(place)
        if class_of(draft, call) is None:
            raise Unwritable(f"{place}: it is not in a module of yours")
        name = spelled(draft, "torch.nn.functional.dropout")
        draft, call = context.call_at(place)
        start, end = draft.span(call)
        draft.edit([Edit(start, start, f"{name}("), Edit(end, end, f", {rate}, self.training)")])
    if modules:
        put_behind(context, modules, New(lambda draft, _: f"{spelled(draft, 'torch.nn.Dropout')}({rate})", "dropout"))


def less(p: Fix, context: Context) -> None:
    if "weight_decay" in p.settings:
        write_settings.decay(p, context)
    if "rate" in p.settings:
        lower_dropout(p, context)
    if "smoothing" in p.settings:
        write_loss.smoothing(p, context)


def ridge(p: Fix, context: Context) -> None:
    """weight_decay, where that is an L2 penalty."""
    facts = context.measurement.optimizer
    if facts.decoupled or facts.name not in ("SGD", "Adam", "Adagrad", "RMSprop", "Adadelta", "NAdam", "RAdam", "Adamax", "Rprop"):
        raise Unwritable(f"weight_decay of {facts.name} is no L2 penalty")
    write_settings.keyword(context, "weight_decay", literal(facts.weight_decay + number(p, "weight_decay"), 2))


WRITERS: dict[str, Writer] = {
    "lower-dropout": lower_dropout,
    "dropout": dropout,
    "less-regularization": less,
    "l2": ridge,
}
