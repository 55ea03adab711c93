"""Training loops over batches of many kinds; each returns what it trained."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from tests.capture.model_loops import mlp, trained
from tests.capture.test_recorder import batches

Tensor = torch.Tensor


def sparse_adjacency() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            return torch.sparse.mm(adjacency, self.body(x))

    model, adjacency = Net(), (torch.eye(6) + torch.eye(6).roll(1, 0)).to_sparse()
    return trained(model, lambda x, y: F.cross_entropy(model(x, adjacency), y))


def nested_tensor() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).to_padded_tensor(0.0).sum(1)

    model = Net()
    rows = [(0, 1), (1, 4), (4, 6)]
    return trained(model, lambda x, y: F.cross_entropy(model(torch.nested.nested_tensor([x[a:b] for a, b in rows])), y[:3]))


def packed_sequence() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(4, 3)

        def forward(self, packed: PackedSequence) -> Tensor:
            return self.cell(packed)[1][0]

    model = Net()
    return trained(model, lambda x, y: F.cross_entropy(model(pack_sequence([x[:3], x[3:5], x[5:]])), y[:3]))


@dataclasses.dataclass
class Sample:
    x: Tensor
    y: Tensor
    name: str = "sample"


class Graph:
    """As a library of graphs hands them out: attributes in a store of its own."""

    def __init__(self, **tensors: Tensor) -> None:
        self.__dict__["_store"] = dict(tensors)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_store"][name]
        except KeyError:
            raise AttributeError(name) from None


def takes_an_object(make: Callable[[Tensor, Tensor], Any]) -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, batch: Any) -> Tensor:
            x = batch["x"] if isinstance(batch, collections.UserDict) else batch.x
            return self.body(x)

    model = Net()
    return trained(model, lambda x, y: F.cross_entropy(model(make(x, y)), y))


def dataclass_batch() -> list[Any]:
    return takes_an_object(Sample)


def graph_object() -> list[Any]:
    return takes_an_object(lambda x, y: Graph(x=x, y=y))


def mapping_object() -> list[Any]:
    return takes_an_object(lambda x, y: collections.UserDict(x=x, y=y))


def points_with_gradient() -> list[Any]:
    """The residual of a differential equation: derivatives by the input, at more points than the boundary has."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        points = x.repeat(2, 1).requires_grad_()
        slope = torch.autograd.grad(model(points).sum(), points, create_graph=True)[0]
        return model(x).square().mean() + (slope - 1).square().mean()

    return trained(model, loss)


def returns_over_a_long_episode() -> list[Any]:
    model, steps = nn.Linear(4, 1), 1200

    def loss(x: Tensor, y: Tensor) -> Tensor:
        states = x.repeat(steps // 6, 1)
        with torch.no_grad():
            values, total, returns = model(states)[:, 0], torch.zeros(()), []
            for t in reversed(range(steps)):
                total = 0.1 + 0.9 * total + 0.01 * values[t]
                returns.append(total)
        return F.mse_loss(model(states)[:, 0], torch.stack(returns[::-1]))

    return trained(model, loss)


def rows_shuffled_in_place() -> list[Any]:
    model, order = mlp(), np.arange(6)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        np.random.shuffle(order)
        return F.cross_entropy(model(x)[order[:4]], y[order[:4]])

    return trained(model, loss)


def noise_drawn_in_the_loop() -> list[Any]:
    """As a variational autoencoder does; its first loss is repeated with the same noise, which is too small to move the weights."""
    model = nn.Linear(4, 3)
    return trained(model, lambda x, y: F.cross_entropy(model(x) + 1e-6 * torch.randn_like(model(x)), y))


def an_inverse_in_the_prior() -> list[Any]:
    """torch's inverse of a transform leaves out of its copies what it inverts."""

    class Flow(nn.Linear):
        uniform = torch.distributions.Uniform(torch.zeros(3), torch.ones(3))

        def __init__(self) -> None:
            super().__init__(4, 3)
            self.prior = torch.distributions.TransformedDistribution(self.uniform, torch.distributions.SigmoidTransform().inv)

        def forward(self, x: Tensor) -> Tensor:
            return self.prior.log_prob(super().forward(x))

    model = Flow()
    return trained(model, lambda x, y: -model(x).mean())


def kept_within_bounds() -> list[Any]:
    """As the critic of a Wasserstein GAN is, and pruned weights are."""
    model, mask = mlp(), (torch.arange(24).view(3, 8) % 2).float()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        for p in model[0].parameters():
            p.data.clamp_(-0.05, 0.05)
        with torch.no_grad():
            model[3].weight.mul_(mask)
    return [model]


class Warming(torch.optim.Optimizer):
    """Told at each step how to take it, as samplers are."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, burn_in: bool = False, scale: float = 100.0) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.sub_((0.5 if burn_in else 1.0) * scale * p.grad)


def steps_with_arguments() -> list[Any]:
    model = mlp()
    optimizer = Warming(model.parameters())
    for i, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step(i < 1, scale=0.1)
    return [model]


def rollout() -> list[Any]:
    """Values that the model gave without gradient are the data of several steps."""
    policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    (x, _), *_ = batches()
    with torch.no_grad():
        before, kept = policy(x).log_softmax(1), torch.zeros(6)
        actions = torch.multinomial(before.exp(), 1)[:, 0]
        for i in range(6):
            kept[i] = before[i, actions[i]]
    for order in ([0, 1, 2, 3, 4, 5], [0, 2, 4, 1, 3, 5]):  # no batch comes twice
        for rows in torch.tensor(order).split(2):
            ratio = (policy(x[rows]).log_softmax(1)[torch.arange(2), actions[rows]] - kept[rows]).exp()
            optimizer.zero_grad()
            (-(x[rows, 0] * ratio)).mean().backward()
            optimizer.step()
    return [policy]


def against_another_that_has_stepped() -> list[Any]:
    """What one optimizer trains, another one has changed before."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 3)
    own, other = torch.optim.SGD(first.parameters(), 0.1), torch.optim.SGD(second.parameters(), 0.0)
    for x, y in batches():
        hidden = first(x).tanh()
        other.zero_grad()
        F.cross_entropy(second(hidden.detach()), y).backward()
        with torch.no_grad():
            second.weight.mul_(1.5)
        other.step()
        own.zero_grad()
        F.cross_entropy(second(hidden), y).backward()
        own.step()
        with torch.no_grad():
            second.weight.div_(1.5)
    return [first, second]


def bare_against_another_that_has_stepped() -> list[Any]:
    """The same of weights that no module holds."""
    torch.manual_seed(0)
    made, judged = torch.randn(4, 4, requires_grad=True), torch.randn(4, 1, requires_grad=True)
    own, other = torch.optim.SGD([made], 0.1), torch.optim.SGD([judged], 0.5)
    for x, _ in batches():
        for output, optimizer in ((x @ made.detach(), other), (-x @ made, own)):
            optimizer.zero_grad()
            F.softplus(output @ judged).mean().backward()
            optimizer.step()
    return [made, judged]
