"""Step functions get a derivative and keep their values; scales of zero are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.wiring import zero_derivatives
from gradcheck.workload.treated import TreatedWorkload, treated_copy
from tests.remedies.patients import losses, outputs, unchanged, workload

SETTINGS = Settings(fast=True)
STRAIGHT, TRAINABLE = zero_derivatives.REMEDIES


class Stepped(nn.Module):
    """Two layers with a step function between them; a subclass says how it is written."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)


class Sign(Stepped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.sign(self.first(x)))


class Method(Stepped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.second((2 * x).round())


class Decimals(Stepped):
    def forward(self, x: torch.Tensor, places: int = 0) -> torch.Tensor:
        codes = torch.round(torch.tanh(self.first(x)) * 4, decimals=places)
        return self.second(codes)


def treated(treatment: RemedyDefinition, model: nn.Module) -> tuple[TreatedWorkload, set[str]]:
    """A patient after the treatment of its finding, and what a scan of it says."""
    work = workload(model)
    report = scan_workload(work, SETTINGS)
    finding = next(f for f in report.findings if f.code == "GRAD004")
    assert treatment.name in {r.name for r in finding.remedies}
    with unchanged(model):
        one = treated_copy(work)
        assert treatment.apply is not None
        treatment.apply(one, treatment.propose(finding, report.measurement)[0])
    return one, {f.code for f in scan_workload(one.workload, SETTINGS).findings}


@pytest.mark.parametrize("kind", [Sign, Method, Decimals])
def test_the_values_stay_and_the_layers_before_learn(kind: Callable[[], nn.Module]) -> None:
    one, codes = treated(STRAIGHT, kind())
    assert torch.allclose(outputs(one), outputs(treated_copy(workload(kind()))), atol=1e-5)
    assert "GRAD004" not in codes
    assert losses(one)[-1] < losses(treated_copy(workload(kind())))[-1]


def test_the_derivative_is_that_of_the_smooth_function() -> None:
    one, _ = treated(STRAIGHT, Sign())
    z = torch.tensor([[-3.0, -0.5, 0.0, 0.9, 1.1] + [0.0] * 27], requires_grad=True)
    one.model.first = nn.Identity()
    one.model.second = nn.Identity()
    one.model(z).sum().backward()
    assert z.grad is not None and z.grad[0, :5].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


class Scaled(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.branch, self.head = nn.Linear(16, 32), nn.Sequential(nn.Linear(32, 32), nn.ReLU()), nn.Linear(32, 4)
        self.gate: Any
        if how == "buffer":
            self.register_buffer("gate", torch.zeros(1))
        elif how == "plain":
            self.gate = torch.zeros(32)
        else:
            self.gate = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.gate * self.branch(x))


@pytest.mark.parametrize("how", ["buffer", "plain", "frozen"])
def test_a_scale_of_zero_is_trained(how: str) -> None:
    one, codes = treated(TRAINABLE, Scaled(how))
    assert "GRAD004" not in codes
    gate = dict(one.model.named_parameters())["gate"]
    assert gate.requires_grad and not gate.any()
    assert any(p is gate for group in one.optimizer.param_groups for p in group["params"])
    assert set(one.model.state_dict()) == set(Scaled("buffer").state_dict())


def test_nothing_is_proposed_where_no_place_is_known() -> None:
    measurement = scan_workload(workload(Sign()), SETTINGS).measurement
    assert STRAIGHT.propose(None, measurement) == [] and TRAINABLE.propose(None, measurement) == []
