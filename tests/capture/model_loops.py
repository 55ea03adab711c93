"""Training loops of models of many kinds; each returns what it trained."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.capture.test_recorder import batches

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


def features_that_hooks_take_out() -> list[Any]:
    """Of parts that are called several times, and of one whose output nothing else uses."""
    model, held, shared = mlp(), list[Tensor](), nn.Linear(8, 8)
    twice = nn.Sequential(model[0], shared, shared, nn.Tanh(), model[3])
    for part in (shared, model[0]):
        part.register_forward_hook(lambda module, args, output: held.append(output))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        held.clear()
        return F.cross_entropy(twice(x), y) + held[0].square().mean() + held[2].abs().mean()

    return trained(twice, loss)


def a_loss_that_is_logged_before_it_is_used() -> list[Any]:
    """Without gradient, as torchmetrics does; what already is a float tensor is handed on, and stays the loss."""
    model = mlp()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(model(x), y)
        with torch.no_grad():
            assert torch.as_tensor(value.float()) is value
        return value

    return trained(model, loss)


def a_loss_that_a_part_keeps() -> list[Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = mlp()
            self.balance = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            self.balance = out.softmax(-1).mean(0).square().sum()
            return out

    model = nn.Sequential(Net(), nn.Linear(3, 3))
    return trained(model, lambda x, y: F.cross_entropy(model(x), y) + 0.1 * model[0].balance)  # type: ignore[operator]


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


def a_step_inside_a_modules_forward() -> list[Any]:
    """As MAML is often written: the outer module stands for a program, and its `parameters()` is a list."""

    class Learner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vars = nn.ParameterList([torch.randn(3, 4), torch.zeros(3)])

        def forward(self, x: Tensor, weights: Any = None) -> Tensor:
            return F.linear(x, *(self.vars if weights is None else weights))

        def parameters(self, recurse: bool = True) -> Any:
            return self.vars

    class Meta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Learner()
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

        def forward(self, x: Tensor, y: Tensor) -> float:
            weights = list(self.net.parameters())
            slopes = torch.autograd.grad(F.cross_entropy(self.net(x), y), weights)
            loss = F.cross_entropy(self.net(x, [w - 0.1 * g for w, g in zip(weights, slopes, strict=True)]), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return loss.item()

    meta = Meta()
    for x, y in batches():
        meta(x, y)
    return [meta.net]
