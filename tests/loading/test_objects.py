"""Objects that must be copied to be scanned: nothing of the copy refers to the original."""

from __future__ import annotations

import torch
from torch import nn

import gradcheck


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def test_a_penalty_in_the_loss_is_that_of_the_copy() -> None:
    torch.manual_seed(0)
    model = lazy()

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target) + 1e-3 * sum(p.square().sum() for p in model[2].parameters())

    report = gradcheck.scan(model, [batch()], loss=loss, config={"steps": 6})
    assert not {"GRAPH001", "GRAPH002", "GRAPH003"} & {f.code for f in report.findings}


def test_an_optimizer_that_keeps_parameters_beside_its_groups_is_copied_whole() -> None:
    torch.manual_seed(0)
    model = lazy()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    report = gradcheck.scan(model, [batch()], loss=nn.functional.cross_entropy, optimizer=optimizer, config={"steps": 4})
    assert report.measurements[0].steps >= 4
