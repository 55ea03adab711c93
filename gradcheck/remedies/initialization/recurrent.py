"""Initial state of recurrent layers: gates that remember, recurrent weights that neither shrink nor grow.

torch adds two biases, `bias_ih` and `bias_hh`; the gate's value goes into the first and the second is zeroed. Its gates are, in order,
input, forget, cell, output (LSTM) and reset, update, new (GRU: an update gate of 1 keeps the state).
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from gradcheck.analysis.wording import counted
from gradcheck.remedies.definition import initial
from gradcheck.remedies.layer_selection import is_tuned
from gradcheck.remedies.modules.surgery import module_at
from gradcheck.types.checks import Recurrence
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}


def gates_of(module: nn.Module) -> int:
    """Blocks of rows in the weights of a recurrent module; 0 for other modules."""
    return next((GATES[base.__name__] for base in type(module).__mro__ if base.__name__ in GATES), 0)


def bias_pairs(module: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """(bias_ih, bias_hh) of each layer and direction, [gates * hidden]."""
    own = module._parameters
    for name, bias in own.items():
        if name.startswith("bias_ih") and bias is not None:
            other = own[name.replace("_ih", "_hh")]
            assert other is not None
            yield bias, other


@initial(
    "forget-bias", "forget gate that starts open", "Jozefowicz et al. 2015, An Empirical Exploration of Recurrent Network Architectures"
)
def forget_bias(finding: Finding | None, m: Measurement) -> list[Fix]:
    names = _fused(finding, m, ("LSTM",))
    if not names:
        return []
    text = f"set the forget gate's bias of {', '.join(names)} to 1: bias_ih 1, bias_hh 0"
    return [forget_bias.fix(text, finding, layers=tuple(names), settings={"value": 1.0})]


@forget_bias.applies
def remember(treated: TreatedWorkload, fix: Fix) -> None:
    """The forget gate's bias to a constant."""
    value = float(fix.settings["value"])
    _set_gates(treated, fix, ("LSTM",), lambda hidden, generator: torch.full((hidden,), value, device="cpu"), False)


@initial("chrono-init", "gate biases for memories of all lengths", "Tallec and Ollivier 2018, Can Recurrent Neural Networks Warp Time?")
def chrono_init(finding: Finding | None, m: Measurement) -> list[Fix]:
    names = _fused(finding, m, ("LSTM", "GRU"))
    steps = max((r.steps for r in m.recurrences if r.layer in names), default=0)
    if not names or steps < 3:
        return []
    text = f"draw the forget bias of {', '.join(names)} as log(uniform(1, {steps - 1})), the input bias as minus it: reaches {steps} steps"
    settings: dict[str, Setting] = {"steps": steps}
    return [chrono_init.fix(text, finding, layers=tuple(names), settings=settings)]


@chrono_init.applies
def chrono(treated: TreatedWorkload, fix: Fix) -> None:
    """Biases for memories of all lengths up to T: forget log(uniform(1, T - 1)), input its negative; GRU: the update gate."""
    longest = max(2.0, float(fix.settings["steps"]) - 1)

    def drawn(hidden: int, generator: torch.Generator) -> torch.Tensor:
        return torch.empty(hidden, device="cpu").uniform_(1.0, longest, generator=generator).log()

    _set_gates(treated, fix, ("LSTM", "GRU"), drawn, True)


def _set_gates(
    treated: TreatedWorkload, fix: Fix, kinds: tuple[str, ...], values: Callable[[int, torch.Generator], torch.Tensor], opposite: bool
) -> None:
    generator = torch.Generator().manual_seed(int(fix.settings.get("seed", 0)))
    for name in fix.layers:
        module = module_at(treated, name)
        gates, pairs = gates_of(module), list(bias_pairs(module))
        if not any(gates == GATES[kind] for kind in kinds):
            raise Inapplicable(f"{name} is no {' or '.join(kinds)}")
        if not pairs:
            raise Inapplicable(f"{name} has no biases")
        with torch.no_grad():
            for first, second in pairs:
                hidden = first.numel() // gates
                value = values(hidden, generator).to(first.device, first.dtype)
                gate = slice(hidden, 2 * hidden)  # LSTM: forget; GRU: update
                first[gate], second[gate] = value, torch.zeros_like(value)
                if opposite and gates == GATES["LSTM"]:
                    first[:hidden], second[:hidden] = -value, torch.zeros_like(value)


@initial(
    "orthogonal-recurrent",
    "orthogonal recurrent weights",
    "Saxe et al. 2014; Henaff et al. 2016, Recurrent Orthogonal Networks and Long-Memory Tasks",
)
def orthogonal_recurrent(finding: Finding | None, m: Measurement) -> list[Fix]:
    names = _fused(finding, m, ("LSTM", "GRU", "RNN")) or [x.name for r in _recurrences(finding, m) for x in _by_hand(m, r)]
    if not names:
        return []
    text = f"initialise the recurrent weights of {counted(len(names), 'layer')} with orthogonal_: spectral radius 1"
    return [orthogonal_recurrent.fix(text, finding, layers=tuple(names))]


@orthogonal_recurrent.applies
def apply_orthogonal_recurrent(treated: TreatedWorkload, fix: Fix) -> None:
    """Recurrent weights [gates * hidden, hidden], orthogonal gate by gate; square weights of hand-written layers whole."""
    generator = torch.Generator().manual_seed(int(fix.settings.get("seed", 0)))
    for name in fix.layers:
        module = module_at(treated, name)
        gates = gates_of(module)
        weights = [p for n, p in module._parameters.items() if n.startswith("weight_hh") and p is not None]
        if not gates:
            own = module._parameters.get("weight")
            gates, weights = 1, [own] if own is not None and own.dim() == 2 and own.shape[0] == own.shape[1] else []
        if not weights:
            raise Inapplicable(f"{name} has no recurrent weights of its own")
        with torch.no_grad():
            for weight in weights:
                for block in weight.chunk(gates):
                    block.copy_(nn.init.orthogonal_(torch.empty(block.shape, device="cpu"), generator=generator))


# ------------------------------------------------------------------------------ proposing


def _recurrences(finding: Finding | None, m: Measurement) -> list[Recurrence]:
    found = [r for r in m.recurrences if finding is None or not finding.layers or r.layer in finding.layers]
    return [] if is_tuned(m) else found


def _fused(finding: Finding | None, m: Measurement, kinds: tuple[str, ...]) -> list[str]:
    """Recurrent modules of these kinds that the finding is about."""
    named = {r.layer for r in _recurrences(finding, m)} | set(finding.layers if finding is not None else ())
    layers = [x for x in m.of_kind("recurrent") if x.type.removesuffix("Cell") in kinds]
    return [] if is_tuned(m) else [x.name for x in layers if finding is None or x.name in named]


def _by_hand(m: Measurement, r: Recurrence) -> list[Layer]:
    """Square linear layers of a hand-written recurrent module that run at every step."""
    prefix = f"{r.layer}." if r.layer else ""
    inside = [x for x in m.of_kind("linear") if x.name.startswith(prefix) and ":" not in x.name]
    return [x for x in inside if x.calls >= r.steps > 1 and x.output_shape and x.fan_in == x.output_shape[-1]]


REMEDIES = (forget_bias, chrono_init, orthogonal_recurrent)
