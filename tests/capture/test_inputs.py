"""What of a recorded loop is data, what belongs to the loss, and what the model did in the past and stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from gradcheck.capture.facts import Ending, loop_facts
from tests.capture.test_recorder import recorded, workloads

SHAPE = (6, 4)


def loop_of(loss: Callable[[nn.Module, torch.Tensor], torch.Tensor], kind: Callable[[], nn.Module]) -> Callable[[], list[Any]]:
    def loop() -> list[Any]:
        trained = kind()
        optimizer = torch.optim.SGD(trained.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss(trained, torch.randn(SHAPE)).backward()
            optimizer.step()
        return [trained]

    return loop


def tolerance(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) / (1e-9 + 1e-7 * x.abs())).abs().mean()


def mask(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    hidden = (x > 0).float()
    return ((model(x * hidden) - x) * (1 - hidden)).square().mean()


def mixed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(torch.cat([x[:, :2], model(x)[:, :2]], 1)) - torch.ones(SHAPE)).square().mean()


def fed_back(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A value of the model's goes back into it, by a step whose size has a tolerance in it, as solvers of equations take them."""
    return model(x + model(x) / (1e7 + x.abs())).square().mean()


def matrix(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(x @ next(model.parameters()), torch.ones(SHAPE))


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.head(x), labels)


def labelled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x, labels=torch.zeros(SHAPE))


@pytest.mark.parametrize(
    ("loss", "data", "others"),
    [(tolerance, 1, 1), (mask, 1, 2), (mixed, 2, 1), (fed_back, 1, 1), (matrix, 1, 1), (labelled, 1, 1)],
    ids=["tolerance", "mask", "mixed into the input", "a step's size", "a matrix of weights", "labels of the model's own loss"],
)
def test_what_goes_into_a_module_is_data_and_the_rest_belongs_to_the_loss(loss, data, others):
    recorder, _ = recorded(loop_of(loss, Labelled if loss is labelled else lambda: nn.Linear(4, 4)))
    (workload,) = workloads(recorder)
    assert workload.inputs is not None and len(workload.inputs) == data
    assert len(workload.batches[0]) - 1 - data == others


def test_the_fakes_of_a_generator_are_no_data():
    def gan() -> list[Any]:
        generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer, other = torch.optim.SGD(critic.parameters(), 0.1), torch.optim.SGD(generator.parameters(), 0.1)
        for _ in range(3):
            fake = generator(torch.randn(SHAPE))
            (critic(fake.detach()).mean() - critic(torch.randn(SHAPE)).mean()).backward()
            optimizer.step()
            (-critic(fake).mean()).backward()
            other.step()
        return [generator, critic]

    workload = workloads(recorded(gan)[0])[0]
    assert workload.inputs is not None and len(workload.inputs) == 1 and len(workload.batches[0]) == 3  # fake, real, program


def policy(rollouts: int, passes: int) -> Callable[[], list[Any]]:
    """Actions are taken, and their probabilities kept, before several steps on them."""

    def loop() -> list[Any]:
        actor = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(actor.parameters(), 0.1)
        for _ in range(rollouts):
            states = [torch.randn(12, 4)]
            with torch.no_grad():
                for _ in range(20):
                    states.append(states[-1] + torch.tanh(actor(states[-1]).sum(1, keepdim=True)))
                states = torch.cat(states)
                choice = torch.distributions.Categorical(logits=actor(states))
                actions = choice.sample()
                old = choice.log_prob(actions)
            for rows in torch.randperm(len(states)).split(len(states) // passes):
                new = torch.distributions.Categorical(logits=actor(states[rows])).log_prob(actions[rows])
                optimizer.zero_grad()
                (new - old[rows]).exp().mul(torch.randn(len(rows))).mean().backward()
                optimizer.step()
        return [actor]

    return loop


def test_what_a_policy_did_before_the_steps_on_it_stays_as_it_was():
    recorder, _ = recorded(policy(rollouts=2, passes=4))
    (workload,) = workloads(recorder)
    programs = [batch[-1] for batch in workload.batches]
    assert len(programs) == 8  # none is taken for another one
    assert len({len(p.instructions) for p in programs}) == 1  # the first after a rollout does not take it again
    model, program = workload.model, programs[0]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    assert workload.training_step(model, workload.batches[0]).item() != pytest.approx(0.0, abs=1e-6) and program.size == 63


def test_an_action_that_the_loop_has_read_stays_with_its_reward():
    def loop() -> list[Any]:
        actor = nn.Linear(4, 5)
        optimizer = torch.optim.SGD(actor.parameters(), 0.1)
        for _ in range(3):
            choice = torch.distributions.Categorical(logits=actor(torch.randn(SHAPE)))
            action = choice.sample()
            reward = torch.tensor([float(a) for a in action.tolist()])
            optimizer.zero_grad()
            (-choice.log_prob(action) * reward).mean().backward()
            optimizer.step()
        return [actor]

    (workload,) = workloads(recorded(loop)[0])
    losses = set()
    for seed in range(5):
        torch.manual_seed(seed)
        losses.add(workload.training_step(workload.model, workload.batches[0]).item())
    assert len(losses) == 1


@pytest.mark.parametrize(("how", "expected"), [("shuffled", True), ("with replacement", False), ("drawn by hand", False)])
def test_only_a_pass_over_a_loader_holds_each_sample_once(how, expected):
    def loop() -> list[Any]:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        data = TensorDataset(torch.randn(24, 4), torch.randint(3, (24,)))
        again = RandomSampler(data, replacement=True) if how == "with replacement" else None
        loader = DataLoader(data, 6, shuffle=again is None, sampler=again)
        for x, y in loader if how != "drawn by hand" else [data[torch.randint(24, (6,))] for _ in range(4)]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return [model]

    (workload,) = workloads(recorded(loop)[0])
    assert workload.one_pass is expected and len(workload.batches) == 4


@pytest.mark.parametrize(("index", "rows"), [("edges", None), ("windows", 50), ("picked", 50)])
def test_what_translates_numbers_is_no_data_to_choose_from(index, rows):
    """The ends of edges, in the numbers of a part of the graph; windows of a series, and entries of it."""
    every = torch.arange(50)
    chosen = {"edges": torch.randint(50, (2, 30)), "windows": torch.arange(2)[:, None] + torch.arange(8), "picked": torch.randint(50, (9,))}

    def loop() -> list[Any]:
        model = nn.Embedding(50, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = every[chosen[index]]
        for _ in range(8):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return [model]

    recorder, _ = recorded(loop)
    (watched,) = recorder.optimizers.values()
    batches = loop_facts(recorder, watched, Ending("end")).batches
    assert batches is not None and batches.available == rows


def test_without_a_module_the_rows_that_were_picked_are_the_data():
    def loop() -> list[Any]:
        below, table, weight = torch.ones(5, 5).tril(), torch.randn(32, 5), nn.Parameter(torch.randn(5, 5))
        optimizer = torch.optim.SGD([weight], 0.1)
        for rows in torch.randperm(32).split(8):
            (table[rows] @ (weight * below)).square().mean().backward()
            optimizer.step()
        return []

    (workload,) = workloads(recorded(loop)[0])
    assert [tuple(x.shape) for x in workload.batches[0][:-1]] == [(8, 5)]
