"""What is read of losses that are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.session import MeasurePlan, measure
from gradcheck.types.measurement import Measurement
from gradcheck.workload.workload import Workload

CLASSES = 4
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """x [N, 6] -> last(two linear layers)."""

    def __init__(self, outputs: int, last: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.last = nn.Linear(6, 16), nn.Linear(16, outputs), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.b(F.relu(self.a(x))))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def measured(loss: Loss, outputs: int = CLASSES, last: Callable[[torch.Tensor], torch.Tensor] = same, target: Any = None) -> Measurement:
    g = torch.Generator().manual_seed(0)
    batch = (torch.randn(16, 6, generator=g), torch.randint(CLASSES, (16,), generator=g) if target is None else target)
    model = Net(outputs, last)
    step = lambda m, b: loss(m(b[0]), b[1])  # noqa: E731
    return measure(
        Workload("test", model, [batch], step, torch.optim.SGD(model.parameters(), 0.01)), MeasurePlan(steps=1, needs={"losses"})
    )


def picked(log_probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -log_probabilities[torch.arange(len(target)), target].mean()


def yes(output: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(output)


def shares(o: torch.Tensor) -> torch.Tensor:
    """As losses do that are told that they get probabilities."""
    return (o / o.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)


UNSTABLE: dict[str, tuple[tuple[str, str], Loss]] = {
    "log of softmax": (("log", "softmax"), lambda o, t: picked(torch.log(F.softmax(o, 1)), t)),
    "methods": (("log", "softmax"), lambda o, t: picked(o.softmax(-1).log(), t)),
    "gathered first": (("log", "softmax"), lambda o, t: -o.softmax(1).gather(1, t[:, None]).log2().mean()),
    "one-hot first": (("log", "softmax"), lambda o, t: -(o.softmax(1) * F.one_hot(t, CLASSES)).sum(1).log().mean()),
    "log of sigmoid": (("log", "sigmoid"), lambda o, t: -torch.log(torch.sigmoid(o)).mean()),
    "log of 1 - sigmoid": (("log", "sigmoid"), lambda o, t: -torch.log(1 - torch.sigmoid(o)).mean()),
    "log1p": (("log", "sigmoid"), lambda o, t: -torch.log1p(-torch.sigmoid(o)).mean()),
    "logsumexp": (("log", "sum of exponentials"), lambda o, t: (o.exp().sum(1).log() - o[:, 0]).mean()),
    "softplus": (("log", "sum of exponentials"), lambda o, t: (1 + (-o).exp()).log().mean()),
    "softmax": (("division", "sum of exponentials"), lambda o, t: picked((o.exp() / o.exp().sum(1, keepdim=True) + 1e-6).log(), t)),
    "shares": (("log", "shares"), lambda o, t: F.nll_loss(shares(o.relu()).log(), t)),
    "quotient": (("division", "output"), lambda o, t: ((o - 1) / o).square().mean()),
    "reciprocal": (("division", "output"), lambda o, t: (1 / o).square().mean()),
}
STABLE: dict[str, Loss] = {
    "log_softmax": lambda o, t: picked(o.log_softmax(1), t),
    "shares of something that is never 0": lambda o, t: picked(shares(F.softplus(o)).log(), t),
    "added constant": lambda o, t: picked((o.softmax(1) + 1e-8).log(), t),
    "clamp": lambda o, t: picked(o.softmax(1).clamp(min=1e-8).log(), t),
    "clamp around 1 - p": lambda o, t: -torch.log((1 - o.sigmoid()).clamp(1e-6, 1)).mean(),
    "largest subtracted": lambda o, t: (torch.exp(o - o.amax(1, keepdim=True)).sum(1).log() + o.amax(1) - o[:, 0]).mean(),
    "poisson": lambda o, t: (o.exp() - o).mean(),
    "gaussian": lambda o, t: ((o - 1).square() / o.exp() + o).mean(),
    "scale of a distribution": lambda o, t: -torch.distributions.Normal(0.0, o.exp()).log_prob(torch.ones_like(o)).mean(),
    "bounded exponent": lambda o, t: (1 + o.clamp(-20, 20).exp()).log().mean(),
    "temperature": lambda o, t: F.cross_entropy(o / 0.1, t),
    "distribution": lambda o, t: -torch.distributions.Categorical(probs=o.softmax(1)).log_prob(t).mean(),
    "unit vectors": lambda o, t: F.cross_entropy(o / o.norm(dim=1, keepdim=True), t),
}


def forms(m: Measurement) -> set[tuple[str, str]]:
    return {(o.operation, o.of) for o in m.loss_operations if o.of != "other"}


@pytest.mark.parametrize("name", UNSTABLE)
def test_unstable_forms_are_told_by_the_graph(name):
    expected, loss = UNSTABLE[name]
    m = measured(loss)
    assert expected in forms(m)
    found = next(o for o in m.loss_operations if (o.operation, o.of) == expected)
    assert found.site is not None and found.site.path.endswith("test_handwritten_loss.py") and not found.layer


@pytest.mark.parametrize("name", STABLE)
def test_stable_forms_are_not_among_them(name):
    assert forms(measured(STABLE[name])) == set()


def test_the_range_is_that_of_the_argument():
    class Seen:
        first: torch.Tensor | None = None

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        argument = 1 - output.sigmoid()
        Seen.first = argument.detach() if Seen.first is None else Seen.first
        return -torch.log1p(-output.sigmoid()).mean()

    found = measured(loss).loss_operations[0]
    assert Seen.first is not None
    assert found.minimum == pytest.approx(Seen.first.min().item()) and found.maximum == pytest.approx(Seen.first.max().item())


def test_what_the_model_computes_is_named():
    found = measured(lambda o, t: F.nll_loss(o, t), last=lambda x: torch.log(torch.softmax(x, 1))).loss_operations
    assert [(o.operation, o.of, o.layer) for o in found] == [("log", "softmax", "")]


def test_layers_that_follow_make_it_no_matter_of_the_loss():
    class Inside(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.log(F.softmax(self.a(x), 1)))

    model = Inside(CLASSES, same)
    batch = (torch.randn(8, 6), torch.randint(CLASSES, (8,)))
    step = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    w = Workload("test", model, [batch], step, torch.optim.SGD(model.parameters(), 0.01))
    assert measure(w, MeasurePlan(steps=1, needs={"losses"})).loss_operations == ()


VALUES = 150 + 75 * torch.randn(16, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: ((o - t) ** 2).mean(),
        lambda o, t: (t - o).abs().mean(),
        lambda o, t: torch.sub(o.view(-1), t.view(-1)).square().mean(),
        lambda o, t: (o.double() - t.double()).square().mean(),
        lambda o, t: torch.sqrt((o[:, 0] - t[:, 0]).pow(2).mean()),
    ],
)
def test_a_difference_to_a_tensor_of_the_batch_is_a_regression(loss):
    (found,) = measured(loss, outputs=1, target=VALUES).differences
    assert found.target_mean == pytest.approx(VALUES.mean().item(), rel=1e-5)
    assert found.target_std == pytest.approx(VALUES.std(correction=0).item(), rel=1e-5)
    assert abs(found.output_mean) < 1 and found.output_std < 1 and found.site is not None


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: (o - o.mean().detach()).square().mean(),
        lambda o, t: (o - 1.0).square().mean(),
        F.mse_loss,
        lambda o, t: (t - o - 0.1 * (o**2)).mean(0).neg().sum() / 16,  # a bound: what is added to the loss is no target
    ],
)
def test_other_differences_are_not(loss):
    assert measured(loss, outputs=1, target=VALUES).differences == ()
