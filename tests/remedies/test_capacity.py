"""Narrower networks that still compute the same shapes, and batches joined to larger ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.workload.treated import Inapplicable, treated_copy
from tests.remedies.recipes import classification, measured, net, order, patient, step, workload


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.norm, self.head = nn.GroupNorm(4, 8), nn.Linear(8 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(self.depthwise(self.stem(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Fixed(nn.Module):
    """Its code fixes its width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).view(-1, 2, 4).flatten(1))


class TwoHeads(nn.Module):
    """Narrowing would cut outputs off the first head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        return torch.cat([self.b(h), self.c(h)], 1)


def images() -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 2, 8, 8, generator=g), torch.randint(3, (16,), generator=g)) for _ in range(3)]


@pytest.mark.parametrize(
    ("make", "batches"), [(net, classification), (Residual, images)], ids=["sequential", "residual, convolutional, depthwise"]
)
def test_hidden_layers_are_half_as_wide(make: Any, batches: Any) -> None:
    torch.manual_seed(0)
    w = workload(make(), batches(), optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    (p,) = CATALOGUE["smaller-network"].propose(None, measured(w, 6, fast=True).measurement)
    treated = treated_copy(w)
    apply(treated, p)
    treated = treated.copy()
    x, _ = w.batches[0]
    count = [sum(q.numel() for q in m.parameters()) for m in (w.model, treated.model)]
    assert 0.2 < count[1] / count[0] < 0.75
    assert treated.model(x).shape == w.model(x).shape
    held = [q for g in treated.optimizer.param_groups for q in g["params"]]
    assert {id(q) for q in held} == {id(q) for q in treated.model.parameters()}
    assert 0.3 < (treated.model(x).std() / w.model(x).std()).item() < 3
    losses = [step(treated) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_variance_of_a_narrowed_layer_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 3))
    treated = patient(model)
    apply(treated, order("smaller-network", width=0.25))
    assert treated.model[2].weight.shape == (100, 100)
    assert treated.model[2].weight.std().item() * 10 == pytest.approx(model[2].weight.std().item() * 20, rel=0.05)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Fixed(), "does not run"),
        (TwoHeads(), "shape"),
        (nn.Sequential(nn.Linear(6, 3)), "no hidden layer"),
        (nn.Sequential(nn.Linear(6, 4), nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 3)), "cannot change"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Linear(4, 3)), "reparametrised"),
    ],
    ids=["code", "two heads", "one layer", "attention", "weight norm"],
)
def test_models_that_cannot_be_narrowed_say_why(model: nn.Module, why: str) -> None:
    with pytest.raises(Inapplicable, match=why):
        apply(patient(model), order("smaller-network", width=0.5))


def deep() -> nn.Module:
    torch.manual_seed(0)
    pairs = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *pairs, nn.Linear(16, 3))


def test_every_second_of_the_repeated_blocks_goes() -> None:
    w = workload(deep())
    (p,) = CATALOGUE["shallower-network"].propose(None, measured(w, 6, fast=True).measurement)
    treated = treated_copy(w)
    apply(treated, p)
    treated = treated.copy()
    kinds = [type(x).__name__ for x in treated.model]
    assert kinds == ["Linear", "ReLU"] * 3 + ["Linear"]
    assert torch.equal(treated.model[2].weight, w.model[2].weight) and torch.equal(treated.model[4].weight, w.model[6].weight)
    held = {id(q) for g in treated.optimizer.param_groups for q in g["params"]}
    assert held == {id(q) for q in treated.model.parameters()}
    assert len(w.model) == 11
    step(treated)


def test_blocks_of_a_list_go_and_models_without_blocks_say_so() -> None:
    torch.manual_seed(0)
    model = Residual()
    treated = patient(model, images())
    apply(treated, order("shallower-network"))
    assert len(treated.model.blocks) == 1 and len(model.blocks) == 2
    with pytest.raises(Inapplicable, match="repeats"):
        apply(patient(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))), order("shallower-network"))


def test_larger_batches_hold_the_same_samples() -> None:
    w = workload(batches=classification(count=5))
    (p,) = CATALOGUE["larger-batch"].propose(None, measured(w, 6, fast=True).measurement)
    treated = treated_copy(w)
    apply(treated, p)
    assert [len(y) for _, y in treated.workload.batches] == [64, 16]
    assert torch.equal(torch.cat([x for x, _ in treated.workload.batches]), torch.cat([x for x, _ in w.batches]))


def test_one_step_on_a_larger_batch_is_that_of_accumulated_gradients() -> None:
    batches = classification(count=4)
    treated = patient(batches=batches)
    apply(treated, order("larger-batch", batches=4))
    step(treated)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        (nn.functional.cross_entropy(model(x), y) / 4).backward()
    optimizer.step()
    for a, b in zip(treated.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
