"""Loops of many kinds of models and batches: trained again from what was recorded, they end with the weights of the script."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from gradcheck.training.trainer import take_step
from gradcheck.workload.training_copy import fork
from tests.capture.test_recorder import Loop, batches, recorded, workloads

Tensor = torch.Tensor


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def trained(model: Any, loss: Callable[[Tensor, Tensor], Tensor], *more: nn.Module, extra: Any = ()) -> list[Any]:
    parts = [m for m in (model, *more) if isinstance(m, nn.Module)]
    parameters = [p for m in parts for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([*parameters, *extra], 0.01)
    for x, y in batches():
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
    return [*parts, *extra]


# ------------------------------------------------------------------------------------------------- models


def lambda_over_a_submodule() -> list[Any]:
    model = mlp()
    first, rest = model[0], model[1:]
    model.run = lambda x: rest(first(x))  # type: ignore[assignment]
    model.forward = lambda x: model.run(x)  # type: ignore[assignment, operator]
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


def partial_and_bound_method() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)
            self.first = functools.partial(lambda layer, x: layer(x).tanh(), self.up)
            self.second = self.down.forward

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Net()
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


class Late(nn.Module):
    """Lists its weight from when it is first asked for its parameters, as layers of Keras do."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        if self.made and not self._parameters:
            self.register_parameter("weight", self.made[0])  # type: ignore[arg-type]
        return super().named_parameters(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.made[0]


def builds_itself_on_shapes() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Late()

        def forward(self, x: Tensor) -> Tensor:
            if not self.layer.made:
                self.layer.made = [nn.Parameter(x.new_empty(4, 3))]
            return self.layer(x)

    model = Net()
    model(torch.empty(6, 4, device="meta"))
    model.layer.made = [nn.Parameter(torch.randn(4, 3))]
    assert not any(p.is_meta for p in model.layer.parameters())
    return trained(model.layer, lambda x, y: F.cross_entropy(model(x), y))


def hook_that_holds_the_model() -> list[Any]:
    model = mlp()
    model[0].register_forward_hook(lambda module, args, output: output * model[3].weight.mean())
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


def attribute_set_after_the_first_call() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.settings = nn.Linear(4, 3), SimpleNamespace(scale=1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.settings.scale * self.body(x)

    model = Net()
    model(torch.randn(2, 4))
    model.settings.scale = 3.0
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


def adapters_on_a_frozen_base() -> list[Any]:
    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer, self.a, self.b = base, nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
            base.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.b(self.a(x))

    base = nn.Linear(4, 3)
    base(torch.randn(2, 4))  # it is used before it is wrapped
    model = nn.Sequential(Adapter(base))
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


def parametrization() -> list[Any]:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 3))
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


def module_outside_the_model() -> list[Any]:
    outside = nn.Linear(4, 8)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(outside(x).tanh())

    model = Head()
    return trained(model, lambda x, y: F.cross_entropy(model(x), y), outside)


def cannot_be_copied() -> list[Any]:
    model = mlp()
    model.lock = threading.Lock()  # type: ignore[assignment]
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


