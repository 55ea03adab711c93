"""Elman layers become LSTMs and GRUs of the same sizes, where the model can use their state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies import recurrence
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from tests import literals
from tests.remedies.patients import batches, finding, held, losses, measured, outputs, patient, treated, unchanged

STEPS, FEATURES, HIDDEN, CLASSES = 24, 16, 12, 4
SEQUENCES = batches((5, FEATURES))
VANISHES = finding("GRAD003", "rnn")
Read = Callable[[Any, Any], torch.Tensor]


def last_output(output: torch.Tensor, state: Any) -> torch.Tensor:
    return output[:, -1]


def last_state(output: torch.Tensor, state: Any) -> torch.Tensor:
    return state[-1]


class Reader(nn.Module):
    """A recurrent layer and a head that reads what the layer returns in its own way."""

    def __init__(self, layer: nn.Module, read: Read = last_output, width: int = HIDDEN, classes: int = CLASSES) -> None:
        super().__init__()
        self.rnn, self.read, self.head = layer, read, nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.read(*self.rnn(x)))


def elman(read: Read = last_output, *, features: int = FEATURES, **options: Any) -> Reader:
    torch.manual_seed(0)
    width = HIDDEN * (2 if options.get("bidirectional") and read is last_output else 1)
    return Reader(nn.RNN(features, HIDDEN, batch_first=True, **options), read, width)


def order(kind: str = "LSTM", *layers: str) -> Fix:
    return recurrence.gated_recurrence.fix("", layers=layers or ("rnn",), settings={"kind": kind})


def given(kind: str, model: nn.Module, data: Any = SEQUENCES, optimizer: torch.optim.Optimizer | None = None) -> TreatedWorkload:
    one = patient(model, data, optimizer)
    recurrence.gate(one, order(kind))
    return one


OPTIONS = [{}, {"num_layers": 2, "dropout": 0.3, "bidirectional": True}, {"nonlinearity": "relu"}, {"bias": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "plain")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_new_layer_is_what_one_would_have_made_by_hand(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    model = elman(**options)
    with unchanged(model):
        layer = given(kind.__name__, model).model.rnn
    by_hand = kind(FEATURES, HIDDEN, batch_first=True, **{k: v for k, v in options.items() if k != "nonlinearity"})
    assert type(layer) is kind and repr(layer) == repr(by_hand)
    assert {n: p.shape for n, p in layer.named_parameters()} == {n: p.shape for n, p in by_hand.named_parameters()}
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in model.rnn.named_parameters()]


def test_the_forget_gates_of_all_layers_and_directions_start_open_and_nothing_else_does() -> None:
    layer = given("LSTM", elman(num_layers=2, bidirectional=True)).model.rnn
    biases = {n: p for n, p in layer.named_parameters() if n.startswith("bias")}
    assert len(biases) == 8
    for name, bias in biases.items():
        assert bias[HIDDEN : 2 * HIDDEN].eq(1.0 if "_ih" in name else 0.0).all(), name
        assert not torch.cat([bias[:HIDDEN], bias[2 * HIDDEN :]]).eq(0.0).any(), name


def test_the_weights_are_the_same_each_time_and_random_numbers_go_on_as_if_none_were_drawn() -> None:
    made = []
    for seed in (7, 8):
        one = patient(elman(), SEQUENCES)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        recurrence.gate(one, order())
        assert torch.equal(torch.get_rng_state(), before)
        made.append(one.model.rnn.weight_hh_l0)
    assert torch.equal(*made)


def test_type_mode_and_creation_site_are_those_of_the_old_layer() -> None:
    model = elman().double()
    model.rnn.eval()
    one = patient(model, [(x.double(), y) for x, y in SEQUENCES])
    place = literals.location(7)
    one.workload.sites = {**one.workload.sites, id(one.model.rnn): place}
    recurrence.gate(one, order())
    assert {p.dtype for p in one.model.rnn.parameters()} == {torch.float64}
    assert not one.model.rnn.training and one.model.head.training
    assert one.workload.sites[id(one.model.rnn)] == place


# ------------------------------------------------------------------------------- optimizer


def test_the_optimizer_holds_exactly_the_parameters_of_the_model_and_no_state_of_others() -> None:
    model = elman()
    one = patient(model, SEQUENCES, torch.optim.Adam(model.parameters(), lr=1e-3))
    one.workload.training_step(one.model, SEQUENCES[0]).backward()
    one.optimizer.step()
    recurrence.gate(one, order())
    assert held(one) == {id(p) for p in one.model.parameters()}
    assert sum(len(g["params"]) for g in one.optimizer.param_groups) == len(held(one))
    assert {id(p) for p in one.optimizer.state} == {id(p) for p in one.model.head.parameters()}


def test_a_group_of_its_own_keeps_its_rate() -> None:
    model = elman()
    groups = [{"params": list(model.head.parameters()), "lr": 0.5}, {"params": list(model.rnn.parameters()), "lr": 0.1}]
    one = given("GRU", model, optimizer=torch.optim.SGD(groups))
    rates = {id(p): group["lr"] for group in one.optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in one.model.rnn.parameters()} == {0.1}
    assert {rates[id(p)] for p in one.model.head.parameters()} == {0.5}


# ------------------------------------------------------------------- what the model does with it


def first_row(output: torch.Tensor, state: Any) -> torch.Tensor:
    return state.flatten(0, 1)


@pytest.mark.parametrize("read", [last_state, first_row])
def test_a_model_that_uses_the_state_as_a_tensor_gets_a_gru_and_no_lstm(read: Read) -> None:
    with pytest.raises(Inapplicable, match="does not run with it"):
        given("LSTM", elman(read))
    one = given("GRU", elman(read))
    assert losses(one)[-1] < losses(one)[0]


def test_a_loss_that_broadcasts_does_not_hide_another_shape_of_the_output() -> None:
    """`h[-1]` gives the cells of all layers where it gave the state of the last one, and a squared error takes them."""
    data = [(x, torch.randn(len(x), CLASSES)) for x, _ in SEQUENCES]
    for kind in ("LSTM", "GRU"):
        one = patient(elman(last_state, num_layers=2), data)
        one.replace_loss(F.mse_loss)
        if kind == "GRU":
            recurrence.gate(one, order(kind))
            assert outputs(one).shape == (64, CLASSES)
        else:
            with pytest.raises(Inapplicable, match=r"output changes shape.*nn\.LSTM"), pytest.warns(UserWarning, match="target size"):
                recurrence.gate(one, order(kind))


class Started(Reader):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x, x.new_ones(1, len(x), HIDDEN))[0][:, -1])


def test_a_state_that_the_model_passes_in_is_refused_by_an_lstm() -> None:
    model = Started(nn.RNN(FEATURES, HIDDEN, batch_first=True))
    with pytest.raises(Inapplicable, match="does not run with it"):
        given("LSTM", model)
    assert type(given("GRU", model).model.rnn) is nn.GRU


class Own(nn.RNN):
    """A class of the user."""


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.GRU(FEATURES, HIDDEN, batch_first=True), "not an nn.RNN of torch"),
        (Own(FEATURES, HIDDEN, batch_first=True), "not an nn.RNN of torch"),
        (nn.RNN(FEATURES, HIDDEN, batch_first=True).requires_grad_(False), "frozen"),
    ],
)
def test_what_is_not_replaced(layer: nn.Module, why: str) -> None:
    with pytest.raises(Inapplicable, match=why):
        given("LSTM", Reader(layer))


# ------------------------------------------------------------------------------ proposing


def of(*layers: tuple[str, str, str], **overrides: Any) -> Any:
    """A measurement with recurrent layers (name, type, kind), each created at a line of its own."""
    made = [literals.layer(n, k, type=t, order=i, site=literals.location(i + 1)) for i, (n, t, k) in enumerate(layers)]
    return literals.measurement(layers=tuple(made), **overrides)


TWO = (
    ("a", "RNN", "recurrent"),
    ("b", "RNN", "recurrent"),
    ("c", "LSTM", "recurrent"),
    ("d", "RNNCell", "recurrent"),
    ("e", "RNN", "container"),
)


def test_an_lstm_comes_first_and_a_gru_second() -> None:
    found = CATALOGUE["gated-recurrence"].propose(finding("GRAD003", "b"), of(*TWO))
    assert [(p.settings, p.layers) for p in found] == [({"kind": "LSTM"}, ("b",)), ({"kind": "GRU"}, ("b",))]
    assert all(p.applicability == "unsafe" and p.stage == "architecture" and "change their shapes" in p.checkpoint for p in found)
    assert all(p.findings == ("GRAD003",) for p in found)


@pytest.mark.parametrize("asked", [None, finding("GRAD003", "c"), finding("OPT001")])
def test_all_elman_layers_are_meant_when_none_is_named(asked: Any) -> None:
    assert [p.layers for p in recurrence.gated_recurrence.propose(asked, of(*TWO))] == [("a", "b"), ("a", "b")]


def test_layers_that_one_expression_makes_go_together() -> None:
    m = of(*TWO)
    m = literals.measurement(layers=tuple(literals.layer(x.name, x.kind, type=x.type, order=x.order) for x in m.layers))
    assert recurrence.gated_recurrence.propose(finding("GRAD003", "b"), m)[0].layers == ("a", "b")


@pytest.mark.parametrize("m", [of(*TWO[2:]), of(*TWO, pretrained=True)])
def test_nothing_for_gated_layers_cells_and_trained_models(m: Any) -> None:
    assert recurrence.gated_recurrence.propose(None, m) == []


def test_what_is_proposed_for_a_measured_model_can_be_applied() -> None:
    one = treated(recurrence.gated_recurrence, elman(), VANISHES, data=SEQUENCES)
    assert [x.type for x in measured(one.model, SEQUENCES).of_kind("recurrent")] == ["LSTM"]


# ------------------------------------------------------------------------------- training


def recalled() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sequences whose label is the first token; the other steps are hardly more than zero."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(50):
        y = torch.randint(2, (64,), generator=generator)
        x = torch.randn(64, STEPS, 6, generator=generator) / 100
        x[:, 0, :2] += 3 * F.one_hot(y, 2)
        made.append((x, y))
    return made


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_lstm_recalls_the_first_of_24_tokens_in_steps_that_leave_an_elman_layer_at_chance(seed: int) -> None:
    torch.manual_seed(seed)
    model = Reader(nn.RNN(6, 64, batch_first=True), width=64, classes=2)
    one = patient(model, recalled(), torch.optim.Adam(model.parameters(), lr=1e-3))
    chance, untreated = math.log(2), losses(one, 100)
    recurrence.gate(one, order())
    assert min(untreated) > 0.9 * chance
    assert max(losses(one, 100)[-8:]) < 0.1 * chance
