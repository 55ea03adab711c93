"""Initialisation: where it is done today, else beside the bias or after the creation of the layer, else in the generated function."""

import ast
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradcheck.remedies.editing.context import Context, Writer, literal, number, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.helper import apply_to_model, home
from gradcheck.remedies.editing.names import Layers, Reader, original, spelled
from gradcheck.remedies.editing.nodes import dotted, every, names_in, statement_of, target_of
from gradcheck.remedies.editing.statements import insert_after, insert_before
from gradcheck.types.fix import Fix

WEIGHTED = ("linear", "conv", "embedding", "recurrent")
FEW = 4  # layers that are named one by one

_KAIMING = {"relu": 2**0.5, "tanh": 5 / 3, "linear": 1.0, "selu": 0.75}  # gains that torch.nn.init knows by name
_TORCH = re.compile(r"Linear|Bilinear|Conv(Transpose)?[123]d|Embedding|(RNN|LSTM|GRU)(Cell)?")


@dataclass(frozen=True)
class Scheme:
    """How weights are drawn, as arguments of a function of torch.nn.init."""

    function: str
    arguments: str = ""
    doc: str = "Redraws the weights."

    def call(self, draft: Draft, weight: str, *, inputs_first: bool = False) -> str:
        """`inputs_first`: the weight is stored [in, out, ...], as that of a transposed convolution is."""
        arguments = self.arguments.format(fan_in=f"{weight}[0].numel()" if not inputs_first else f"{weight}[:, 0].numel()")
        mode = 'mode="fan_out"' if inputs_first and self.function.startswith("kaiming") else ""
        return f"{spelled(draft, 'torch.nn.init.' + self.function)}({', '.join(filter(None, [weight, mode, arguments]))})"


def scheme_of(p: Fix, treatment: str | None = None) -> Scheme:
    """Raises Unwritable for an unknown one."""
    name = treatment or p.treatment
    gain = float(p.settings.get("gain", 2**0.5 if name in ("he-init", "break-symmetry") else 1.0))
    if "std" in p.settings:
        return Scheme("normal_", f"std={literal(number(p, 'std'))}", "Draws weights of a customary size.")
    if name == "xavier-init":
        return Scheme("xavier_uniform_", _gain(gain), "Xavier initialisation (Glorot and Bengio 2010).")
    if name == "orthogonal-init":
        return Scheme("orthogonal_", _gain(gain), "Orthogonal initialisation (Saxe et al. 2014).")
    if name in ("he-init", "lecun-init", "break-symmetry"):
        who = "LeCun initialisation (LeCun et al. 1998)." if name == "lecun-init" else "He initialisation (He et al. 2015)."
        known = next((k for k, value in _KAIMING.items() if abs(value - gain) < 0.01), None)
        if known is not None:
            return Scheme("kaiming_normal_", f'nonlinearity="{known}"', who)
        return Scheme("normal_", f"std={literal(gain)} / {{fan_in}} ** 0.5", who)
    raise Unwritable(f"{name} has no function of torch.nn.init")


def _gain(gain: float) -> str:
    return "" if abs(gain - 1) < 0.005 else f"gain={literal(gain)}"


def initialise(p: Fix, context: Context) -> None:
    heads = set(word(p, "heads").split(","))
    draw(context, [x for x in p.layers if x not in heads], scheme_of(p), word(p, "transposed").split(","))
    if linear := [x for x in p.layers if x in heads]:
        draw(context, linear, Scheme("kaiming_normal_", 'nonlinearity="linear"', "Initialises the head."))


def draw(context: Context, names: Sequence[str], scheme: Scheme, transposed: Sequence[str] = ()) -> None:
    """New weights and zero biases for layers. Raises Unwritable when it is not known how they are created."""
    if not names:
        raise Unwritable("no layer is named")
    bare = [x for x in names if context.measurement.layer(x) is None]
    draw_parameters(context, bare, scheme, transposed)
    todo = frozenset(names) - frozenset(bare)
    todo -= _in_place(context, todo, scheme)
    todo -= _beside_biases(context, todo, scheme)
    if todo:
        todo -= _behind_creation(context, todo, scheme)
    for inputs_first in (True, False):
        if group := [x for x in names if x in todo and _stored_inputs_first(context, x) == inputs_first]:
            _generated(context, group, scheme)
    _open_biases(context, frozenset(names) - frozenset(bare))


def _draws(context: Context, draft: Draft, owner: str, scheme: Scheme, names: Iterable[str]) -> str:
    """The call that draws the weight of one of these layers."""
    return scheme.call(draft, f"{owner}.weight", inputs_first=any(_stored_inputs_first(context, x) for x in names))


