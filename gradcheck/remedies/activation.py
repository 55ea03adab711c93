"""Other activations: in place of sigmoids in depth and of units that died, between layers that have none, and none on an output whose loss
does not expect one.
"""

import ast
import types
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from gradcheck.analysis.activations import ACTIVATIONS, SIGMOID_LIKE
from gradcheck.analysis.layer_groups import hidden_activations, in_order, usual_activation
from gradcheck.analysis.wording import counted
from gradcheck.remedies.definition import of_loss, rebuilding
from gradcheck.remedies.editing.context import Context, Writer, literal, number, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import original, spelled
from gradcheck.remedies.editing.nodes import argument, call_at_or_above, called, dotted, every, in_place_of, remove_item
from gradcheck.remedies.editing.placing import New, in_sequence, put_behind
from gradcheck.remedies.initialization import weights
from gradcheck.remedies.initialization.write_weights import draw, scheme_of
from gradcheck.remedies.layer_selection import body_layers, feeders, is_tuned, listed, made_with, weight_names
from gradcheck.remedies.modules.rewriting import operand, rewrite, torch_function
from gradcheck.remedies.modules.surgery import follow, rewired, swap
from gradcheck.remedies.modules.user_code import edit_code
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.layers import Layer
from gradcheck.types.location import Location
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload

RECTIFIERS = ("relu", "relu6", "hardtanh")
NEGATIVE_SLOPE = 0.01

_WITH_ARGUMENTS = ("threshold", "prelu", "rrelu", "softmax", "log_softmax")  # or with weights of their own
MODULES: dict[str, Callable[[], nn.Module]] = {
    name: getattr(nn, a.module) for name, a in ACTIVATIONS.items() if a.module and name not in _WITH_ARGUMENTS
}
MODULES["leaky_relu"] = lambda: nn.LeakyReLU(NEGATIVE_SLOPE)


def module_of(function: str) -> nn.Module:
    return MODULES.get(function, nn.ReLU)()


def call_of(function: str, argument: ast.expr) -> ast.expr:
    """The expression that applies an activation."""
    if function == "identity":
        return argument
    if function in ("tanh", "sigmoid"):
        return torch_function(function, argument)
    return torch_function(f"nn.functional.{function if function in MODULES else 'relu'}", argument)


def replace_one(treated: TreatedWorkload, name: str, site: Location | None, new: str) -> None:
    """Another activation in place of a module, or of the call at a place in a module's code."""
    if ":" not in name:
        swap(treated, name, module_of(new))
        return

    def edit(node: ast.expr, function: types.FunctionType) -> ast.expr | None:
        argument = operand(node, function)
        return call_of(new, argument) if argument is not None else None

    rewrite(treated, site, edit)


# ---------------------------------------------------------------------- replace-activation


