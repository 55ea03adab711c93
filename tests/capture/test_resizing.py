"""A recorded step runs with another number of samples: it gives the loss that the script would have had for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradcheck.capture.build import workload_of
from gradcheck.capture.layout import counter, resized
from gradcheck.capture.recorder import Recorder
from gradcheck.workload.source_sites import record_sites
from gradcheck.workload.workload import Workload

Step = Callable[[], torch.Tensor]  # the loss of a new batch


def recorded(make: Callable[[], tuple[nn.Module, Step]]) -> Workload:
    with record_sites() as sites:
        torch.manual_seed(0)
        model, step = make()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        recorder = Recorder(sites, 8)
        with recorder:
            for _ in range(3):
                optimizer.zero_grad()
                step().backward()
                optimizer.step()
        return workload_of(recorder, next(iter(recorder.optimizers.values())), "loop", [])


def some(workload: Workload, rows: list[int]) -> Any:
    *entries, program = workload.batches[0]
    return (*(t[rows] for t in entries), program)


def loss(workload: Workload, batch: Any) -> float:
    with torch.no_grad():
        return float(workload.training_step(workload.model, batch))


class Tagger(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(9, 6), nn.GRU(6, 6, batch_first=batch_first), nn.Linear(6, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embed(tokens))[0])  # type: ignore[no-any-return]


def flattened() -> tuple[nn.Module, Step]:
    model = Tagger(batch_first=True)

    def step() -> torch.Tensor:
        s = torch.randint(0, 5, (6, 4))
        return F.cross_entropy(model(s[:, :-1]).reshape(-1, 5), s[:, 1:].reshape(-1).long())

    return model, step


def both_counts() -> tuple[nn.Module, Step]:
    model = Tagger(batch_first=True)

    def step() -> torch.Tensor:
        s = torch.randint(0, 5, (6, 4))
        b, t = s.shape
        return F.cross_entropy(model(s).view(1, b * t, 5).view(b, t, 5).view(b * t, 5), s.view(b * t))

    return model, step


def counted() -> tuple[nn.Module, Step]:
    model = nn.Linear(4, 6)

    def step() -> torch.Tensor:
        x = torch.randn(6, 4)
        z = F.normalize(model(x), dim=1)
        pairs = (z @ z.T).masked_fill(torch.eye(6, dtype=torch.bool), -9.0)
        return F.cross_entropy(pairs, torch.arange(6)) - z.log_softmax(1)[range(6), (x[:, 0] > 0).long()].mean()

    return model, step


def time_first() -> tuple[nn.Module, Step]:
    model = Tagger(batch_first=False)

    def step() -> torch.Tensor:
        tokens, tags = torch.randint(0, 9, (4, 6)), torch.randint(0, 5, (4, 6))
        return F.cross_entropy(model(tokens).reshape(-1, 5), tags.reshape(-1))

    return model, step


def turned() -> tuple[nn.Module, Step]:
    model = Tagger(batch_first=False)
    batches = iter(DataLoader(TensorDataset(torch.randint(0, 5, (18, 4))), batch_size=6))

    def step() -> torch.Tensor:
        (tokens,) = next(batches)
        tokens = tokens.permute(1, 0)
        return F.cross_entropy(model(tokens).view(-1, 5), tokens.reshape(-1))

    return model, step


@pytest.mark.parametrize("make", [flattened, both_counts, counted, time_first, turned], ids=lambda f: f.__name__)
def test_a_step_runs_with_fewer_and_with_more_samples(make):
    workload = recorded(make)
    *entries, program = workload.batches[0]
    assert program.size == 6 and all(t.shape[0] == 6 for t in entries)
    whole = loss(workload, workload.batches[0])
    assert loss(workload, some(workload, [0, 2])) != pytest.approx(whole)
    if make is not counted:  # the others' losses are means over samples
        by_sample = [loss(workload, some(workload, [i])) for i in range(6)]
        assert sum(by_sample) / 6 == pytest.approx(whole, rel=1e-5)
        assert loss(workload, some(workload, [*range(6), *range(6)])) == pytest.approx(whole, rel=1e-5)


def test_rows_that_a_loader_stacked_are_samples():
    assert recorded(turned).collated is False  # the model gets them transposed
    assert [t.shape for t in recorded(turned).batches[0][:-1]] == [(6, 4)]

    def stacked() -> tuple[nn.Module, Step]:
        model = nn.Linear(4, 3)
        batches = iter(DataLoader(TensorDataset(torch.randn(18, 2, 2), torch.randint(0, 3, (18,))), batch_size=6))

        def step() -> torch.Tensor:
            x, y = next(batches)
            return F.cross_entropy(model(x.view(6, -1)), y)

        return model, step

    assert recorded(stacked).collated


def test_a_forgotten_batch_first_is_not_taken_for_time_first():
    """The target has a row for each sample: the samples are on the first axis."""

    class Classifier(Tagger):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens)[:, -1]

    def make() -> tuple[nn.Module, Step]:
        model = Classifier(batch_first=False)
        return model, lambda: F.cross_entropy(model(torch.randint(0, 9, (6, 4))), torch.randint(0, 5, (6,)))

    *entries, program = recorded(make).batches[0]
    assert program.size == 6 and [t.shape for t in entries] == [(6, 4), (6,)]


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [
        ((2, 4, 5), (24, 5), (8, 5)),  # samples times positions
        ((2, 4, 5), (4, 6, 5), (4, 2, 5)),  # positions first
        ((2, 30), (6, 30), (2, 30)),  # 30 features are no multiple of the samples
        ((2, 6), (-1, 6), (-1, 6)),
        ((4, 2, 3), (8, 3, -1), (8, 3, -1)),
        ((4, 2, 3), (4, 6, -1), (4, 2, -1)),
        ((2, 2), (36,), (4,)),  # pairs of samples
        ((2, 12), (6, 12), (2, 12)),
    ],
)
def test_the_numbers_of_a_reshape_follow_the_samples(shape, given, expected):
    tensor = torch.zeros(shape)
    assert resized("view", (tensor, *given), 6, 2)[1:] == expected
    assert resized("view", (tensor, given), 6, 2)[1:] == expected


def test_only_reshapes_are_resized():
    x = torch.zeros(2, 3)
    assert resized("roll", (x, 6), 6, 2) == (x, 6) and resized("expand", (x, 6, 3), 6, 2) == (x, 2, 3)


def test_what_counts_samples_is_told_from_data():
    arange, eye = counter(torch.arange(5), 5), counter(~torch.eye(5, dtype=torch.bool), 5)
    assert arange is not None and torch.equal(arange(3), torch.arange(3))
    assert eye is not None and torch.equal(eye(2), ~torch.eye(2, dtype=torch.bool))
    others = (torch.tensor([0, 1, 2, 4, 3]), torch.randn(5, 5), torch.arange(4))
    assert [counter(t, 5) for t in others] == [None, None, None]
