"""Which samples an output depends on, against one that replaces each sample in turn."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.dependence import dependence
from gradcheck.measure.checks.sample_axis import as_rows, swaps
from gradcheck.training.trainer import Trainer
from gradcheck.types.checks import Dependence
from gradcheck.workload.step import first_tensor
from gradcheck.workload.training_copy import fork
from gradcheck.workload.workload import Workload

N, T, D, CLASSES = 16, 6, 8, 3
Tensor = torch.Tensor


class Net(nn.Module):
    """[N, T, D] -> [N, CLASSES]; `middle` keeps the shape."""

    def __init__(self, middle: Any, last: Any = lambda y: y, pool: Any = lambda h: h.mean(1)) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(D, D), nn.Linear(D, CLASSES)
        self.middle, self.last, self.pool = middle, last, pool

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.pool(self.middle(self.first(x)))))


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(D, D, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Attending(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x)[0]


class Normed(nn.Module):
    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D, **more)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Tagger(nn.Module):
    """Token ids -> a class for each; its recurrent layer takes the first axis for time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(20, D), nn.LSTM(D, D), nn.Linear(D, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


def batches(*shape: int) -> list[Any]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(*shape, generator=g), torch.randint(CLASSES, (N,), generator=g)) for _ in range(2)]


def step(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).reshape(-1, CLASSES), batch[1].reshape(-1))


def context(model: nn.Module, data: list[Any] | None = None, *, steps: int = 3, loss: Any = step, **more: Any) -> CheckContext:
    w = Workload("test", model, data or batches(N, T, D), loss, torch.optim.Adam(model.parameters(), 1e-3), **more)
    copy = fork(w)
    training = Trainer(copy, w.batches)
    training.train(steps, float("inf"))
    assert training.exception is None
    return CheckContext(w, 0, time.perf_counter() + 600, {}, copy, training.record("probe"), None)


def measured(model: nn.Module, data: list[Any] | None = None, **more: Any) -> Dependence:
    torch.manual_seed(0)
    return dependence(context(model, data, **more))


def obviously_mixed(model: nn.Module) -> bool:
    """Whether replacing any one sample changes the output of any other one."""
    model.eval()
    x = batches(N, T, D)[0][0]
    with torch.no_grad():
        torch.manual_seed(0)
        before = model(x)
        for i in range(N):
            other = x.clone()
            torch.manual_seed(i + 1)
            other[i] = torch.randn(T, D)
            torch.manual_seed(0)
            changed = (model(other) - before).abs().amax(1) > 1e-4
            changed[i] = False
            if bool(changed.any()):
                return True
    return False


MIXING: dict[str, tuple[Any, str, str | None]] = {  # model, operation, what it is meant for
    "gru": (lambda: Net(Recurrent(False)), "gru", None),
    "attention": (lambda: Net(Attending(False)), "multi_head_attention_forward", None),
    "softmax": (lambda: Net(nn.Tanh(), last=lambda y: torch.softmax(y, 0)), "softmax", None),
    "weights over the batch": (lambda: Net(lambda h: h * h.sum(-1, keepdim=True).softmax(0)), "softmax", None),
    "reshape": (lambda: Net(lambda h: h.transpose(0, 1).reshape(h.shape)), "reshape", None),
    "view": (lambda: Net(lambda h: h.permute(2, 0, 1).contiguous().view(h.shape)), "view", None),
    "written for one batch size": (lambda: Net(lambda h: h.transpose(0, 1).reshape(N, T, D)), "reshape", None),
    "cumsum": (lambda: Net(lambda h: h.cumsum(0)), "cumsum", None),
    "roll": (lambda: Net(lambda h: h.roll(1, 0)), "roll", None),
    "flip": (lambda: Net(lambda h: h.flip(0)), "flip", None),
    "first sample": (lambda: Net(lambda h: h + h[:1]), "__getitem__", None),
    "shuffled": (lambda: Net(lambda h: h[torch.randperm(len(h))]), "__getitem__", None),
    "batch statistics": (lambda: Net(Normed(track_running_stats=False)), "batch_norm", "statistics"),
    "by hand": (lambda: Net(lambda h: (h - h.mean((0, 1))) / h.std((0, 1))), "mean", "statistics"),
    "similarity": (lambda: Net(nn.Tanh(), pool=lambda h: (z := h.mean(1)) + torch.softmax(z @ z.T, -1) @ z), "matmul", "relation"),
}

