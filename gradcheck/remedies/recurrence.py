"""Elman layers replaced by gated ones, whose state is kept along the time steps instead of being multiplied at each of them."""

import ast
from collections.abc import Callable

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.remedies.definition import rebuilding
from gradcheck.remedies.editing.context import Context, Writer, literal, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import original, spelled
from gradcheck.remedies.editing.nodes import argument, dotted, remove_item
from gradcheck.remedies.initialization.recurrent import forget_bias, remember
from gradcheck.remedies.initialization.write_values import open_forget_gates
from gradcheck.remedies.layer_selection import is_tuned, made_with
from gradcheck.remedies.modules.surgery import like, module_at, require_running, rewired, swap
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.step import first_tensor
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

KINDS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
FORGET = 1.0  # Gers et al. 2000; Jozefowicz et al. 2015
Shape = tuple[int, ...]


@rebuilding(
    "gated-recurrence",
    "gated recurrent layers",
    "Hochreiter and Schmidhuber 1997, Long Short-Term Memory; Gers et al. 2000, Learning to Forget",
    checkpoint="the layers' parameters keep their keys and change their shapes: old checkpoints do not fit",
)
def gated_recurrence(finding: Finding | None, m: Measurement) -> list[Fix]:
    """For the Elman layers that the finding names, else for all: first an LSTM, then a GRU, whose state is a tensor, as theirs is."""
    elman = [] if is_tuned(m) else [x for x in m.of_kind("recurrent") if x.type == "RNN"]
    named = [x for x in elman if finding is not None and x.name in finding.layers]
    names = tuple(x.name for x in made_with(m, named or elman) if x.type == "RNN")
    if not names:
        return []
    those = ", ".join(names)
    words = {
        "LSTM": f"replace {those} by nn.LSTM with its forget gate's bias at 1: its state is kept until a gate says otherwise",
        "GRU": f"replace {those} by nn.GRU: its state is kept until a gate says otherwise, and its forward call returns the same",
    }
    return [gated_recurrence.fix(text, finding, layers=names, settings={"kind": kind}) for kind, text in words.items()]


@gated_recurrence.applies
def gate(treated: TreatedWorkload, fix: Fix) -> None:
    """Each Elman layer becomes an LSTM with open forget gates, or a GRU, of the same sizes and options.

    An LSTM returns (output, (h, c)) and an Elman layer (output, h): Inapplicable is raised when the model does not run with that, or
    when its output has another shape then, as after `h[-1]`, which is the last layer's state of the one and all cells of the other.
    """
    kind = str(fix.settings["kind"])
    before = _output_shape(treated)
    with rewired(treated), preserve_rng():
        torch.manual_seed(int(fix.settings.get("seed", 0)))
        for name in fix.layers:
            old = module_at(treated, name)
            new = _gated(KINDS[kind], old, name)
            _take_groups(treated, old, new)
            swap(treated, name, new)
            if kind == "LSTM" and new.bias:
                remember(treated, forget_bias.fix("", layers=(name,), settings={"value": FORGET}))
    if _output_shape(treated) != before:
        raise Inapplicable(f"its output changes shape: it uses the state of the layer, which is another one in nn.{kind}")


def _gated(kind: Callable[..., nn.RNNBase], old: nn.Module, name: str) -> nn.RNNBase:
    """An untrained layer with the options of an Elman layer, on its device and in its type."""
    if type(old) is not nn.RNN:  # what a subclass changes would be lost
        raise Inapplicable(f"{name} is not an nn.RNN of torch")
    if not any(p.requires_grad for p in old.parameters()):
        raise Inapplicable(f"the weights of {name} are frozen")
    new = kind(old.input_size, old.hidden_size, old.num_layers, old.bias, old.batch_first, bidirectional=old.bidirectional)
    new.dropout = old.dropout  # torch warns of it in a single layer, and did so when the user made this one
    like(new, old)
    return new


def _take_groups(treated: TreatedWorkload, old: nn.Module, new: nn.Module) -> None:
    """Parameters go to the places of those of their name, since a group of their own may have a rate of its own."""
    instead = {id(p): new.get_parameter(name) for name, p in old.named_parameters()}
    for group in treated.optimizer.param_groups:
        group["params"] = [instead.get(id(p), p) for p in group["params"]]


def _output_shape(treated: TreatedWorkload) -> Shape | None:
    """Of what the model returns in a training step; None where no batch or no call tells. Raises Inapplicable."""
    shapes: list[Shape | None] = []
    require_running(treated, lambda twin: twin.model.register_forward_hook(lambda *call: shapes.append(_shape(call[-1]))))
    return shapes[0] if shapes else None


def _shape(output: object) -> Shape | None:
    try:
        return tuple(first_tensor(output).shape)
    except TargetError:
        return None


REMEDIES = (gated_recurrence,)


NONLINEARITY = 3  # its position among the arguments of nn.RNN; nn.LSTM and nn.GRU have no such argument, and the others in that order


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
    by_name = isinstance(call.func, ast.Name)
    draft.replace(call.func, spelled(draft, f"torch.nn.{kind}") if by_name else draft.source(call.func).removesuffix("RNN") + kind)


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
