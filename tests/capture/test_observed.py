"""What is said of a training that cannot be repeated: what was seen of it, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from gradcheck.capture.facts import FEWEST_COMPARED, Ending, changed, loop_facts, undone
from gradcheck.capture.nodes import CHANGED, Owner, Ref, Weight, nodes_behind
from gradcheck.capture.observed import observed
from gradcheck.capture.recorder import Recorder
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.rule import Need
from gradcheck.workload.source_sites import record_sites
from tests.literals import loop


def training(backward: bool) -> Measurement:
    """A loss that is looked at, and may be followed by its backward pass, of an optimizer that has not taken a step."""
    with record_sites() as sites, Recorder(sites, 4) as recorder:
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        trace = recorder.watched(optimizer)
        loss = model(torch.ones(3, 4)).sum()
        loss.item()
        if backward:
            loss.backward()
        recorder.owners.own(trace.parameters)
    return observed(recorder, trace, loop(), "train.py", [], NotMeasured("step", "it was stopped"), get_args(Need))


def test_without_a_backward_pass_nothing_is_known_of_what_the_loss_reaches() -> None:
    unseen = training(backward=False)
    assert len(unseen.parameters) == 2 and not unseen.cuts
    assert "reach" in {n.what for n in unseen.not_measured}


def test_a_backward_pass_shows_what_the_loss_reaches() -> None:
    seen = training(backward=True)
    assert [p.used for p in seen.parameters] == [True, True]
    assert "reach" not in {n.what for n in seen.not_measured}


def test_rounds_without_a_step_are_counted_from_the_last_step_on() -> None:
    with record_sites() as sites, Recorder(sites, 4) as recorder:
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for i in range(6):
            optimizer.zero_grad()
            loss = model(torch.full((3, 4), 1.0 if i < 2 else torch.nan)).sum()
            if torch.isfinite(loss):
                loss.backward()
                optimizer.step()
    assert loop_facts(recorder, recorder.watched(optimizer), Ending("end")).skipped == 4


def test_what_came_before_a_step_is_not_walked_again() -> None:
    """The stored outputs of a rollout stand behind every loss that is made of them."""

    def first() -> list[Any]:
        raise AssertionError("walked")

    old = SimpleNamespace(serial=3, inputs=first)
    new = SimpleNamespace(serial=5, inputs=lambda: [Ref(old, 0), Ref(between, 0)])  # type: ignore[arg-type]
    between = SimpleNamespace(serial=4, inputs=list)
    assert nodes_behind([new], since=3) == [between, new]  # type: ignore[list-item, comparison-overlap]


def test_what_moved_is_found_out_with_one_look_at_the_names_of_a_root() -> None:
    """The names of a root were listed for each of its parameters: of 10,000 layers that took longer than anyone waits."""

    class Listed(nn.Sequential):
        lists = 0

        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            self.lists += 1
            return super().named_parameters(*args, **kwargs)

    model = Listed(*(nn.Linear(2, 2) for _ in range(10)))
    twins = {id(p): p.detach().clone() for p in model.parameters()}
    owner = Owner(model, None, twins, CHANGED, "model")
    weights = [Weight(owner, name, id(p)) for name, p in nn.Module.named_parameters(model)]
    with torch.no_grad():
        model[3].weight.add_(1.0)
    model.lists = 0
    moved = changed(weights, {})
    assert [w.name for w in moved] == ["3.weight"] and model.lists == 1


@pytest.mark.parametrize(
    ("then", "share"),
    [
        (lambda model, old: model.load_state_dict(old), 1.0),
        (lambda model, old: [p.data.lerp_(old[name], 0.99) for name, p in model.named_parameters()], 1.0),
        (lambda model, old: [p.data.lerp_(old[name], 0.5) for name, p in model.named_parameters()], 0.0),
        (lambda model, old: None, 0.0),
    ],
)
def test_steps_whose_changes_are_put_back(then: Any, share: float) -> None:
    torch.manual_seed(0)
    with record_sites() as sites, Recorder(sites, 100) as recorder:
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        old = {name: t.clone() for name, t in model.state_dict().items()}
        for _ in range(FEWEST_COMPARED + 1):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            then(model, old)
        trace = recorder.watched(optimizer)
    assert undone(recorder, trace) == share


def test_weights_that_two_optimizers_take_further_may_be_put_back() -> None:
    with record_sites() as sites, Recorder(sites, 100) as recorder:
        model = nn.Linear(4, 2)
        inner = torch.optim.SGD(model.parameters(), 0.1)
        outer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(FEWEST_COMPARED + 1):
            old = {name: t.clone() for name, t in model.state_dict().items()}
            for optimizer in (inner, outer):
                optimizer.zero_grad()
                model(torch.randn(3, 4)).square().mean().backward()
                if optimizer is outer:
                    model.load_state_dict(old)
                optimizer.step()
        trace = recorder.watched(inner)
    assert undone(recorder, trace) is None