INDEPENDENT: dict[str, Any] = {
    "plain": lambda: Net(nn.Tanh()),
    "gru": lambda: Net(Recurrent(True)),
    "attention": lambda: Net(Attending(True)),
    "batch norm": lambda: Net(Normed()),
    "dropout": lambda: Net(nn.Dropout(0.5)),
    "flattened": lambda: Net(lambda h: torch.tanh(h.flatten(0, 1)).view(h.shape)),
    "written for one batch size": lambda: Net(lambda h: torch.tanh(h.view(N, T, D))),
    "noise": lambda: Net(lambda h: h + torch.randn_like(h)),
}


class Positions(nn.Module):
    def __init__(self, read: Any) -> None:
        super().__init__()
        self.table, self.read = nn.Parameter(torch.randn(1, 10, D)), read

    def forward(self, x: Tensor) -> Tensor:
        return x + self.read(self.table, x.shape[1])


@pytest.mark.parametrize(
    ("read", "mixer", "expected"),
    [
        (lambda table, length: table[:, length], nn.Tanh(), True),
        (lambda table, length: table[0, 0], Attending(True), True),
        (lambda table, length: table[:, :length], Attending(True), False),
        (lambda table, length: table[:, length], Recurrent(True), False),
        (lambda table, length: table[:, torch.tensor(length)], nn.Tanh(), False),  # chosen by data
        (lambda table, length: 0.0, Attending(True), False),
    ],
)
def test_one_row_of_a_table_for_all_positions(read: Any, mixer: Any, expected: bool) -> None:
    found = measured(Net(nn.Sequential(Positions(read), mixer)))
    assert (found.unordered, found.layer) == (expected, "middle.0" if expected else "")


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_found_and_located(name: str) -> None:
    torch.manual_seed(0)
    make, operation, meant = MIXING[name]
    found = measured(make())
    assert obviously_mixed(make())
    assert found.mixed is not None and found.mixed > 1e-3 and found.certain
    assert (found.operation, found.meant) == (operation, meant)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_samples_are_found_to_be(name: str) -> None:
    torch.manual_seed(0)
    make = INDEPENDENT[name]
    assert not obviously_mixed(make())
    assert measured(make()).mixed == 0.0


def test_time_first_is_no_mixing_where_the_target_tells() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(D, D), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][-1])

    assert measured(Last(), batches(T, N, D)).mixed == 0.0


def test_a_target_for_every_position_leaves_the_axis_open_unless_torch_stacked_the_samples() -> None:
    data = [(torch.randint(20, (N, T)), torch.randint(CLASSES, (N, T)))]
    open_, stacked = measured(Tagger(), data), measured(Tagger(), data, collated=True)
    assert open_.mixed and open_.mixed > 1e-3 and not open_.certain
    assert stacked.mixed and stacked.certain


def test_random_data_leave_the_axis_open() -> None:
    assert not measured(Net(Recurrent(False)), data_given=False).certain


def test_an_ignored_input_has_no_effect_and_costs_nothing_when_shuffled() -> None:
    found = measured(Net(torch.zeros_like))
    assert found.input_effect == 0.0 and found.trained_loss == found.shuffled_loss


def test_an_input_that_is_used_has_one() -> None:
    assert (measured(Net(nn.Tanh())).input_effect or 0) > 0.05


def test_running_statistics_that_have_not_settled_do_not_hide_the_input() -> None:
    norm = Net(Normed(momentum=1e-6))
    norm.middle.norm.running_var.fill_(1e12)
    assert (measured(norm).input_effect or 0) > 0.05


def test_the_trained_copy_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    here = context(Net(Normed()))
    before = {k: v.clone() for k, v in here.trained.model.state_dict().items()}
    modes = [m.training for m in here.trained.model.modules()]
    dependence(here)
    after = here.trained.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert modes == [m.training for m in here.trained.model.modules()]


def test_alike_samples_cannot_be_told_apart() -> None:
    data = [(torch.ones(N, T, D), torch.zeros(N, dtype=torch.long))]
    with pytest.raises(Unmeasured, match="alike"):
        measured(Net(nn.Tanh()), data)


def test_a_model_that_is_not_called_cannot_be_looked_at() -> None:
    class Parts(Net):
        def loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.head(self.first(batch[0]).mean(1)), batch[1])

    w = context(Net(nn.Tanh()))
    w.trained.training_step = lambda model, batch: Parts.loss(model, batch)  # type: ignore[arg-type]
    with pytest.raises(Unmeasured, match="does not call the model"):
        dependence(w)


def test_no_reversal_maps_the_replaced_samples_to_themselves() -> None:
    replaced, by = swaps(32, 7)
    assert set(replaced) != {6 - i for i in replaced} and {0, 6} <= set(replaced)
    assert all(i >= 7 for i in by)


