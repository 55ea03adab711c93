"""The recorder changes nothing of the loop that it watches, and what it records computes the same losses and gradients again."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from gradcheck.capture.births import Births
from gradcheck.capture.build import ReplayMismatch, workload_of
from gradcheck.capture.forward import MOST_BLIND
from gradcheck.capture.recorder import Recorder
from gradcheck.workload.source_sites import record_sites
from gradcheck.workload.workload import Workload

Tensor = torch.Tensor
Loop = Callable[[], list[Any]]  # a training of three or four steps; returns its models


def net(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, outputs))


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 4, generator=g), torch.randint(3, (6,), generator=g)) for _ in range(count)]


def train(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], optimizer: Any = None) -> list[Any]:
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 0.01)
    for x, y in batches():
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return [model]


def plain() -> list[Any]:
    return train(net(), F.cross_entropy)


def loss_module() -> list[Any]:
    return train(net(), nn.CrossEntropyLoss(label_smoothing=0.1))


def by_hand() -> list[Any]:
    return train(net(), lambda o, y: -o.log_softmax(1)[torch.arange(len(y)), y].mean())


def penalty_first() -> list[Any]:
    model, optimizer = net(), None
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in batches():
        penalty = sum(p.abs().sum() for p in model.parameters())
        loss = F.cross_entropy(model(x), y) + 1e-3 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [model]


def in_place() -> list[Any]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        output = output * 2
        output[:, 0] = output[:, 0] + 1
        output += 1
        return F.cross_entropy(output, target)

    return train(net(), loss)


def accumulated() -> list[Any]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for i, (x, y) in enumerate(batches(6), 1):
        (F.cross_entropy(model(x), y) / 2).backward()
        if i % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
    return [model]


def half() -> list[Any]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return [model]


def closures() -> list[Any]:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    for x, y in batches():

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    return [model]


def image() -> list[Any]:
    """An image is trained, made in place of a copy; the network that sees it is not."""
    features = nn.Conv2d(1, 4, 3).requires_grad_(False)
    picture = torch.rand(1, 1, 8, 8).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([picture], 0.05)
    for _ in range(8):
        optimizer.zero_grad()
        F.mse_loss(features(picture), features(torch.rand(1, 1, 8, 8))).backward()
        optimizer.step()
    return [features, picture]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def custom_function() -> list[Any]:
    return train(net(), lambda o, y: F.cross_entropy(Double.apply(o), y))


def two_parts() -> list[Any]:
    encoder, decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 3)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 0.01)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(decoder(encoder(x)), y).backward()
        optimizer.step()
    return [encoder, decoder]


def penalised_gradient() -> list[Any]:
    critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(critic.parameters(), 0.01)
    for x, _ in batches():
        inner = (x * torch.rand(len(x), 1)).requires_grad_(True)
        slope = torch.autograd.grad(critic(inner).sum(), inner, create_graph=True)[0]
        optimizer.zero_grad()
        (critic(x).mean() + (slope.norm(dim=1) - 1).square().mean()).backward()
        optimizer.step()
    return [critic]


class OwnLoss(nn.Module):
    """Computes its loss itself, and is called by another method than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        output = self.body(x)
        return {"loss": F.cross_entropy(output, y), "output": output.detach()}


def method() -> list[Any]:
    model = OwnLoss()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for x, y in batches():
        optimizer.zero_grad()
        model.loss(x, y)["loss"].backward()
        optimizer.step()
    return [model]


def no_module() -> list[Any]:
    weight, bias = torch.zeros(4, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], 0.1)
    for x, y in batches():
        loss = F.cross_entropy(x @ weight + bias, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [weight, bias]


LOOPS: tuple[Loop, ...] = (
    plain,
    loss_module,
    by_hand,
    penalty_first,
    in_place,
    accumulated,
    half,
    closures,
    custom_function,
    two_parts,
    image,
    penalised_gradient,
    method,
    no_module,
)
every_loop = pytest.mark.parametrize("loop", LOOPS, ids=lambda f: f.__name__)


def values(trained: list[Any]) -> list[Tensor]:
    return [t.detach().clone() for m in trained for t in ([m] if isinstance(m, Tensor) else m.state_dict().values())]


def recorded(loop: Loop) -> tuple[Recorder, list[Tensor]]:
    torch.manual_seed(0)
    with record_sites() as sites, Recorder(sites, taped=8) as recorder:
        return recorder, values(loop())


def workloads(recorder: Recorder) -> list[Workload]:
    return [workload_of(recorder, w, "loop", ()) for w in recorder.optimizers.values() if w.steps]


@every_loop
def test_a_watched_loop_ends_with_the_same_bits(loop):
    torch.manual_seed(0)
    bare = values(loop())
    _, watched = recorded(loop)
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))


@every_loop
def test_the_first_loss_is_computed_again(loop):
    recorder, _ = recorded(loop)
    (workload,) = workloads(recorder)  # workload_of compares the losses and raises when they differ
    assert workload.training_step(workload.model, workload.batches[0]).requires_grad


