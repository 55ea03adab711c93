"""Where models start: scale and bias of the output, gates and recurrent weights."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.initialization import head as output
from gradcheck.remedies.initialization import recurrent
from gradcheck.workload.treated import Inapplicable, treated_copy
from tests.remedies.patients import batches, finding, losses, measured, outputs, patient, plain, proposed, treated, unchanged, workload

# -------------------------------------------------------------------------------- the head


def test_logits_start_with_standard_deviation_one() -> None:
    model = plain(3)
    nn.init.normal_(model[6].weight, std=20.0)
    nn.init.normal_(model[6].bias, std=5.0)
    with unchanged(model):
        one = treated(output.head_scaling, model, finding("LOSS003", "6"))
    assert outputs(one).std().item() == pytest.approx(1.0, rel=0.1)
    assert not one.model[6].bias.any()
    ratio = one.model[6].weight / model[6].weight
    torch.testing.assert_close(ratio, ratio[:1, :1].expand(4, 32))


def test_a_bias_that_is_too_large_alone_is_zeroed_and_the_weights_stay() -> None:
    model = plain(3)
    with torch.no_grad():
        model[6].bias.copy_(torch.tensor([50.0, 0.0, -50.0, 20.0]))
    one = treated(output.head_scaling, model, finding("LOSS003", "6"))
    assert outputs(one).std().item() < 1 and one.model[6].weight.abs().max() > 0.01


def test_a_quiet_head_and_one_behind_an_explosion_are_left() -> None:
    assert not output.head_scaling.propose(finding("LOSS003", "6"), measured(plain(3)))
    assert not output.head_scaling.propose(None, measured(plain(12, std=1.0)))


def test_values_start_with_the_spread_of_their_targets() -> None:
    data = [(x, 100.0 + 10.0 * y.float()[:, None]) for x, y in batches()]
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    nn.init.normal_(model[2].weight, std=300.0)
    work = workload(model, data, loss=F.mse_loss)
    m = scan_workload(work, Settings(fast=True)).measurement
    (p,) = output.head_scaling.propose(finding("LOSS003", "2"), m)
    one = treated_copy(work)
    output.scale_head(one, p)
    spread = torch.cat([y for _, y in data]).std().item()
    assert outputs(one).std().item() == pytest.approx(spread, rel=0.25)


# -------------------------------------------------------------------------------- the prior


def imbalanced() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x, (y == 0).long() * (torch.arange(len(y)) % 4 == 0)) for x, y in batches()]


def test_classes_start_at_their_frequencies() -> None:
    data = imbalanced()
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    with unchanged(model):
        one = treated(output.prior_bias, model, finding("INIT008", "2"), data=data)
    counts = Counter(torch.cat([y for _, y in data]).tolist())
    total = sum(counts.values())
    slow = [math.log((counts[c] + 1) / (total + 2)) for c in range(2)]
    assert one.model[2].bias.tolist() == pytest.approx(slow, rel=1e-3)


BEST = [(F.binary_cross_entropy_with_logits, math.log(0.25 / 0.75)), (F.mse_loss, 0.25)]


@pytest.mark.parametrize(("loss", "expected"), BEST, ids=["odds", "mean"])
def test_one_unit_starts_at_the_best_constant(loss: object, expected: float) -> None:
    data = [(x, (torch.arange(len(y)) % 4 == 0).float()[:, None]) for x, y in batches()]
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    m = scan_workload(workload(model, data, loss=loss), Settings(fast=True)).measurement
    (p,) = output.prior_bias.propose(finding("INIT008", "2"), m)
    assert float(str(p.settings["bias"])) == pytest.approx(expected, rel=1e-3)


def test_no_bias_and_another_number_of_units_are_refused() -> None:
    one, three = (output.prior_bias.fix("", layers=("0",), settings={"bias": value}) for value in ("0.5", "1,2,3"))
    with pytest.raises(Inapplicable, match="no bias"):
        output.set_prior(patient(nn.Sequential(nn.Linear(16, 4, bias=False))), one)
    with pytest.raises(Inapplicable, match="4 units, not 3"):
        output.set_prior(patient(nn.Sequential(nn.Linear(16, 4))), three)


# ------------------------------------------------------------------------- recurrent layers


class Last(nn.Module):
    """The loss sees the last of many steps; the label is in the first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = layer, nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.rnn(x)[0][:, -1]
        return self.head(states[..., :24])


