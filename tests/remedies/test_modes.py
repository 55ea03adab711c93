"""Normalizations that a method of the model puts into evaluation mode follow the mode of the model."""

from __future__ import annotations

from typing import Self

import pytest
import torch
from torch import nn

from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from tests.remedies.patients import patient, unchanged, workload
from tests.remedies.recipes import order

SETTINGS = Settings(steps=5, select=("NORM005",))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm, self.drop, self.head = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(0.1), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.fc(x)))))


class InForward(Normed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.norm.train(mode=False)
        return super().forward(x)


class InTrain(Normed):
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class WithDropout(Normed):
    """The dropout is put into evaluation mode by the same method: that may be meant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in (self.norm, self.drop):
            module.eval()
        return super().forward(x)


def modes(one: TreatedWorkload) -> tuple[bool, bool, bool]:
    """Of the normalization while training, of the dropout, and of the normalization while evaluating."""
    one.model.train()
    one.model(one.workload.batches[0][0])
    training = one.model.norm.training, one.model.drop.training
    one.model.eval()
    one.model(one.workload.batches[0][0])
    return *training, one.model.norm.training  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [InForward, InTrain])
def test_the_normalization_follows_the_model(kind: type[Normed]) -> None:
    model = kind()
    work = workload(model)
    report = scan_workload(work, SETTINGS)
    finding = next(f for f in report.findings if f.code == "NORM005")
    (p,) = CATALOGUE["training-mode"].propose(finding, report.measurement)
    one = patient(model)
    with unchanged(model):
        apply(one, p)
    assert modes(one) == (True, True, False)
    assert "NORM005" not in {f.code for f in scan_workload(one.workload, SETTINGS).findings}


def test_other_modules_keep_their_mode() -> None:
    with pytest.raises(Inapplicable, match="alone"):
        apply(patient(WithDropout()), order("training-mode", layers=("norm",)))
