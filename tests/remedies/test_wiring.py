"""What the training did not reach is reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.wiring import parameters
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, treated_copy
from gradcheck.workload.workload import Workload
from tests.remedies.patients import batches, finding, held, losses, patient, plain, unchanged, workload

REGISTER, ADD, UNCUT, FIRST, DIMENSION, OTHER = parameters.REMEDIES


def cured(treatment: RemedyDefinition, code: str, work: Workload, rule: str = "") -> tuple[TreatedWorkload, set[str]]:
    """A patient after the treatment of a real finding, and the codes that a scan still finds."""
    settings = Settings(select=(rule,), steps=5) if rule else Settings(fast=True)
    report = scan_workload(work, settings)
    found = next(f for f in report.findings if f.code == code)
    with unchanged(work.model):
        one = treated_copy(work)
        assert treatment.apply is not None
        treatment.apply(one, treatment.propose(found, report.measurement)[0])
    return one, {f.code for f in scan_workload(one.workload, settings).findings}


# -------------------------------------------------------------------------- register-modules


class Hiding(nn.Module):
    """Holds a layer in one of many ways that torch does not see."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.stem, self.head = how, nn.Linear(16, 16), nn.Linear(16, 4)
        one, two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.hidden: Any = {
            "list": [one, two],
            "tuple": (one, two),
            "dict": {"one": one, "two": two},
            "nested": [nn.Sequential(one), Holder([two])],
            "tensor": torch.eye(16).requires_grad_(),
            "tensors": [nn.Parameter(torch.eye(16)), nn.Parameter(torch.eye(16))],
        }[how]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        if self.how == "tensor":
            return self.head(x @ self.hidden)
        for item in self.hidden.values() if self.how == "dict" else self.hidden:
            x = torch.relu(x @ item if self.how == "tensors" else item(x))
        return self.head(x)


class Holder(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


@pytest.mark.parametrize("how", ["list", "tuple", "dict", "nested", "tensor", "tensors"])
def test_hidden_weights_are_registered_and_trained(how: str) -> None:
    model = Hiding(how)
    one, codes = cured(REGISTER, "GRAPH002", workload(model))
    assert "GRAPH002" not in codes and "GRAPH003" not in codes
    assert len(list(model.parameters())) == 4 < len(list(one.model.parameters()))
    assert held(one) == {id(p) for p in one.model.parameters()}
    run = losses(one)
    assert run[-1] < run[0]


def test_a_dict_with_keys_that_torch_cannot_take_is_refused() -> None:
    model = Hiding("dict")
    model.hidden = {1: model.hidden["one"]}
    with pytest.raises(Inapplicable, match="no plain list"):
        parameters.register(patient(model), REGISTER.fix(""))


# -------------------------------------------------------------------------- add-to-optimizer


def test_missing_parameters_join_and_others_stay_once() -> None:
    model = plain(3)
    stray = nn.Parameter(torch.zeros(3))
    groups = [{"params": [*model[0].parameters(), stray], "lr": 0.1}, {"params": model[6].parameters(), "lr": 0.2}]
    one, codes = cured(ADD, "GRAPH003", workload(model, optimizer=torch.optim.SGD(groups, momentum=0.9)))
    assert held(one) == {id(p) for p in one.model.parameters()} and not codes & {"GRAPH003"}
    assert sum(len(g["params"]) for g in one.optimizer.param_groups) == 8
    assert losses(one)[-1] < losses(one)[0]


def test_a_parameter_in_two_groups_stays_in_the_first() -> None:
    model = plain(2)
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}])
    optimizer.param_groups[1]["params"].append(model[0].weight)
    optimizer.add_param_group({"params": model[4].parameters()})
    one = patient(model, optimizer=optimizer)
    ADD.apply(one, ADD.fix(""))
    assert [len(g["params"]) for g in one.optimizer.param_groups] == [2, 2, 2]


# ----------------------------------------------------------------------------- remove-detach


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).detach())


class CutByData(Cut):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.encoder(x)
        return self.head(features.data)


class CutByFunction(Cut):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.detach(self.encoder(x)))


class CutByBlock(Cut):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.encoder(x)
        return self.head(x)


class CutByDecorator(Cut):
    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


@pytest.mark.parametrize("make", [Cut, CutByData, CutByFunction, CutByBlock, CutByDecorator])
def test_the_gradient_passes_where_it_was_cut(make: type[nn.Module]) -> None:
    model = make()
    one, codes = cured(UNCUT, "GRAPH001", workload(model))
    assert "GRAPH001" not in codes
    x, y = one.workload.batches[0]
    F.cross_entropy(one.model(x), y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.model.parameters())
    assert losses(one)[-1] < 0.9 * losses(treated_copy(workload(model)))[-1]


def test_a_way_through_numpy_is_no_simple_edit() -> None:
    class ByNumpy(Cut):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.as_tensor(self.encoder(x).detach().cpu().numpy()))

    report = scan_workload(workload(ByNumpy()), Settings(fast=True))
    found = next(f for f in report.findings if f.code == "GRAPH001")
    for p in UNCUT.propose(found, report.measurement):  # detach() alone does not let it through: torch says so
        with pytest.raises(Inapplicable):
            parameters.remove_cut(treated_copy(workload(ByNumpy())), p)


# ---------------------------------------------------------------------- fix-softmax-dimension


class Softmaxed(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.net, self.module = how, nn.Linear(16, 4), nn.LogSoftmax(dim=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.net(x)
        if self.how == "keyword":
            return F.log_softmax(x, dim=0)
        if self.how == "positional":
            return torch.log_softmax(x, 0)
        if self.how == "method":
            return x.log_softmax(0)
        if self.how == "moved":
            return x.log_softmax(dim=0)
        return self.module(x)


@pytest.mark.parametrize("how", ["keyword", "positional", "method", "moved", "module"])
def test_softmax_goes_over_the_classes(how: str) -> None:
    model = Softmaxed(how)
    one, codes = cured(DIMENSION, "LOSS004", workload(model, loss=F.nll_loss))
    x = one.workload.batches[0][0]
    torch.testing.assert_close(one.model(x).exp().sum(1), torch.ones(len(x)))
    assert "LOSS004" not in codes


# --------------------------------------------------------------------------------- batch-first


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(16, 24), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0].mean(1))


def test_samples_no_longer_mix() -> None:
    one, codes = cured(FIRST, "GRAPH007", workload(Recurrent(), batches((6, 16))), rule="GRAPH007")
    assert one.model.rnn.batch_first and "GRAPH007" not in codes
    x = one.workload.batches[0][0]
    torch.testing.assert_close(one.model(x)[:1], one.model(x[:1]))


def test_a_layer_without_that_choice_is_refused() -> None:
    with pytest.raises(Inapplicable, match="no layer of torch with batch_first"):
        FIRST.apply(patient(plain(2)), FIRST.fix("", finding("GRAPH007", "0"), layers=("0",)))