@rebuilding(
    "replace-activation",
    "another activation",
    "Glorot et al. 2011, Deep Sparse Rectifier Neural Networks; Maas et al. 2013, Rectifier Nonlinearities Improve Acoustic Models",
    checkpoint="keys stay the same, but weights trained with the old activation mean something else with the new one",
)
def replace_activation(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Sigmoids of the body become ReLU, initialised for it; ReLUs whose units died become LeakyReLU."""
    sigmoids = hidden_activations(m, SIGMOID_LIKE)
    dying = finding is not None and finding.code in ("ACT002", "GRAD004")
    if sigmoids and not dying and (finding is None or finding.code != "ACT001"):
        return [_instead(finding, m, sigmoids, "relu", initialize=True)]
    if finding is not None and not dying:
        return []
    rectifiers = hidden_activations(m, RECTIFIERS)
    if finding is not None:
        rectifiers = made_with(m, [x for x in rectifiers if x.name in finding.layers]) or rectifiers
    return [_instead(finding, m, rectifiers, "leaky_relu", initialize=False)] if rectifiers else []


@replace_activation.applies
def apply_replacement(treated: TreatedWorkload, fix: Fix) -> None:
    """Replaces the activations, then initialises the layers before them for the new one where the fix says so."""
    new, sites = str(fix.settings["new"]), sites_of(fix)
    with rewired(treated):
        done: set[Location | None] = set()
        for name in fix.layers:
            site = sites.get(name, fix.location)
            if ":" in name and site in done:
                continue
            replace_one(treated, name, site, new)
            done.add(site if ":" in name else None)
    if names := str(fix.settings.get("initialized", "")):
        weights.apply(treated, replace(fix, layers=tuple(names.split(","))))


def sites_of(fix: Fix) -> dict[str, Location]:
    """Places of functional activations, as the fix carries them: "name=path:line:column:end_line:end_column"."""
    found = {}
    for entry in filter(None, str(fix.settings.get("sites", "")).split("\n")):
        name, _, place = entry.partition("=")
        path, line, column, end_line, end_column = place.rsplit(":", 4)
        found[name] = Location(path, int(line), int(column), int(end_line), int(end_column))
    return found


def places(layers: Iterable[Layer]) -> dict[str, Setting]:
    return placed((x.name, x.site) for x in layers)


def placed(calls: Iterable[tuple[str, Location | None]]) -> dict[str, Setting]:
    """Names and places of functional calls in the user's code as a setting, which `sites_of` reads; nothing where there are none."""
    known = [(name, s) for name, s in calls if ":" in name and s is not None and s.detail is None]
    text = "\n".join(f"{name}={s.path}:{s.line}:{s.column}:{s.end_line}:{s.end_column}" for name, s in known)
    return {"sites": text} if text else {}


def _instead(finding: Finding | None, m: Measurement, layers: list[Layer], new: str, *, initialize: bool) -> Fix:
    old = layers[0].function or layers[0].type
    settings: dict[str, Setting] = {"old": old, "new": new, **places(layers)}
    if new == "leaky_relu":
        settings["negative_slope"] = NEGATIVE_SLOPE
    text = f"replace {old} by {_TITLES[new]} in {counted(len(layers), 'place')}"
    names, transposed = weight_names(m, list({x.name: x for y in layers for x in feeders(m, y)}.values()))
    if initialize and names and not is_tuned(m):
        settings |= {"init": "he-init", "gain": round(2**0.5, 4), "activation": new, "initialized": listed(list(dict.fromkeys(names)))}
        if transposed:
            settings["transposed"] = listed(transposed)
        text += ", the weights before them initialised with kaiming_normal_, zero biases"
    return replace_activation.fix(text, finding, layers=tuple(x.name for x in layers), settings=settings)


_TITLES = {"relu": "ReLU", "leaky_relu": "LeakyReLU(0.01)", "gelu": "GELU", "tanh": "tanh"}

# ----------------------------------------------------------------------- insert-activation


@rebuilding(
    "insert-activation",
    "an activation between two linear layers",
    "Goodfellow et al. 2016, Deep Learning, section 6.3",
    checkpoint="keys of a wrapped layer change where it is not in an nn.Sequential; weights trained without the activation do not fit",
)
def insert_activation(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Between two layers in a row, the activation that the model uses elsewhere."""
    if finding is None:
        return []
    pairs = [p for p in m.pairs if p.alone and p.first in finding.layers and p.second in finding.layers]
    layers = [x for x in in_order(m) if x.name in {p.first for p in pairs}]
    if not layers:
        return []
    usual = usual_activation([x for x in body_layers(m) if x.activation in MODULES]) or "relu"
    settings = {"activation": usual, **places(layers)}
    text = f"put {usual} between {pairs[0].first} and {pairs[0].second}"
    text += f", and in {counted(len(pairs) - 1, 'more place')}" if len(pairs) > 1 else ""
    return [insert_activation.fix(text, finding, layers=tuple(x.name for x in layers), settings=settings)]


@insert_activation.applies
def apply_insertion(treated: TreatedWorkload, fix: Fix) -> None:
    """Puts an activation after each layer: after a module, or around a functional call."""
    kind, sites = str(fix.settings["activation"]), sites_of(fix)
    with rewired(treated):
        for name in fix.layers:
            if ":" in name:
                rewrite(treated, sites.get(name), lambda node, _: call_of(kind, node))
            else:
                follow(treated, name, module_of(kind))


@of_loss(
    "remove-output-activation",
    "no activation before the loss",
    "PyTorch documentation, torch.nn.CrossEntropyLoss and BCEWithLogitsLoss: the input is logits; Pang et al. 2020",
    checkpoint="keys stay the same; predictions need the activation where they are read",
)
def remove_output_activation(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Nothing between last layer and loss; a sigmoid for one unit whose loss takes probabilities."""
    call = _call_of(finding, m)
    layer = m.layer(call.producer_layer) if call is not None and call.producer_layer is not None else None
    if call is None and finding is not None:
        return _in_code(finding, m)
    if call is None or layer is None or layer.calls > 1:
        return []  # called more than once, it is a hidden layer's activation too
    function = str(call.producer)
    settings: dict[str, Setting] = {"function": function}
    text = f"hand the loss the values before {function} ({layer.name}); apply {function} only where predictions are read"
    if call.function == "binary_cross_entropy" and function in ("softmax", "log_softmax"):
        settings["new"] = "sigmoid"
        text = f"put a sigmoid in place of {function} over one unit"
    return [remove_output_activation.fix(text, finding, layers=(layer.name,), settings=settings)]


@remove_output_activation.applies
def remove_activation(treated: TreatedWorkload, fix: Fix) -> None:
    """Takes the activation away, or puts a sigmoid in its place."""
    if not fix.layers:
        edit_code(treated, fix.location, operand)
        return
    with rewired(treated):
        for name in fix.layers:
            replace_one(treated, name, fix.location, str(fix.settings.get("new", "identity")))


def _in_code(finding: Finding, m: Measurement) -> list[Fix]:
    """A function that no layer calls: the forward method of the model does, or the loop."""
    call = next((c for c in m.losses if c.producer in _ACTIVATIONS and not c.producer_layer and c.producer_site == finding.location), None)
    if call is None or finding.location is None:
        return []
    text = f"hand the loss the values before {call.producer}; apply {call.producer} only where predictions are read"
    return [remove_output_activation.fix(text, finding, settings={"function": str(call.producer)})]


def _call_of(finding: Finding | None, m: Measurement) -> LossCall | None:
    """The loss whose input an activation makes, at the finding's place where it has one."""
    made = [c for c in m.losses if c.producer in _ACTIVATIONS and c.producer_layer is not None]
    here = [c for c in made if finding is not None and c.producer_layer in finding.layers]
    return next(iter(here), None)


_ACTIVATIONS = frozenset("softmax log_softmax sigmoid relu relu6 tanh softplus hardtanh hardsigmoid elu leaky_relu gelu silu".split())

REMEDIES = (remove_output_activation, replace_activation, insert_activation)


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


def write_other(p: Fix, context: Context) -> None:
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
            draft.replace(node, module(draft, new, p))
        return
    operand = operand_of(draft, call)
    if operand is None:
        _passed_class(draft, place, new, p)
        return
    text = in_place_of(draft, operand, call) if new == "identity" else applied(draft, new, draft.source(operand), p)
    draft.replace(call, text)


def operand_of(draft: Draft, call: ast.Call) -> ast.expr | None:
    """x in `torch.relu(x)`, `F.relu(x)` and `x.relu()`; None for anything else."""
    if called(call).rstrip("_") not in CLASSES:
        return None
    if isinstance(call.func, ast.Attribute):
        holder = dotted(call.func.value)
        if holder.split(".")[0] not in ("torch", "F", "nn", "functional") and not original(draft, holder).startswith("torch"):
            return call.func.value
    return argument(call, "input", 0)


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
    named = [n for kind in (ast.Name, ast.Attribute) for n in every(draft.tree, kind) if dotted(n).rpartition(".")[2] == wanted]
    given = [n for n in named if not isinstance(a := draft.parent(n), ast.Attribute) and not (isinstance(a, ast.Call) and a.func is n)]
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
    "replace-activation": write_other,
    "insert-activation": insert,
    "remove-output-activation": remove_from_output,
}
