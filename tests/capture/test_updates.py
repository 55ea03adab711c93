"""Updates by hand change nothing for being watched, and are told for the rule that they follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.capture.build import workload_of
from gradcheck.capture.changes import LeafChange, Waiting, chosen_entries
from gradcheck.capture.events import OptimizerTrace
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.together import joined
from gradcheck.capture.trainings import tell_rules
from gradcheck.capture.update_rule import recognised
from gradcheck.workload.source_sites import record_sites

Tensor = torch.Tensor
Update = Callable[[list[Any], dict[str, Any]], None]


def batches(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 4, generator=g), torch.randint(3, (16,), generator=g)) for _ in range(count)]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def train(update: Update) -> list[Tensor]:
    model, state = net(), dict[str, Any]()
    for x, y in batches():
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        update(list(model.parameters()), state)
    return [p.detach().clone() for p in model.parameters()]


def by_data(parameters: list[Any], state: dict[str, Any]) -> None:
    for p in parameters:
        p.data.add_(p.grad, alpha=-0.1)


def assigned(parameters: list[Any], state: dict[str, Any]) -> None:
    for p in parameters:
        p.data = p.data - 0.1 * p.grad


@torch.no_grad()
def copied(parameters: list[Any], state: dict[str, Any]) -> None:
    for p in parameters:
        p.copy_(p - 0.1 * p.grad)


@torch.no_grad()
def by_foreach(parameters: list[Any], state: dict[str, Any]) -> None:
    torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-0.1)


@torch.no_grad()
def with_momentum(parameters: list[Any], state: dict[str, Any]) -> None:
    for i, p in enumerate(parameters):
        state[i] = 0.9 * state.get(i, 0) + p.grad
        p -= 0.02 * state[i]


@torch.no_grad()
def by_adam(parameters: list[Any], state: dict[str, Any]) -> None:
    t = state["t"] = state.get("t", 0) + 1
    for i, p in enumerate(parameters):
        m, v = state.get(i, (0, 0))
        m, v = state[i] = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2
        p -= 3e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


@torch.no_grad()
def with_decay(parameters: list[Any], state: dict[str, Any]) -> None:
    for p in parameters:
        p -= 0.1 * (p.grad + 0.5 * p)


@torch.no_grad()
def uphill(parameters: list[Any], state: dict[str, Any]) -> None:
    for p in parameters:
        p += 0.1 * p.grad


RULES: dict[Update, tuple[str, dict[str, Any]]] = {
    by_data: ("SGD", {"lr": 0.1, "momentum": 0, "weight_decay": 0, "maximize": False}),
    assigned: ("SGD", {"lr": 0.1}),
    copied: ("SGD", {"lr": 0.1}),
    by_foreach: ("SGD", {"lr": 0.1}),
    with_momentum: ("SGD", {"lr": 0.02, "momentum": 0.9}),
    by_adam: ("Adam", {"lr": 3e-3, "betas": (0.9, 0.999)}),
    with_decay: ("SGD", {"lr": 0.1, "weight_decay": 0.5}),
    uphill: ("SGD", {"lr": 0.1, "maximize": True}),
}
every_rule = pytest.mark.parametrize("update", RULES, ids=lambda f: f.__name__)


def recorded(loop: Callable[[], Any]) -> tuple[Recorder, Any]:
    torch.manual_seed(0)
    with record_sites() as sites, Recorder(sites, taped=32) as recorder:
        result = loop()
    tell_rules(recorder)
    return recorder, result


def trained(recorder: Recorder) -> list[OptimizerTrace]:
    return [w for w in recorder.optimizers.values() if w.steps]


@every_rule
def test_the_loop_ends_with_the_same_bits_and_the_rule_is_told(update):
    torch.manual_seed(0)
    bare = train(update)
    recorder, watched = recorded(lambda: train(update))
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    (training,) = trained(recorder)
    kind, settings = RULES[update]
    assert len(training.steps) == 12 and type(training.copy).__name__ == kind
    assert training.step_site is not None and training.step_site.path.endswith("test_updates.py")
    group = training.copy.param_groups[0]
    assert all(group[name] == pytest.approx(value, rel=0.01) for name, value in settings.items())


@every_rule
def test_the_optimizer_that_stands_for_it_gives_the_same_weights(update):
    recorder, expected = recorded(lambda: train(update))
    workload = workload_of(recorder, trained(recorder)[0], "loop", ())
    for batch in workload.batches:
        workload.optimizer.zero_grad()
        workload.training_step(workload.model, batch).backward()
        workload.optimizer.step()
    found = dict(workload.model.named_parameters()).values()
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(found, expected, strict=True))


def test_tensors_of_no_module_and_weights_that_are_replaced_are_followed():
    def functional() -> None:
        weights = [torch.randn(4, 3) * 0.1, torch.zeros(3)]
        for x, y in batches():
            weights = [w.detach().requires_grad_() for w in weights]
            gradients = torch.autograd.grad(F.cross_entropy(x @ weights[0] + weights[1], y), weights)
            weights = [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]

    recorder, _ = recorded(functional)
    (training,) = trained(recorder)
    assert len(training.steps) == 11  # the last one is never used
    workload = workload_of(recorder, training, "loop", ())
    assert sorted(tuple(p.shape) for p in workload.model.parameters()) == [(3,), (4, 3)]
    assert workload.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["average", "adversary"])
def test_what_is_no_update_of_a_trained_weight_is_no_training(kind):
    def loop() -> None:
        model, average = net(), net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in batches():
            if kind == "adversary":
                shift = torch.zeros_like(x, requires_grad=True)
                F.cross_entropy(model(x + shift), y).backward()
                shift.data = (shift.data + 0.1 * shift.grad.sign()).clamp(-0.1, 0.1)
                x = x + shift.detach()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for a, p in zip(average.parameters(), model.parameters(), strict=True):
                    a.mul_(0.9).add_(p, alpha=0.1)

    recorder, _ = recorded(loop)
    assert [w.changes for w in trained(recorder)] == [None]


def test_an_optimizer_that_is_made_anew_is_one_training():
    def loop() -> None:
        model = net()
        for x, y in batches():
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    (training,) = trained(recorded(loop)[0])
    assert len(training.steps) == 12 and training.life == 1 and training.forgets


def test_optimizers_that_step_on_one_loss_are_one_training_and_opposed_ones_are_two():
    def together() -> None:
        first, last = nn.Linear(4, 8), nn.Linear(8, 3)
        optimizers = [torch.optim.SGD(first.parameters(), 0.1), torch.optim.Adam(last.parameters(), 0.01)]
        for x, y in batches():
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(last(first(x).tanh()), y).backward()
            for optimizer in optimizers:
                optimizer.step()

    def opposed() -> None:
        maker, critic = nn.Linear(4, 4), nn.Linear(4, 1)
        of_maker, of_critic = torch.optim.SGD(maker.parameters(), 0.1), torch.optim.SGD(critic.parameters(), 0.1)
        for x, _ in batches():
            of_critic.zero_grad()
            (critic(maker(x).detach()).mean() - critic(x).mean()).backward()
            of_critic.step()
            of_maker.zero_grad()
            (-critic(maker(x)).mean()).backward()
            of_maker.step()

    recorder, _ = recorded(together)
    (training,) = joined(trained(recorder))
    workload = workload_of(recorder, training, "loop", ())
    before = [p.detach().clone() for p in workload.model.parameters()]
    workload.training_step(workload.model, workload.batches[0]).backward()
    workload.optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, workload.model.parameters(), strict=True))
    assert len(joined(trained(recorded(opposed)[0]))) == 2


def test_what_is_handed_over_as_a_generator_is_there_for_torch() -> None:
    model, (x, y) = net(), batches()[0]
    wanted = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    with record_sites() as sites, Recorder(sites, taped=8):
        found = torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters())
        through = torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters(), create_graph=True)
        torch.autograd.backward(iter([F.cross_entropy(model(x), y)]))
    given = [p.grad for p in model.parameters()]
    assert all(torch.equal(a, b) for those in (found, through, given) for a, b in zip(wanted, those, strict=True))


def test_adam_with_its_epsilon_before_the_bias_is_corrected() -> None:
    """As Keras has it. The difference shows in weights with tiny gradients: the queries and keys of an attention that is still even."""
    g = 1e-7 * torch.randn(12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m, v, changes = torch.zeros(20), torch.zeros(20), []
    for t in range(12):
        m, v = 0.9 * m + 0.1 * g[t], 0.999 * v + 0.001 * g[t] ** 2
        rate = 1e-3 * (1 - 0.999 ** (t + 1)) ** 0.5 / (1 - 0.9 ** (t + 1))
        changes.append(LeafChange(t, torch.ones(20), g[t], -rate * m / (v.sqrt() + 1e-7)))
    rule = recognised([changes], [1e-12], [1.0] * 12)
    assert rule is not None and (rule.kind, rule.settings["betas"]) == ("Adam", (0.9, 0.999))
    assert rule.rates[0] == pytest.approx(1e-3)


@pytest.mark.filterwarnings("error")
def test_of_complex_weights_both_parts_are_looked_at() -> None:
    weight, gradient = torch.tensor([1 + 2j, 3 - 1j]), torch.tensor([0j, 3 + 4j])
    waiting = Waiting.of(weight, gradient, chosen_entries(gradient, 1))
    assert waiting.moved(weight - 0.5j).tolist() == [0.0, -0.5, 0.0, -0.5]
    assert (waiting.gradient.tolist(), waiting.norm) == ([0.0, 0.0, 3.0, 4.0], 5.0)
