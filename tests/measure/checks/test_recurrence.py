"""The gradient through time against a slow second implementation, and which loops count as recurrences."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.recurrence import aligned, farthest_first, forget_bias, recurrences, slope, spectral_radius
from gradcheck.types.checks import Recurrence
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import fork
from tests.measure.workloads import cross_entropy_step, workload

STEPS, FEATURES, CLASSES, UNITS = 20, 5, 3, 12
Tensor = torch.Tensor


def batch(every: bool = False) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, STEPS, FEATURES, generator=g), torch.randint(CLASSES, (8, STEPS) if every else (8,), generator=g)


def context(model: nn.Module, data: Any, step: Callable[..., Tensor] = cross_entropy_step) -> CheckContext:
    w = workload(model, step=step, batches=[data])
    return CheckContext(w, 0, time.perf_counter() + 1e6, {}, fork(w), Run("probe", ()), None)


def found(model: nn.Module, data: Any = None, **more: Any) -> tuple[Recurrence, ...]:
    return recurrences(context(model, batch() if data is None else data, **more)) or ()


class Fused(nn.Module):
    """A fused layer and a head on what `read` takes of its outputs [N, T, U]."""

    def __init__(self, kind: type[nn.RNNBase], read: Callable[[Tensor], Tensor] = lambda o: o[:, -1], **more: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.read = kind(FEATURES, UNITS, batch_first=True, **more), read
        self.head = nn.Linear(UNITS * (1 + self.rnn.bidirectional), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.read(self.rnn(x)[0]))
        return y.transpose(1, 2) if y.dim() == 3 else y


class Loop(nn.Module):
    """A loop over time around `cell(x, h)`, a head on the last state, or on all of them."""

    def __init__(self, cell: nn.Module, every: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head, self.every = cell, nn.Linear(UNITS, CLASSES), every

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        states = torch.stack(outputs, 1)
        return self.head(states).transpose(1, 2) if self.every else self.head(states[:, -1])


class Concat(nn.Module):
    """tanh of one linear layer of input and state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES + UNITS, UNITS)

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        h = x.new_zeros(len(x), UNITS) if h is None else h
        return torch.tanh(self.linear(torch.cat([x, h], 1)))


class Functional(nn.Module):
    """Parameters and F-calls, no module that is called in the loop; tokens as input where `tokens`."""

    def __init__(self, slices: str = "select") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.u = nn.Parameter(torch.eye(UNITS) * 0.5), nn.Parameter(torch.randn(UNITS, FEATURES) / 3)
        self.embed, self.head, self.slices = nn.Embedding(FEATURES, FEATURES), nn.Linear(UNITS, CLASSES), slices

    def forward(self, x: Tensor) -> Tensor:
        if self.slices == "tokens":
            x = self.embed(x[..., 0].long().clamp(0, FEATURES - 1))
        if self.slices == "one-hot":
            x = F.one_hot(x[..., 0].long().clamp(0, FEATURES - 1), FEATURES).float()
        h = x.new_zeros(len(x), UNITS)
        for x_t in x.unbind(1) if self.slices == "unbind" else x.transpose(0, 1) if self.slices == "iterate" else x.split(1, 1):
            h = torch.tanh(F.linear(x_t.reshape(len(h), -1), self.u) + h @ self.w)
        return self.head(h)


class FixedPoint(nn.Module):
    """Twelve rounds of the same layers on the same input: depth, not time."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u, self.head = nn.Linear(UNITS, UNITS), nn.Linear(FEATURES, UNITS), nn.Linear(UNITS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = x.new_zeros(len(x), UNITS)
        for _ in range(12):
            z = torch.tanh(self.w(z) + self.u(x[:, 0]))
        return self.head(z)


class SharedBlocks(nn.Module):
    """One transformer block applied twelve times, with an embedding of the round."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(FEATURES - 1, 2, 16, batch_first=True)
        self.round, self.head = nn.Embedding(12, FEATURES - 1), nn.Linear(FEATURES - 1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., 1:]
        for i in range(12):
            x = self.block(x + self.round(torch.tensor(i)))
        return self.head(x.mean(1))


def slow_profile(model: nn.Module, data: tuple[Tensor, Tensor], output: Callable[[Tensor], Tensor] | None = None) -> list[float]:
    """Root mean square over samples of the gradient at the input of each step, one step at a time."""
    x = data[0].clone().requires_grad_()
    value = output(model.rnn(x)[0]) if output is not None else cross_entropy_step(model, (x, data[1]))  # type: ignore[operator]
    value.backward()
    assert x.grad is not None
    return [float((sum(g.double().square().sum() for g in x.grad[:, t]) / len(x)) ** 0.5) for t in range(x.shape[1])]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_fused_layers_agree_with_the_input_gradient(kind):
    model = Fused(kind, num_layers=2)
    (r,) = found(model)
    assert r.gradients == pytest.approx(slow_profile(model, batch()), rel=1e-4)
    assert (r.layer, r.type, r.steps, r.hidden, r.every_step) == ("rnn", kind.__name__, STEPS, UNITS, False)
    assert r.slope is not None and r.slope > 0.1


def test_losses_at_every_step_are_judged_by_the_last_output():
    model = Fused(nn.LSTM, lambda o: o)
    (r,) = found(model, batch(every=True))
    direction = torch.randn(8, UNITS, generator=torch.Generator().manual_seed(0))
    assert r.every_step
    assert r.gradients == pytest.approx(slow_profile(model, batch(), lambda o: (o[:, -1] * direction).sum()), rel=1e-4)


@pytest.mark.parametrize("read", [lambda o: o.mean(1), lambda o: o.amax(1), lambda o: (o.softmax(1) * o).sum(1)])
def test_pooling_over_time_sees_every_step(read):
    assert [r.every_step for r in found(Fused(nn.GRU, read))] == [True]