def _stored_inputs_first(context: Context, name: str) -> bool:
    return context.layer(name).type.startswith(("ConvTranspose", "Conv1D"))


def draw_parameters(context: Context, names: Sequence[str], scheme: Scheme, transposed: Sequence[str]) -> None:
    """Parameters that a class of the user holds itself: after `self.weight = nn.Parameter(...)`."""
    done: set[tuple[str, str]] = set()
    for name in names:
        parameter = context.measurement.parameter(name)
        holder = context.measurement.layer(parameter.layer) if parameter is not None else None
        rest = name.removeprefix(f"{holder.name}." if holder is not None and holder.name else "")
        attribute, _, index = rest.partition(".")
        if holder is None or (index and not index.isdigit()):
            raise Unwritable(f"it is not known where {name} is created")
        if (holder.type, attribute) in done:
            continue
        done.add((holder.type, attribute))
        draft, statement = _assignment(context, holder.type, attribute)
        owner = f"self.{attribute}"
        head, weight = (f"for weight in {owner}:\n    ", "weight") if index else ("", owner)
        insert_after(draft, statement, head + scheme.call(draft, weight, inputs_first=name in transposed))


def _assignment(context: Context, holder: str, attribute: str) -> tuple[Draft, ast.stmt]:
    """The only `self.attribute = ...` of a class."""
    for draft in context.all_drafts():
        for node in (n for n in every(draft.tree, ast.ClassDef) if n.name == holder):
            found = [n for n in every(node, ast.Assign) if f"self.{attribute}" in map(dotted, n.targets)]
            if len(found) == 1:
                return draft, found[0]
    raise Unwritable(f"it is not known where {holder} creates {attribute}")


# --------------------------------------------------------------------- statements that exist


def _in_place(context: Context, wanted: Layers, scheme: Scheme) -> Layers:
    """Replaces statements that draw these weights today, when together they cover all of them that they touch."""
    done: Layers = frozenset()
    for draft in context.all_drafts():
        for statement, owner, covered in drawing(context, draft, "weight"):
            if (covered & wanted) - done:
                if not _mostly(context, covered, wanted):
                    break
                draft.replace(statement, _draws(context, draft, owner, scheme, covered))
                done |= covered & wanted
    return done


def _beside_biases(context: Context, wanted: Layers, scheme: Scheme) -> Layers:
    """Before statements that set the biases of these layers and of no others."""
    done: Layers = frozenset()
    for draft in context.all_drafts():
        for statement, owner, covered in drawing(context, draft, "bias"):
            if covered <= wanted - done and all(_has_bias(context, x) for x in covered):
                insert_before(draft, statement, _draws(context, draft, owner, scheme, covered))
                done |= covered
    return done


