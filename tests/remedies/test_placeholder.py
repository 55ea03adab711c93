"""The input takes the place of a tensor like it, where there is one such place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradcheck.remedies.catalogue import apply
from gradcheck.workload.treated import Inapplicable
from tests.remedies.patients import losses, patient, plain, unchanged
from tests.remedies.recipes import order


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))


class Zeros(Blind):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(torch.zeros_like(x))


class Noise(Blind):
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        features = torch.randn_like(input=features)
        return self.body(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode(x)


class Twice(Blind):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(torch.zeros_like(x)) + self.body(torch.ones_like(x))


@pytest.mark.parametrize("kind", [Zeros, Noise])
def test_the_input_is_used(kind: type[Blind]) -> None:
    given = kind()
    one = patient(given)
    with unchanged(given):
        apply(one, order("use-input"))
    x = torch.randn(5, 16)
    assert torch.equal(one.model(x), one.model.body(x))
    assert losses(one)[-1] < 0.5 * losses(one)[0]


@pytest.mark.parametrize(("model", "reason"), [(Twice(), "several places"), (plain(2), "no place")])
def test_it_is_left_to_a_person_where_the_place_is_not_plain(model: nn.Module, reason: str) -> None:
    with pytest.raises(Inapplicable, match=reason):
        apply(patient(model), order("use-input"))