@pytest.mark.parametrize("loop", [f for f in LOOPS if f not in (closures, half)], ids=lambda f: f.__name__)
def test_training_on_the_recorded_batches_gives_the_weights_of_the_script(loop):
    """The slow, obvious check: the recorded steps, taken by a plain loop, with the random numbers of the recording."""
    recorder, expected = recorded(loop)
    (workload,) = workloads(recorder)
    torch.manual_seed(0)
    loop_model, optimizer = workload.model, workload.optimizer
    for module in loop_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    losses = []
    for batch in workload.batches:
        optimizer.zero_grad()
        loss = workload.training_step(loop_model, batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    found = [t for t in values([loop_model]) if t.is_floating_point()]
    same = [t for t in expected if t.is_floating_point()]
    assert len(found) == len(same) and len(set(losses)) > 1
    if not any(isinstance(m, nn.Dropout) for m in loop_model.modules()):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, same, strict=True))


def test_a_script_with_two_optimizers_gives_two_trainings_that_freeze_each_other():
    def gan() -> list[Any]:
        generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
        of_generator, of_critic = torch.optim.SGD(generator.parameters(), 0.1), torch.optim.Adam(critic.parameters(), 0.1)
        for x, _ in batches():
            fake = generator(torch.randn(len(x), 2))
            of_critic.zero_grad()
            (critic(fake.detach()).mean() - critic(x).mean()).backward()
            of_critic.step()
            of_generator.zero_grad()
            (-critic(fake).mean()).backward()
            of_generator.step()
        return [generator, critic]

    recorder, _ = recorded(gan)
    first, second = workloads(recorder)
    assert {n: p.requires_grad for n, p in first.model.named_parameters()} == {
        "generator.weight": True,
        "generator.bias": True,
        "critic.weight": False,
        "critic.bias": False,
    }
    assert {n for n, p in second.model.named_parameters() if p.requires_grad} == {"weight", "bias"}
    assert type(second.optimizer).__name__ == "Adam"


def test_custom_functions_of_newer_torch_are_recorded(monkeypatch):
    """From torch 2.15 on, `Function.apply` is a classmethod of C, which has no `__func__`."""
    monkeypatch.setattr(torch.autograd.Function, "apply", vars(torch._C._FunctionBase)["apply"])
    recorder, _ = recorded(custom_function)
    assert len(workloads(recorder)) == 1


def test_what_is_hidden_from_the_tape_is_said():
    def loop() -> list[Any]:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in batches():
            output = checkpoint(model, x.requires_grad_(), use_reentrant=True)
            F.cross_entropy(output, y).backward()
            optimizer.step()
        return [model]

    recorder, _ = recorded(loop)
    with pytest.raises(ReplayMismatch, match="no module and no parameter that was seen in use"):
        workloads(recorder)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_all_hooks_and_wrappers_are_gone(ends):
    homes = [nn.Module, torch.optim.Optimizer, torch.amp.grad_scaler.GradScaler, DataLoader, torch.autograd, nn.utils, nn.utils.clip_grad]
    homes += [c for c in vars(torch.optim.lr_scheduler).values() if isinstance(c, type)]
    hooks = {n: v for m in (module_hooks, optimizer_hooks) for n, v in vars(m).items() if n.startswith("_global") and isinstance(v, dict)}
    before = [dict(vars(h)) for h in homes], copy.copy({n: dict(v) for n, v in hooks.items()})

    def loop() -> list[Any]:
        if ends == "badly":
            raise ZeroDivisionError
        return plain()

    if ends == "badly":
        with pytest.raises(ZeroDivisionError):
            recorded(loop)
    else:
        recorded(loop)
    assert [dict(vars(h)) for h in homes] == before[0]
    assert {n: dict(v) for n, v in hooks.items()} == before[1]


def test_a_long_rollout_is_kept_in_part_and_its_loss_still_takes_the_own_past():
    policy, outputs = net(), []

    def loop() -> list[Any]:
        states = torch.randn(200, 6, 4)
        with torch.no_grad():
            outputs.extend(policy(state).log_softmax(1)[:, 0] for state in states)
        old, optimizer = torch.stack(outputs), torch.optim.Adam(policy.parameters(), 0.01)
        for i in torch.randperm(200).split(50):
            optimizer.zero_grad()
            (policy(states[i].flatten(0, 1)).log_softmax(1)[:, 0] - old[i].flatten()).exp().mean().backward()
            optimizer.step()
        return [policy]

    recorder, _ = recorded(loop)
    assert sum(recorder.tape.ref(output) is not None for output in outputs) == MOST_BLIND
    assert [w.own_past for w in workloads(recorder)] == [True]


@pytest.mark.parametrize(("values", "born"), [([3e38, 3e38], False), ([1.0, math.inf], True), ([math.nan, 0.0], True)])
def test_numbers_whose_sum_overflows_are_finite(values, born):
    births, given = Births(), torch.ones(2)
    output = torch.tensor(values)
    births.look("mul", (given,), {}, output, lambda: None)
    assert (births.tensors.get(output) is not None) == born
