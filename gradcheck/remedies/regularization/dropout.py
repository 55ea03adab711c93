"""Treatments of dropout: put after activations, or set to another rate; and edits of rates of other regularization."""

import ast
import functools
import types
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from gradcheck.analysis.layer_groups import hidden_activations
from gradcheck.measure.checks.without_regularization import RATES
from gradcheck.remedies.activation import placed, places, sites_of
from gradcheck.remedies.definition import Settings, Strength, regularizing
from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import argument, called, class_of, definition, is_literal, reads, set_argument, values
from gradcheck.remedies.editing.placing import New, put_behind, wrap
from gradcheck.remedies.layer_selection import listed
from gradcheck.remedies.loss import write_loss
from gradcheck.remedies.modules.rewriting import rewrite, rewrite_method, torch_function
from gradcheck.remedies.modules.surgery import follow, module_at
from gradcheck.remedies.optimizer import write_settings
from gradcheck.types.checks import Dropout
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

DROPPED = 0.2
MOST_IN_A_ROW = 4  # at that rate: each one divides the share of a value that arrives, and is not noise, by 1 / (1 - rate)


def _words(s: Settings) -> str:
    form = "drop {rate:.0%} of the values behind each hidden activation" if s["insert"] else "set the rate of dropout to {rate:.2g}"
    return form.format_map(s)


