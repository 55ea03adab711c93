"""Places that gradients go through and come out of as zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.session import MeasurePlan, measure
from gradcheck.types.parameters import ZeroDerivative
from gradcheck.workload.workload import Workload

Middle = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """x [N, 6] -> last(middle(first(x)))."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.middle = nn.Linear(6, 8), nn.Linear(8, 4), middle
        self.register_buffer("scale", torch.zeros(1))
        self.register_buffer("quarter", torch.full((1,), 0.25))
        self.plain = torch.zeros(8)
        self.frozen = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.trained = nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self, self.first(x)))


def found(middle: Middle) -> tuple[ZeroDerivative, ...]:
    batch = torch.randn(16, 6), torch.randint(4, (16,))
    model = Net(middle)
    step = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    return measure(Workload("test", model, [batch], step, torch.optim.SGD(model.parameters(), 0.01)), MeasurePlan(steps=1)).zero_derivatives


@pytest.mark.parametrize(
    ("middle", "operation"),
    [
        (lambda m, z: torch.sign(z), "sign"),
        (lambda m, z: z.sgn(), "sign"),
        (lambda m, z: torch.round(z, decimals=1), "round"),
        (lambda m, z: z.floor(), "floor"),
        (lambda m, z: torch.ceil(input=z), "ceil"),
        (lambda m, z: z.trunc(), "trunc"),
        (lambda m, z: torch.fix(z), "trunc"),
        (lambda m, z: F.relu(z - 99), "relu"),
        (lambda m, z: (z + 99).clamp(max=1), "clamp"),
    ],
)
def test_steps_and_bounds_are_found_with_the_parameters_before_them(middle: Middle, operation: str) -> None:
    (one,) = found(middle)
    assert (one.operation, one.layer, one.factor) == (operation, "", "")
    assert set(one.parameters) == {"first.weight", "first.bias"}
    assert one.site is not None and one.site.path.endswith("test_zero_derivatives.py")


@pytest.mark.parametrize(
    ("middle", "factor"),
    [
        (lambda m, z: z + m.scale * z, "scale"),
        (lambda m, z: z + z.mul(m.scale), "scale"),
        (lambda m, z: z + torch.mul(z, m.plain.view(1, 8)), "plain"),
        (lambda m, z: z + z * m.frozen, "frozen"),
    ],
)
def test_fixed_factors_of_zero_are_found_by_their_name(middle: Middle, factor: str) -> None:
    assert [(z.operation, z.factor) for z in found(middle)] == [("product", factor)]


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, z: torch.tanh(z),
        lambda m, z: F.relu(z) + z.clamp(-1, 1),
        lambda m, z: z + (torch.round(z) - z).detach(),  # straight-through: the rounding is no part of the graph
        lambda m, z: m.quarter * z,
        lambda m, z: z + m.trained * z,  # ReZero: opens after the first step
        lambda m, z: z * torch.zeros(8),  # of no module: made again in each pass
    ],
)
def test_healthy_ones_are_not(middle: Middle) -> None:
    assert found(middle) == ()