def test_rows_of_flattened_outputs_are_tried_both_ways() -> None:
    output = torch.arange(12.0).view(12, 1)
    by_sample, by_position = as_rows(output, 3, range(3))
    assert by_sample[0].tolist() == [0, 1, 2, 3] and by_position[0].tolist() == [0, 3, 6, 9]
    assert as_rows(torch.zeros(5), 3, range(3)) == []


def test_time_as_long_as_the_batch_and_first_in_the_output_is_not_taken_for_samples() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            started = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
            out: Tensor = self.rnn(started.transpose(0, 1))[0]
            return out

    found = measured(TimeFirst(), [(torch.randn(6, 5, D), torch.randint(CLASSES, (6, 6)))])
    assert found.mixed == 0 and found.input_effect is not None and found.input_effect > 0.01


def by_size(h: Tensor) -> Tensor:
    return h.mean((1, 2)).argsort()


class Sorted(Net):
    def forward(self, x: Tensor) -> Any:
        order = by_size(x)
        y = super().forward(x[order])
        return self.then(y, order)  # type: ignore[operator]


MOVED: dict[str, tuple[Any, bool]] = {
    "sorted": (lambda y, order: y, True),
    "put back": (lambda y, order: y[order.argsort()], False),
    "told where": (lambda y, order: (y, order), False),
    "of rank": (lambda y, order: y[order.argsort()] + order.unsqueeze(1), False),
}


@pytest.mark.parametrize("name", MOVED)
def test_outputs_in_the_rows_of_other_samples(name: str) -> None:
    then, expected = MOVED[name]
    model = Sorted(nn.Tanh())
    model.then = then
    assert measured(model, loss=lambda net, b: F.cross_entropy(first_tensor(net(b[0])), b[1])).misplaced is expected


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda y, t: (y.mean(1, keepdim=True) - t.float().unsqueeze(0)).square().mean(), True),
        (lambda y, t: (y.mean(1).mean() - t.float().mean()).square(), True),
        (lambda y, t: (y.mean(1, keepdim=True) - t.float().unsqueeze(1)).square().mean(), False),
    ],
)
def test_a_loss_that_does_not_ask_whose_target_it_is(loss: Any, expected: bool) -> None:
    assert measured(Net(nn.Tanh()), loss=lambda net, b: loss(net(b[0]), b[1])).unpaired is expected


class Lookup(nn.Module):
    """Of facts and of a question; `use` says what becomes of the question."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.facts, self.question, self.head, self.use = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, CLASSES), use
        self.kept: Any = 0.0

    def forward(self, facts: Tensor, question: Tensor) -> Any:
        return self.use(self, self.facts(facts).mean(1), self.question(question).mean(1))


def kept(net: Lookup, h: Tensor, q: Tensor) -> Tensor:
    net.kept = q.square().mean()
    return net.head(h)


def ask(model: Lookup, batch: Any) -> Tensor:
    output = model(*batch[:2])
    return F.cross_entropy(output[0] if isinstance(output, tuple) else output, batch[2]) + model.kept


LOST: dict[str, tuple[Any, bool]] = {
    "another in its place": (lambda net, h, q: net.head(h + h), True),
    "its size alone": (lambda net, h, q: net.head(h * q.view(-1, D).size(1)), True),
    "used": (lambda net, h, q: net.head(h + q), False),
    "a second output": (lambda net, h, q: (net.head(h), q), False),
    "of no weight": (lambda net, h, q: net.head(h + 0.0 * q), False),
    "a term of the loss": (kept, False),
}


@pytest.mark.parametrize("name", LOST)
def test_one_of_two_inputs_that_nothing_uses(name: str) -> None:
    use, expected = LOST[name]
    data = [(torch.randn(N, T, D), torch.randn(N, T, D), torch.randint(CLASSES, (N,))) for _ in range(2)]
    assert measured(Lookup(use), data, loss=ask).lost is expected


def thrown_away(h: Tensor) -> Tensor:
    h.masked_fill(h > 0, 0.0)
    return h


def thrown_away_by_a_function(h: Tensor) -> Tensor:
    F.normalize(h, dim=-1)
    return h


def taken(h: Tensor) -> Tensor:
    _ = h.masked_fill(h > 0, 0.0)
    h = h.clone()
    h.clamp_(min=-1.0)
    F.relu(h, inplace=True)
    h.contiguous()
    Normed()(h)
    return h.add(1.0)


@pytest.mark.parametrize(
    ("middle", "operation"), [(thrown_away, "masked_fill"), (thrown_away_by_a_function, "normalize"), (taken, None), (nn.Tanh(), None)]
)
def test_results_that_no_variable_takes(middle: Any, operation: str | None) -> None:
    found = measured(Net(middle))
    assert (found.dropped, found.operation) == (operation is not None, operation)
