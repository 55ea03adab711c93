"""Activations: another one in place of one, and one between two layers."""

import ast

from gradcheck.analysis.activations import ACTIVATIONS
from gradcheck.remedies.editing.context import Context, Writer, literal, number, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import call_at_or_above, called, dotted, in_place_of, remove_item
from gradcheck.remedies.editing.placing import New, in_sequence, put_behind
from gradcheck.remedies.initialization.write_weights import draw, scheme_of
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location

CLASSES = {name: a.module for name, a in ACTIVATIONS.items() if a.module}
FUNCTIONS = {"relu": "torch.relu", "tanh": "torch.tanh", "sigmoid": "torch.sigmoid"}  # the others are in torch.nn.functional


def module(draft: Draft, function: str, p: Fix) -> str:
    """ "nn.LeakyReLU(0.01)" """
    if function not in CLASSES:
        raise Unwritable(f"{function} has no class in torch.nn")
    slope = literal(number(p, "negative_slope")) if function == "leaky_relu" and "negative_slope" in p.settings else ""
    return f"{spelled(draft, 'torch.nn.' + CLASSES[function])}({slope})"


def applied(draft: Draft, function: str, argument: str, p: Fix) -> str:
    """ "torch.relu(x)" """
    name = spelled(draft, FUNCTIONS.get(function, f"torch.nn.functional.{function}"))
    slope = f", {literal(number(p, 'negative_slope'))}" if function == "leaky_relu" and "negative_slope" in p.settings else ""
    return f"{name}({argument}{slope})"


def replace(p: Fix, context: Context) -> None:
    new = word(p, "new")
    for place in _places(p, context):
        put_in_place(context, place, new, p)
    if "init" in p.settings:
        names = [x for x in word(p, "initialized").split(",") if x]
        draw(context, names, scheme_of(p, word(p, "init")), word(p, "transposed").split(","))


def _places(p: Fix, context: Context) -> list[Location]:
    """Creation sites of modules and call sites of functions. All layers of a site must be meant."""
    for place in (found := context.sites(p.layers)):
        kinds = {context.layer(x).function for x in context.made_at(place)}
        others = set(context.made_at(place)) - set(p.layers)
        if others and len(kinds) == 1 and not p.settings.get("all_of_site", True):
            raise Unwritable(f"{place} makes {min(others)} too")
    return found


def put_in_place(context: Context, place: Location, new: str, p: Fix) -> None:
    """Another activation where one is created or called; "identity" takes it away."""
    draft, node = context.at(place)
    call = call_at_or_above(draft, node)
    name = called(call)
    if name in CLASSES.values():
        if new == "identity":
            _drop_module(draft, call)
        else:
            text = module(draft, new, p)
            draft.replace(draft.at(place), text)
        return
    operand = operand_of(draft, call)
    if operand is None:
        _passed_class(draft, place, new, p)
        return
    text = in_place_of(draft, operand, call) if new == "identity" else applied(draft, new, draft.source(operand), p)
    draft.replace(call_at_or_above(draft, draft.at(place)), text)


def operand_of(draft: Draft, call: ast.Call) -> ast.expr | None:
    """x in `torch.relu(x)`, `F.relu(x)` and `x.relu()`; None for anything else."""
    if called(call).rstrip("_") not in CLASSES:
        return None
    if isinstance(call.func, ast.Attribute):
        holder = dotted(call.func.value)
        if holder.split(".")[0] not in ("torch", "F", "nn", "functional") and not _module_name(draft, holder):
            return call.func.value
    first = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "input"), None)
    return first


def _module_name(draft: Draft, name: str) -> bool:
    from gradcheck.remedies.editing.names import original

    return bool(name) and original(draft, name).startswith("torch")


def _drop_module(draft: Draft, call: ast.Call) -> None:
    """Takes an activation module out: the item of a Sequential; else an Identity stands for it."""
    if in_sequence(draft, call):
        parent = draft.parent(call)
        items = parent.args if isinstance(parent, ast.Call) else parent.elts if isinstance(parent, (ast.List, ast.Tuple)) else []
        if len(items) > 1:
            remove_item(draft, call, list(items))
            return
    draft.replace(call, f"{spelled(draft, 'torch.nn.Identity')}()")


def _passed_class(draft: Draft, place: Location, new: str, p: Fix) -> None:
    """`act()` with `act=nn.Sigmoid` given once in the file: the class that is given changes."""
    old = word(p, "old")
    wanted = CLASSES.get(old, "")
    given = [
        n
        for n in ast.walk(draft.tree)
        if isinstance(n, (ast.Name, ast.Attribute))
        and dotted(n).rpartition(".")[2] == wanted
        and not isinstance(draft.parent(n), (ast.Attribute,))
        and not (isinstance(draft.parent(n), ast.Call) and getattr(draft.parent(n), "func", None) is n)
    ]
    if not wanted or len(given) != 1 or new not in CLASSES or "negative_slope" in p.settings:
        raise Unwritable(f"{place}: the activation is not written there")
    draft.replace(given[0], spelled(draft, f"torch.nn.{CLASSES[new]}"))


def insert(p: Fix, context: Context) -> None:
    function = word(p, "activation", "relu")
    new = New(lambda draft, _: module(draft, function, p), "activation", lambda draft, x: applied(draft, function, x, p))
    put_behind(context, p.layers, new)


def remove_from_output(p: Fix, context: Context) -> None:
    here = [p.location] if p.location is not None and not p.layers else []
    for place in here or context.sites(p.layers):
        put_in_place(context, place, word(p, "new", "identity"), p)


WRITERS: dict[str, Writer] = {
    "replace-activation": replace,
    "insert-activation": insert,
    "remove-output-activation": remove_from_output,
}
