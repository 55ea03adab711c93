"""Modules are exchanged everywhere, and the optimizer follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.modules import surgery
from gradcheck.workload.treated import Inapplicable
from tests.literals import location
from tests.remedies.patients import finding, held, losses, measured, patient, plain, unchanged


class Shared(nn.Module):
    """One activation in two places, and in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.first, self.act, self.second, self.again, self.head = nn.Linear(16, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 4)
        self.both = [self.act, self.again]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.both[1](self.second(self.both[0](self.first(x)))))


def test_a_shared_module_is_swapped_everywhere() -> None:
    model = Shared()
    one = patient(model)
    new = nn.Tanh()
    with unchanged(model):
        surgery.swap(one, "act", new)
    assert one.model.act is new and one.model.again is new and one.model.both == [new, new]


def test_wrapped_layers_are_found_under_their_old_names() -> None:
    one = patient(plain(3))
    layer = one.model[2]
    surgery.follow(one, "2", nn.LayerNorm(32))
    surgery.follow(one, "2", nn.Dropout(0.1))  # behind the layer itself, before the norm
    assert surgery.module_at(one, "2") is layer
    assert [type(m).__name__ for m in one.model[2].modules() if not list(m.children())] == ["Linear", "Dropout", "LayerNorm"]
    assert surgery.module_at(one.copy(), "2").weight.shape == layer.weight.shape


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_new_parameters_are_trained_and_old_ones_leave(optimizer: type[torch.optim.Optimizer]) -> None:
    model = plain(3)
    one = patient(model, optimizer=optimizer(model.parameters(), lr=1e-2))
    with unchanged(model), surgery.rewired(one):
        surgery.follow(one, "0", nn.LayerNorm(32))
        surgery.module_at(one, "2").register_parameter("bias", None)
    assert held(one) == {id(p) for p in one.model.parameters()}
    assert all(p in held_state(one) or not one.optimizer.state for p in one.optimizer.state)
    before = one.model[0][1].weight.clone()
    run = losses(one)
    assert run[-1] < run[0] and torch.equal(before, one.model[0][1].weight)


def held_state(one: object) -> set[torch.Tensor]:
    return {p for group in one.optimizer.param_groups for p in group["params"]}  # type: ignore[attr-defined]


def test_a_norm_joins_the_group_of_vectors_near_it() -> None:
    model = plain(3)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    one = patient(model, optimizer=torch.optim.AdamW(groups, lr=1e-3))
    with surgery.rewired(one):
        surgery.follow(one, "2", nn.LayerNorm(32))
    decayed, free = one.optimizer.param_groups
    assert {id(p) for p in one.model[2][1].parameters()} <= {id(p) for p in free["params"]}
    assert len(decayed["params"]) == len(matrices)


def test_the_group_of_the_nearest_layer_wins() -> None:
    model = plain(2)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.2}]
    one = patient(model, optimizer=torch.optim.SGD(groups))
    with surgery.rewired(one):
        surgery.follow(one, "0", nn.LayerNorm(32))
        surgery.follow(one, "4", nn.LayerNorm(4))
    assert [len(g["params"]) for g in one.optimizer.param_groups] == [4, 6]


def test_names_in_the_optimizer_stay_beside_their_parameters() -> None:
    model = plain(2)
    one = patient(model, optimizer=torch.optim.AdamW(model.named_parameters(), lr=1e-3))
    with surgery.rewired(one):
        surgery.follow(one, "0", nn.LayerNorm(32))
        surgery.module_at(one, "2").register_parameter("bias", None)
    group = one.optimizer.param_groups[0]
    assert len(group["params"]) == len(group["param_names"]) == 7
    assert "2.bias" not in group["param_names"]


def test_frozen_parameters_do_not_join() -> None:
    one = patient(plain(2))
    frozen = nn.LayerNorm(32).requires_grad_(False)
    with surgery.rewired(one):
        surgery.follow(one, "0", frozen)
    assert not {id(p) for p in frozen.parameters()} & held(one)


def test_sites_pass_on_to_what_replaces_a_module() -> None:
    one = patient(plain(2))
    one.workload.sites = {id(one.model[0]): location(7)}
    surgery.follow(one, "0", nn.LayerNorm(32))
    assert one.workload.sites[id(one.model[0])] == one.workload.sites[id(one.model[0][1])] == location(7)


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "no module nowhere"), (":relu", "function call"), ("", "whole model")], ids=["missing", "call", "root"]
)
def test_what_cannot_be_swapped_is_said(name: str, words: str) -> None:
    with pytest.raises(Inapplicable, match=words):
        surgery.swap(patient(plain(2)), name, nn.Identity())


def test_a_change_that_does_not_run_is_refused() -> None:
    one = patient(plain(2))
    with pytest.raises(Inapplicable, match="does not run with it: RuntimeError"), surgery.rewired(one):
        surgery.follow(one, "0", nn.LayerNorm(5))


class Peeking(nn.Module):
    """Its forward method reads an attribute of a layer that a wrapper does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(x))) + self.first.weight.mean()


def test_code_that_reaches_into_a_wrapped_layer_is_refused() -> None:
    one = patient(Peeking())
    with pytest.raises(Inapplicable, match="weight"), surgery.rewired(one):
        surgery.follow(one, "first", nn.LayerNorm(8))


def test_treatments_compose_under_the_names_of_the_measurement() -> None:
    model = plain(8, nn.Sigmoid)
    m = measured(model)
    one = patient(model)
    names = ("replace-activation", "insert-normalization", "add-residual", "he-init")
    with unchanged(model):
        for name in names:
            treatment = CATALOGUE[name]
            assert treatment.apply is not None
            layers = ("2", "4", "6") if name == "add-residual" else None
            found = treatment.propose(finding("GRAD001"), m) if layers is None else [treatment.fix("", layers=layers)]
            treatment.apply(one, found[0])
    inner = [type(x).__name__ for x in one.copy().model[2].modules() if not list(x.children())]
    assert inner == ["Linear", "BatchNorm1d"] and isinstance(surgery.module_at(one, "2"), nn.Linear)
    assert held(one) == {id(p) for p in one.model.parameters()}
    assert losses(one)[-1] < 0.5 * losses(patient(model))[-1]