def _mostly(context: Context, covered: Layers, wanted: Layers) -> bool:
    """Nearly all that the statement draws is to be redrawn: a head or so may come along."""
    others = {x for x in covered - wanted if context.layer(x).kind in WEIGHTED}
    return len(others) <= max(1, len(covered & wanted) // 2)


def drawing(context: Context, draft: Draft, parameter: str) -> list[tuple[ast.stmt, str, Layers]]:
    """Statements that set a parameter of layers: the statement, the source of the owner, the layers."""
    reader, found = Reader(context, draft), []
    for node in ast.walk(draft.tree):
        owner = _owner(draft, node, parameter)
        if owner is not None and isinstance(node, ast.stmt):
            layers = reader.layers(owner)
            if layers:
                found.append((_whole(draft, node, owner), draft.source(owner), layers))
    return found


def _owner(draft: Draft, statement: ast.AST, parameter: str) -> ast.expr | None:
    """`layer` in `nn.init.normal_(layer.weight, ...)`, `layer.weight.data.normal_()`, `layer.weight[i].normal_()`."""
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return None
    call = statement.value
    if original(draft, dotted(call.func)).startswith("torch.nn.init.") and call.args:
        value: ast.expr = call.args[0]
    elif isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_") and not call.func.attr.startswith("_"):
        value = call.func.value
    else:
        return None
    while isinstance(value, ast.Subscript) or (isinstance(value, ast.Attribute) and value.attr == "data"):
        value = value.value
    return value.value if isinstance(value, ast.Attribute) and value.attr == parameter else None


def _whole(draft: Draft, statement: ast.stmt, owner: ast.expr) -> ast.stmt:
    """The statement, or the loop over rows of the one weight around it."""
    loop = draft.parent(statement)
    alone = isinstance(loop, ast.For) and len(loop.body) == 1 and not loop.orelse and not names_in(loop.target) & names_in(owner)
    return loop if alone and isinstance(loop, ast.For) else statement


def _open_biases(context: Context, names: Layers) -> None:
    """Constant biases that statements set for these layers become zero."""
    for draft in context.all_drafts():
        for statement, owner, covered in drawing(context, draft, "bias"):
            text = draft.source(statement)
            if covered & names and "zero" not in text and "constant_" in text:
                draft.replace(statement, f"{spelled(draft, 'torch.nn.init.zeros_')}({owner}.bias)")


# ------------------------------------------------------------------- after the creation


def _behind_creation(context: Context, wanted: Layers, scheme: Scheme) -> Layers:
    """After `layer = nn.Linear(...)` with a name of its own, where every layer that is made there is wanted."""
    done: Layers = frozenset()
    for place in dict.fromkeys(context.layer(name).site for name in sorted(wanted)):
        if place is None or place.detail is not None:
            continue
        made = frozenset(context.made_at(place))
        if not made <= wanted:
            continue
        draft, call = context.call_at(place)
        statement = statement_of(draft, call)
        target = target_of(draft, call)
        if isinstance(target, ast.Name) and isinstance(statement, ast.Assign) and statement.value is call:
            insert_after(draft, call, "\n".join(_afresh(context, draft, target.id, scheme, made)))
            done |= made
    return done


def _afresh(context: Context, draft: Draft, owner: str, scheme: Scheme, names: Iterable[str]) -> list[str]:
    """Statements that draw a weight, and zero the bias that no other statement sets."""
    zeros = [f"{spelled(draft, 'torch.nn.init.zeros_')}({owner}.bias)"] if _biased(context, names) else []
    return [_draws(context, draft, owner, scheme, names), *zeros]


def _has_bias(context: Context, name: str) -> bool:
    return (f"{name}.bias" if name else "bias") in context.layer(name).parameters


def _biased(context: Context, names: Iterable[str]) -> bool:
    """They have biases, and no statement of the source sets them."""
    if not any(_has_bias(context, x) for x in names):
        return False
    set_already: Layers = frozenset().union(*(c for d in context.all_drafts() for _, _, c in drawing(context, d, "bias")))
    return not frozenset(names) <= set_already


# -------------------------------------------------------------------- the generated function


def _generated(context: Context, names: Sequence[str], scheme: Scheme) -> None:
    draft = home(context)
    loop, owner, indent = over_layers(context, draft, names)
    lines = [*loop, *(indent + line for line in _afresh(context, draft, owner, scheme, names))]
    apply_to_model(context, "\n".join(lines), scheme.doc)


def over_layers(context: Context, draft: Draft, names: Sequence[str]) -> tuple[list[str], str, str]:
    """A loop over layers of `model`: its head, the name of a layer in it, the indentation of its body."""
    if len(names) == 1:
        return [], expression(context, names[0]), ""
    if len(names) <= FEW:
        return [f"for layer in ({', '.join(expression(context, x) for x in names)}):"], "layer", "    "
    kinds = Counter(context.layer(x).type for x in names)
    if not all(_TORCH.fullmatch(kind) for kind in kinds):
        return [f"for name in ({', '.join(repr_of(x) for x in names)}):", "    layer = model.get_submodule(name)"], "layer", "    "
    same = [x.name for x in context.measurement.layers if x.type in kinds and x.parameters and ":" not in x.name]
    others = [x for x in same if x not in set(names)]
    classes = [spelled(draft, f"torch.nn.{kind}") for kind in kinds]
    test = f"isinstance(layer, {classes[0]})" if len(classes) == 1 else f"isinstance(layer, ({', '.join(classes)}))"
    if not others:
        return ["for layer in model.modules():", f"    if {test}:"], "layer", "        "
    if len(others) > len(names):
        condition = f"name in ({', '.join(repr_of(x) for x in names)})"
    elif len(others) == 1:
        condition = f"name != {repr_of(others[0])}"
    else:
        condition = f"name not in ({', '.join(repr_of(x) for x in others)})"
    return ["for name, layer in model.named_modules():", f"    if {test} and {condition}:"], "layer", "        "


def repr_of(name: str) -> str:
    return f'"{name}"'


def expression(context: Context, name: str) -> str:
    """`model.encoder[0].fc` for "encoder.0.fc"."""
    text = "model"
    for part in context.name_now(name).split(".") if name else []:
        if part.isdigit():
            text += f"[{part}]"
        else:
            text += f".{part}" if part.isidentifier() and not keyword.iskeyword(part) else f"[{repr_of(part)}]"
    return text


WRITERS: dict[str, Writer] = dict.fromkeys(("he-init", "lecun-init", "xavier-init", "orthogonal-init", "break-symmetry"), initialise)