def makes_its_copies_itself() -> list[Any]:
    class FromConfiguration(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width, self.body = width, nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

        def __deepcopy__(self, memo: dict[int, Any]) -> FromConfiguration:
            twin = FromConfiguration(self.width)
            twin.load_state_dict(self.state_dict())
            return twin

    model = FromConfiguration(8)
    return trained(model, lambda x, y: F.cross_entropy(model(x), y))


def shapes_told_on_the_meta_device() -> list[Any]:
    """Numbers that are not there are looked at for what is not finite."""
    model = mlp()
    told = torch.empty(5, 4, device="meta") * 2
    return trained(model, lambda x, y: F.cross_entropy(model(x), y) + (told.sum() / told.sum()).numel() - 1)


class Labelled(Tensor):
    """A kind of tensor that keeps its kind in what is computed from it."""


def a_tensor_of_another_kind() -> list[Any]:
    model = mlp()
    return trained(model, lambda x, y: F.cross_entropy(model(x).as_subclass(Labelled) * 2, y.as_subclass(Labelled)))


def targets_written_row_by_row() -> list[Any]:
    """In place, into views of what a model gave without gradient, and into views of a constant."""
    model, teacher = mlp(), mlp()
    teacher.requires_grad_(False)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            given = teacher(x).softmax(1)
            wanted, kept = torch.zeros_like(given), torch.zeros(len(x), 3)
            for i in range(len(x)):
                wanted[i].index_add_(0, y[i : i + 1], given[i, :1])
                kept[i].copy_(given[i])
                kept[i, 1:].mul_(2)
        return -((wanted + kept) * model(x).log_softmax(1)).sum()

    return trained(model, loss)


def results_written_column_by_column() -> list[Any]:
    """With gradient."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        out = torch.ones(len(x), 3)
        for i in range(3):
            out[:, i].mul_(model(x)[:, i])
            out[:, i] += 1
        return F.cross_entropy(out, y)

    return trained(model, loss)


def a_state_that_is_laid_out_flat() -> list[Any]:
    """As solvers of equations hand it to a module: one vector, which the loop cuts into its parts again, by shapes with a 1 in them."""
    model = nn.Sequential(nn.Linear(9, 9), nn.Tanh())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        state = torch.cat([x[:2].reshape(-1), torch.ones(1)])
        after = state + (torch.arange(45.0).view(5, 9) / 45 * model(state)).sum(0)
        return after[:8].view(-1, 1, 2).square().sum() + after[8:].view(1, 1).sum()

    return trained(model, loss)


def free_parameter_inside_a_module() -> list[Any]:
    scale = nn.Parameter(torch.ones(4))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x * scale)

    model = Net()
    return trained(model, lambda x, y: F.cross_entropy(model(x), y), extra=[scale])


def shared_encoder() -> list[Any]:
    encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    one, two = nn.Sequential(encoder, nn.Linear(8, 3)), nn.Sequential(encoder, nn.Linear(8, 3))
    return trained(one, lambda x, y: F.cross_entropy(one(x), y) + F.cross_entropy(two(x), y), two[1])


def module_that_counts_its_calls() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = nn.Linear(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.body(x) / self.calls

    model = Net()
    return trained(model, lambda x, y: F.cross_entropy(model(x) + model(x), y))


# ------------------------------------------------------------------------------------------------ batches


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
    for _ in range(2):
        for rows in torch.randperm(6).split(2):
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


HELPERS = ("mlp", "trained", "takes_an_object", "all_loops", "against_another_that_has_stepped")


def all_loops() -> Iterator[Loop]:
    names = [name for name, value in globals().items() if getattr(value, "__module__", "") == __name__ and not isinstance(value, type)]
    return (globals()[n] for n in names if n not in HELPERS)


@pytest.mark.parametrize("loop", list(all_loops()), ids=lambda f: f.__name__)
def test_it_is_trained_again(loop: Loop) -> None:
    recorder, expected = recorded(loop)
    (workload,) = workloads(recorder)
    copy = fork(workload)
    for batch in workload.batches:
        copy.optimizer.zero_grad()
        copy.loss(batch).backward()
        take_step(copy, batch)
    found = sorted((tuple(p.shape), p.detach().sum().item()) for p in copy.model.parameters() if p.requires_grad)
    held = {id(p): p for w in recorder.optimizers.values() for p in w.parameters}
    if workload.borrowed is not None:
        workload.borrowed.give_back()
    wanted = sorted((tuple(p.shape), p.detach().sum().item()) for p in held.values())
    assert [shape for shape, _ in found] == [shape for shape, _ in wanted]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], abs=1e-4)
    assert expected


def test_a_training_starts_from_what_another_one_has_left() -> None:
    recorder, _ = recorded(against_another_that_has_stepped)
    for workload in workloads(recorder):
        assert math.isfinite(fork(workload).loss(workload.batches[0]).item())  # workloads compares the first losses


@pytest.mark.parametrize("loop", [module_outside_the_model, cannot_be_copied, makes_its_copies_itself, free_parameter_inside_a_module])
def test_what_no_copy_can_do_is_done_in_place(loop: Loop) -> None:
    recorder, _ = recorded(loop)
    (workload,) = workloads(recorder)
    assert workload.borrowed is not None and workload.borrowed.why


@pytest.mark.parametrize(
    "loop", [lambda_over_a_submodule, hook_that_holds_the_model, adapters_on_a_frozen_base, shared_encoder, an_inverse_in_the_prior]
)
def test_what_a_copy_can_do_is_done_on_one(loop: Loop) -> None:
    recorder, _ = recorded(loop)
    (workload,) = workloads(recorder)
    assert workload.borrowed is None


def test_noise_that_a_module_draws_from_numpy_is_that_of_the_script() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor(np.random.normal(0, 1, (len(x), 3)), dtype=torch.float32)

    def loop() -> list[Any]:
        model = Noisy(4, 3)
        return trained(model, lambda x, y: F.cross_entropy(model(x), y))

    (workload,) = workloads(recorded(loop)[0])
    assert workload.borrowed is None