def test_packed_sequences_are_counted_from_their_ends():
    lengths = torch.tensor([20, 18, 16, 15, 14, 12, 10, 9])

    class Packed(Fused):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(pack_padded_sequence(x, lengths[: len(x)], batch_first=True))[1][0][-1])

    class Padded(Fused):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][torch.arange(len(x)), lengths[: len(x)] - 1])

    (packed,), (padded,) = found(Packed(nn.LSTM)), found(Padded(nn.LSTM))
    assert len(packed.gradients) == 15 and packed.gradients == pytest.approx(padded.gradients, rel=1e-4)


def test_sequence_first_and_bidirectional():
    class SequenceFirst(Fused):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.transpose(0, 1))[0][-1])

    model = SequenceFirst(nn.GRU)
    model.rnn.batch_first = False
    assert found(model)[0].gradients == pytest.approx(found(Fused(nn.GRU))[0].gradients, rel=1e-4)
    (r,) = found(Fused(nn.LSTM, lambda o: torch.cat([o[:, -1, :UNITS], o[:, 0, UNITS:]], 1), bidirectional=True))
    assert len(r.gradients) < STEPS and r.gradients[0] == min(r.gradients)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (nn.RNNCell(FEATURES, UNITS), "RNNCell"),
        (nn.GRUCell(FEATURES, UNITS), "GRUCell"),
        (nn.LSTMCell(FEATURES, UNITS), "LSTMCell"),
        (Concat(), "Concat"),
    ],
)
def test_loops_around_cells(cell, kind):
    (r,) = found(Loop(cell))
    assert (r.layer, r.type, r.steps, r.hidden, r.every_step) == ("cell", kind, STEPS, UNITS, False)
    assert r.slope is not None and r.slope > 0.1
    (r,) = found(Loop(cell, every=True), batch(every=True))
    assert r.every_step


@pytest.mark.parametrize("slices", ["split", "unbind", "iterate", "tokens", "one-hot"])
def test_loops_of_functional_calls(slices):
    (r,) = found(Functional(slices))
    assert (r.layer, r.type, r.steps) == ("", "Functional", STEPS)
    assert r.spectral_radius == pytest.approx(0.5) and r.slope == pytest.approx(0.301, abs=0.1)  # tanh takes a little more


def test_a_fused_layer_called_step_by_step_is_a_loop():
    class Streaming(Fused):
        def forward(self, x: Tensor) -> Tensor:
            state = None
            for t in range(x.shape[1]):
                y, state = self.rnn(x[:, t : t + 1], state)
            return self.head(y[:, 0])

    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        assert [(r.type, r.steps) for r in found(Streaming(kind))] == [(kind.__name__, STEPS)]


def test_the_loop_agrees_with_the_fused_layer():
    """The gradient at W_hh h is that at W_ih x: the input's, but for one constant matrix."""
    fused, loop = Fused(nn.RNN), Loop(nn.RNNCell(FEATURES, UNITS))
    for name, p in fused.rnn.named_parameters():
        getattr(loop.cell, name.removesuffix("_l0")).data.copy_(p)
    loop.head.load_state_dict(fused.head.state_dict())
    (a,), (b,) = found(fused), found(loop)
    assert a.slope == pytest.approx(b.slope, rel=0.1) and a.spectral_radius == pytest.approx(b.spectral_radius)


@pytest.mark.parametrize("model", [FixedPoint(), SharedBlocks(), nn.Sequential(nn.Flatten(), nn.Linear(STEPS * FEATURES, CLASSES))])
def test_depth_is_not_time(model):
    assert found(model) == ()


def test_short_sequences_are_not_looked_at():
    x, y = batch()
    assert found(Fused(nn.LSTM), (x[:, :7], y)) == () and found(Loop(nn.GRUCell(FEATURES, UNITS)), (x[:, :7], y)) == ()


def test_the_model_is_left_as_it_was():
    model = Fused(nn.LSTM)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not model.rnn._forward_hooks and not model.rnn._forward_pre_hooks


def test_aligned_counts_back_from_the_last_entry():
    norms = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 0.0]], dtype=torch.double)
    assert aligned(norms) == pytest.approx([1.0, ((4 + 25) / 2) ** 0.5, ((9 + 36) / 2) ** 0.5])
    assert aligned(torch.zeros(3, 2)) == []


def test_farthest_first():
    assert farthest_first([1.0, 2.0, 3.0], both_ways=False) == [1.0, 2.0, 3.0]
    assert farthest_first([9.0, 1.0, 2.0, 3.0], both_ways=True) == [1.0, 9.0]
    assert farthest_first([3.0, 1.0, 2.0, 9.0], both_ways=True) == [1.0, 2.0, 9.0]


def test_slope_skips_what_underflowed():
    assert slope([0.0, 0.0, 1e-3, 1e-2, 1e-1]) == pytest.approx(1.0)
    assert slope([0.0, 1.0, 1.0]) is None


def test_spectral_radius_and_forget_bias():
    assert spectral_radius([torch.eye(3) * 0.9, torch.diag(torch.tensor([0.1, 0.5]))]) == pytest.approx(0.5)
    assert spectral_radius([torch.zeros(3, 2)]) is None and spectral_radius([]) is None
    lstm = nn.LSTM(2, 4, 2, bidirectional=True)
    for name, p in lstm.named_parameters():
        if "bias" in name:
            p.data.zero_()[4:8] = 0.5
    lstm.bias_hh_l1_reverse.data[4:8] = -2.0
    assert forget_bias(lstm) == pytest.approx(-1.5)
    assert forget_bias(nn.LSTM(2, 4, bias=False)) is None