@regularizing(
    "dropout",
    "dropout",
    "Srivastava et al. 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    applicability="unsafe",
    strengths=(Strength("rate", DROPPED, 0.02, 0.8, log=False),),
    wording=_words,
)
def dropout(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Another rate for the dropouts that there are; else dropout after the activations between the layers."""
    present = m.regularization.dropouts if m.regularization is not None else ()
    if present:
        chosen = [d for d in present if not d.attention] or list(present)
        rate = DROPPED if chosen[0].rate < DROPPED else min(0.5, chosen[0].rate + 0.2)
        layers = tuple(d.layer for d in chosen)
        return [replace(dropout.with_settings(finding, layers, rate=rate, insert=False, **places_of(chosen)), applicability="safe")]
    found = hidden_activations(m, [x.function for x in m.of_kind("activation") if x.function])
    layers = tuple(x.name for x in found)
    return [dropout.with_settings(finding, layers, rate=DROPPED, insert=True, **places(found))] if found else []


def places_of(dropouts: Sequence[Dropout]) -> dict[str, Setting]:
    """Where the functional ones are called."""
    return placed((d.layer, d.site) for d in dropouts)


@dropout.applies
def drop(treated: TreatedWorkload, p: Fix) -> None:
    rate = float(p.settings["rate"])
    if not p.settings["insert"]:
        for name in p.layers:
            set_dropout(treated, name, rate, p)
        return
    sites, done = sites_of(p), set[Location]()
    for name in p.layers:
        if ":" not in name:
            insert_dropout(treated, name, rate)
        elif (site := sites.get(name)) is None:
            raise Inapplicable(f"the place of {name} in the source is not known")
        elif site not in done:
            rewrite(treated, site, functools.partial(_dropped, rate))
            done.add(site)


def insert_dropout(treated: TreatedWorkload, name: str, rate: float) -> None:
    """After an activation module, whose parameters, where it has any, would get other names."""
    if list(module_at(treated, name).parameters()):
        raise Inapplicable(f"dropout behind {name} would rename its parameters")
    follow(treated, name, nn.Dropout(rate))


def _dropped(rate: float, node: ast.expr, method: types.FunctionType) -> ast.expr:
    """dropout(node, rate, self.training)."""
    training = ast.Attribute(ast.Name(method.__code__.co_varnames[0], ast.Load()), "training", ast.Load())
    return torch_function("nn.functional.dropout", node, ast.Constant(rate), training)


class _AtRate(ast.NodeTransformer):
    """Every call of a function of dropout with another rate."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if not name.endswith("dropout") or len(node.args) + len(node.keywords) < 2:
            return node
        keywords = [k for k in node.keywords if k.arg != "p"]
        positional = [*node.args[:1], ast.Constant(self.rate), *node.args[2:]]
        return ast.copy_location(ast.Call(node.func, positional, keywords), node)


def set_dropout(treated: TreatedWorkload, name: str, rate: float, p: Fix) -> None:
    """Of a dropout module, of the dropout inside attention or recurrent layers, or of a call whose rate is an attribute or a number."""
    holder, called, _ = name.partition(":")
    module = module_at(treated, holder)
    if not called and isinstance(module, nn.modules.dropout._DropoutNd):
        module.p = rate
    elif not called and isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        module.dropout = rate
    elif attributes := [a for a in RATES if isinstance(getattr(module, a, None), float)]:
        setattr(module, attributes[0], rate)
    else:
        rewrite_method(treated, sites_of(p).get(name, p.location), _AtRate(rate).visit)


@regularizing(
    "lower-dropout", "weaker dropout", "Srivastava et al. 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting"
)
def lower_dropout(finding: Finding | None, m: Measurement) -> list[Fix]:
    """What a finding names; without one what drops more than so many in a row should: deep signals drown in its noise
    (Schoenholz et al. 2017, Deep Information Propagation)."""
    present = [d for d in m.regularization.dropouts if d.rate > 0] if m.regularization is not None else []
    named = present if finding is None else [d for d in present if finding.layers and d.layer in finding.layers]
    rate = _in_a_row(len(named)) if named else 0.0
    named = [d for d in named if d.rate > rate]
    if not named:
        return []
    settings: dict[str, Setting] = {"rate": rate, **places_of(named)}
    layers = tuple(d.layer for d in named)
    text = f"lower the rate of {listed(layers)} from {max(d.rate for d in named):.2g} to {rate:g}"
    return [lower_dropout.fix(text, finding, layers=layers, settings=settings)]


def _in_a_row(count: int) -> float:
    """The rate at which so many dropouts together drop as much as a few at the usual rate."""
    return float(f"{1 - (1 - DROPPED) ** min(1.0, MOST_IN_A_ROW / count):.2g}")


@lower_dropout.applies
def apply_lower_dropout(treated: TreatedWorkload, p: Fix) -> None:
    for name in p.layers:
        set_dropout(treated, name, float(p.settings["rate"]), p)


REMEDIES = (dropout, lower_dropout)


# Layers of torch that take the rate of the dropouts inside them.
HOLDERS = ("TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer", "MultiheadAttention", "LSTM", "GRU", "RNN")


def write_dropout(p: Fix, context: Context) -> None:
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
    found = values(draft, given.id)
    only = all("dropout" in called(draft.parent(n) or n).lower() for n in reads(draft, given.id))
    return found[0] if only and len(found) == 1 and is_literal(found[0]) else definition(draft, given)


def write_new_dropout(p: Fix, context: Context) -> None:
    """Another rate; or dropout after activations."""
    if not p.settings.get("insert", True):
        write_dropout(p, context)
        return
    rate = literal(number(p, "rate"))
    functional = [x for x in p.layers if ":" in x]
    modules = [x for x in p.layers if ":" not in x]
    for place in context.sites(functional):
        draft, call = context.call_at(place)
        if class_of(draft, call) is None:
            raise Unwritable(f"{place}: it is not in a module of yours")
        wrap(draft, call, f"{spelled(draft, 'torch.nn.functional.dropout')}(", f", {rate}, self.training)")
    if modules:
        put_behind(context, modules, New(lambda draft, _: f"{spelled(draft, 'torch.nn.Dropout')}({rate})", "dropout"))


def less(p: Fix, context: Context) -> None:
    if "weight_decay" in p.settings:
        write_settings.decay(p, context)
    if "rate" in p.settings:
        write_dropout(p, context)
    if "smoothing" in p.settings:
        write_loss.smoothing(p, context)


def ridge(p: Fix, context: Context) -> None:
    """weight_decay, where that is an L2 penalty."""
    facts = context.measurement.optimizer
    if facts.decoupled or facts.name not in ("SGD", "Adam", "Adagrad", "RMSprop", "Adadelta", "NAdam", "RAdam", "Adamax", "Rprop"):
        raise Unwritable(f"weight_decay of {facts.name} is no L2 penalty")
    write_settings.keyword(context, "weight_decay", literal(facts.weight_decay + number(p, "weight_decay"), 2))


WRITERS: dict[str, Writer] = {"lower-dropout": write_dropout, "dropout": write_new_dropout, "less-regularization": less, "l2": ridge}