SEQUENCES = batches((20, 16))


def fused(kind: type[nn.RNNBase], **options: object) -> nn.Module:
    torch.manual_seed(0)
    return Last(kind(16, 24, batch_first=True, **options))


def test_forget_gates_of_all_layers_and_directions_start_open() -> None:
    model = fused(nn.LSTM, num_layers=2, bidirectional=True)
    with unchanged(model):
        one = treated(recurrent.forget_bias, model, finding("INIT004", "rnn"), data=SEQUENCES)
    for name, p in one.model.rnn.named_parameters():
        original = model.rnn.get_parameter(name)
        if name.startswith("bias"):
            assert p[24:48].eq(1.0 if "_ih" in name else 0.0).all(), name
            assert torch.equal(torch.cat([p[:24], p[48:]]), torch.cat([original[:24], original[48:]])), name
        else:
            assert torch.equal(p, original)


def test_memories_of_all_lengths() -> None:
    model = fused(nn.LSTM)
    p = recurrent.chrono_init.fix("", layers=("rnn",), settings={"steps": 20})
    one = patient(model, SEQUENCES)
    recurrent.chrono(one, p)
    bias = one.model.rnn.bias_ih_l0 + one.model.rnn.bias_hh_l0
    lengths = bias[24:48].exp()
    assert torch.equal(bias[:24], -bias[24:48]) and lengths.min() >= 1 and lengths.max() <= 19
    assert 5 < lengths.mean() < 15
    other = patient(model, SEQUENCES)
    recurrent.chrono(other, p)
    assert torch.equal(one.model.rnn.bias_ih_l0, other.model.rnn.bias_ih_l0)


def test_the_update_gate_of_a_gru_keeps_its_state() -> None:
    one = patient(fused(nn.GRU), SEQUENCES)
    recurrent.chrono(one, recurrent.chrono_init.fix("", layers=("rnn",), settings={"steps": 20}))
    gate = (one.model.rnn.bias_ih_l0 + one.model.rnn.bias_hh_l0)[24:48]
    assert gate.min() >= 0 and gate.max() <= math.log(19)
    with pytest.raises(Inapplicable, match="no LSTM"):
        recurrent.remember(one, recurrent.forget_bias.fix("", layers=("rnn",), settings={"value": 1.0}))


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_weights_are_orthogonal_gate_by_gate(kind: type[nn.RNNBase], gates: int) -> None:
    model = fused(kind, num_layers=2)
    one = treated(recurrent.orthogonal_recurrent, model, finding("INIT004", "rnn"), data=SEQUENCES)
    for name in ("weight_hh_l0", "weight_hh_l1"):
        for gate in range(gates):
            block = one.model.rnn.get_parameter(name)[24 * gate : 24 * (gate + 1)].double()
            torch.testing.assert_close(block @ block.T, torch.eye(24, dtype=torch.double), atol=1e-5, rtol=0)
    assert torch.equal(one.model.rnn.weight_ih_l0, model.rnn.weight_ih_l0)
    assert losses(one)[-1] < losses(one)[0]


def test_a_layer_without_biases_is_refused() -> None:
    one = patient(fused(nn.LSTM, bias=False), SEQUENCES)
    with pytest.raises(Inapplicable, match="no biases"):
        recurrent.remember(one, recurrent.forget_bias.fix("", layers=("rnn",), settings={"value": 1.0}))


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.take, self.keep, self.head = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), 24)
        for step in range(x.shape[1]):
            state = torch.tanh(self.take(x[:, step]) + self.keep(state))
        return self.head(state)


def test_a_recurrence_written_by_hand() -> None:
    p = proposed(recurrent.orthogonal_recurrent, ByHand(), finding("GRAD003"), data=SEQUENCES, rule="GRAD003")
    assert p.layers == ("keep",)
    one = patient(ByHand(), SEQUENCES)
    recurrent.orthogonal_recurrent.apply(one, p)
    w = one.model.keep.weight
    torch.testing.assert_close(w @ w.T, torch.eye(24), atol=1e-5, rtol=0)
