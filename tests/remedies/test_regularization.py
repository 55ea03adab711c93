"""Penalties measured in the loss, dropout that is there or not, and less of all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.regularization.penalties import penalised, units
from gradcheck.types.finding import Finding
from gradcheck.workload.treated import Inapplicable, treated_copy
from tests.remedies.recipes import classification, measured, net, order, patient, step, workload


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters() if p.dim() > 1]


def sparse_regression() -> list[Any]:
    """Eight of sixty features matter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 60, generator=generator)
    truth = torch.zeros(60, 1)
    truth[:8] = 1.0
    y = x @ truth + 0.1 * torch.randn(96, 1, generator=generator)
    return [(x[i : i + 32], y[i : i + 32]) for i in range(0, 96, 32)]


@pytest.mark.parametrize("name", ["l1", "l2", "elastic-net"])
def test_a_strength_of_one_is_a_penalty_as_large_as_the_loss(name: str) -> None:
    w = workload()
    m = measured(w, 6).measurement
    (p,) = CATALOGUE[name].propose(None, m)
    s = CATALOGUE[name].at(p, strength=1.0).settings
    l1, l2 = float(s.get("l1", 0.0)), float(s.get("l2", s.get("weight_decay", 0.0)))
    penalty = sum(l1 * x.abs().sum() + l2 / 2 * x.square().sum() for x in weights(w.model))
    loss = w.training_step(w.model, w.batches[0])
    assert penalty.item() == pytest.approx(loss.item(), rel=0.12)


def test_strengths_keep_factors_and_words_in_step() -> None:
    elastic = CATALOGUE["elastic-net"]
    (p,) = elastic.propose(None, measured(workload(), 6).measurement)
    double = elastic.at(p, strength=2 * float(p.settings["strength"]))
    assert double.settings["l1"] == pytest.approx(2 * float(p.settings["l1"]))
    assert double.settings["l2"] == pytest.approx(2 * float(p.settings["l2"]))
    lasso = elastic.at(p, l1_ratio=1.0)
    assert lasso.settings["l2"] == 0.0 and lasso.settings["l1"] == pytest.approx(2 * float(p.settings["l1"]))
    assert double.text != p.text and "||w||_1" in double.text


def test_biases_gains_and_embeddings_are_not_penalised() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 3))
    batches = [(torch.randint(9, (8, 3)), torch.randint(3, (8,))) for _ in range(3)]
    m = measured(workload(model, batches), 6).measurement
    assert [p.name for p in penalised(m)] == ["3.weight"]
    for name in ("l1", "l2", "elastic-net"):
        treated, plain = patient(model, batches), patient(model, batches)
        (p,) = CATALOGUE[name].propose(None, m)
        apply(treated, CATALOGUE[name].at(p, strength=3.0))
        for one in (treated, plain):
            step(one)
        same = [torch.equal(a, b) for a, b in zip(treated.model.parameters(), plain.model.parameters(), strict=True)]
        assert same == [True, True, True, False, True]


def test_l1_finds_the_features_that_matter_and_zeroes_the_others() -> None:
    batches = sparse_regression()
    w = workload(nn.Linear(60, 1), batches, F.mse_loss, lambda p: torch.optim.Adam(p, lr=0.02))
    treated = treated_copy(w)
    (p,) = CATALOGUE["l1"].propose(None, measured(w, 6).measurement)
    apply(treated, CATALOGUE["l1"].at(p, strength=0.05))
    for t in range(1500):
        step(treated, batches[t % 3])
    weight = treated.model.weight.detach().flatten()
    assert (weight[:8] > 0.5).all()
    assert (weight[8:] == 0).float().mean() > 0.8


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_l2_is_coupled_whatever_the_optimizer(kind: str) -> None:
    """Against the penalty written into the loss."""
    make = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
    }[kind]
    treated = patient(optimizer=make)
    apply(treated, order("l2", weight_decay=0.2))
    treated = treated.copy()
    model = net()
    optimizer = make(model.parameters())
    x, y = classification()[0]
    for _ in range(10):
        step(treated)
        optimizer.zero_grad()
        penalty = 0.1 * sum(p.square().sum() for p in model.parameters() if p.dim() > 1)
        (F.cross_entropy(model(x), y) + penalty).backward()
        optimizer.step()
    for a, b in zip(treated.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_weight_decay_that_is_there_stays() -> None:
    treated = patient(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1))
    apply(treated, order("l2", weight_decay=0.2))
    assert [g["weight_decay"] for g in treated.optimizer.param_groups] == pytest.approx([0.3, 0.0])


def test_there_is_no_unit_where_the_loss_is_none() -> None:
    m = measured(workload(), 6).measurement
    assert units(replace(m, probe=replace(m.probe, losses=()))) is None
    assert CATALOGUE["l1"].propose(None, replace(m, probe=replace(m.probe, losses=(float("nan"),)))) == []


# ------------------------------------------------------------------------------- dropout


class Functional(nn.Module):
    """Dropout as a call, with a constant rate, and activations as calls."""

    def __init__(self, dropout: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        if self.dropout:
            x = F.dropout(x, 0.9, self.training)
        x = F.relu(self.b(x))
        if self.dropout:
            x = F.dropout(x, p=0.9, training=self.training)
        return self.c(x)


def dropped(model: nn.Module) -> list[float]:
    """Rates that a training step draws with."""
    rates: list[float] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is F.dropout and kwargs.get("training", args[2] if len(args) > 2 else True):
                rates.append(kwargs.get("p", args[1] if len(args) > 1 else 0.5))
            return func(*args, **kwargs)

    with Watch():
        model(classification()[0][0])
    return rates


def test_dropout_goes_behind_every_hidden_activation() -> None:
    w = workload()
    (p,) = CATALOGUE["dropout"].propose(None, measured(w, 6).measurement)
    assert p.layers == ("1", "3") and p.applicability == "unsafe"
    treated = treated_copy(w)
    apply(treated, replace(p, settings={**p.settings, "rate": 0.35}))
    treated = treated.copy()
    assert dropped(treated.model) == [0.35, 0.35]
    assert set(treated.model.state_dict()) == set(w.model.state_dict())
    treated.model.eval()
    assert dropped(treated.model) == []
    torch.testing.assert_close(treated.model(w.batches[0][0]), w.model(w.batches[0][0]))


def test_dropout_goes_around_activations_that_are_calls() -> None:
    w = workload(Functional(False))
    (p,) = CATALOGUE["dropout"].propose(None, measured(w, 6).measurement)
    treated = treated_copy(w)
    apply(treated, p)
    treated = treated.copy()
    assert dropped(treated.model) == [0.2, 0.2] and dropped(w.model) == []
    treated.model.eval()
    assert dropped(treated.model) == []


def test_dropout_that_is_there_gets_another_rate() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    (p,) = CATALOGUE["dropout"].propose(None, measured(workload(model), 6).measurement)
    assert p.layers == ("2",) and p.applicability == "safe" and not p.settings["insert"]
    treated = patient(model)
    apply(treated, p)
    assert dropped(treated.model) == [0.2] and model[2].p == 0.1


def test_dropout_that_is_too_strong_is_lowered_in_calls_and_modules() -> None:
    w = workload(Functional(True), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    report = measured(w, 60)
    (p,) = CATALOGUE["lower-dropout"].propose(None, report.measurement)
    treated = treated_copy(w)
    apply(treated, p)
    treated = treated.copy()
    assert dropped(treated.model) == [0.2, 0.2] and dropped(w.model) == [0.9, 0.9]
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.95), nn.Linear(16, 3))
    (p,) = CATALOGUE["lower-dropout"].propose(None, measured(workload(model), 6).measurement)
    treated = patient(model)
    apply(treated, p)
    assert dropped(treated.model) == [0.2]


def deep(count: int, rate: float) -> nn.Module:
    return nn.Sequential(*(layer for _ in range(count) for layer in (nn.Linear(6, 6), nn.Dropout(rate))), nn.Linear(6, 3))


def test_many_weak_dropouts_in_a_row_are_lowered_and_few_are_not() -> None:
    (p,) = CATALOGUE["lower-dropout"].propose(None, measured(workload(deep(24, 0.1)), 6).measurement)
    assert len(p.layers) == 24 and (1 - p.settings["rate"]) ** 24 == pytest.approx(0.8**4, abs=0.02)
    assert CATALOGUE["lower-dropout"].propose(None, measured(workload(deep(4, 0.1)), 6).measurement) == []
    assert CATALOGUE["lower-dropout"].propose(None, measured(workload(deep(4, 0.0)), 6).measurement) == []


def test_dropout_inside_attention_and_recurrence() -> None:
    treated = patient(nn.Sequential(nn.Linear(6, 3), nn.Identity()))
    lstm = nn.LSTM(6, 4, num_layers=2, dropout=0.7)
    treated.model.add_module("lstm", lstm)
    apply(treated, order("lower-dropout", layers=("lstm",), rate=0.2))
    assert treated.model.lstm.dropout == 0.2


def test_dropout_that_would_rename_parameters_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 3))
    with pytest.raises(Inapplicable, match="rename"):
        apply(patient(model), order("dropout", layers=("1",), rate=0.2, insert=True))


def test_less_of_everything() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.6), nn.Linear(16, 3))
    given: dict[str, Any] = {
        "model": model,
        "loss": nn.CrossEntropyLoss(label_smoothing=0.7),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.2, weight_decay=0.05),
    }
    m = measured(workload(**given), 6).measurement
    assert CATALOGUE["less-regularization"].propose(None, m) == []
    (p,) = CATALOGUE["less-regularization"].propose(Finding("REG005", "over-regularized", "warning", ""), m)
    assert {k: p.settings[k] for k in ("weight_decay", "rate", "smoothing")} == {"weight_decay": 1e-4, "rate": 0.1, "smoothing": 0.05}
    treated = patient(**given)
    apply(treated, p)
    assert treated.optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert treated.workload.loss.label_smoothing == 0.05 and treated.model[2].p == 0.1
    assert given["loss"].label_smoothing == 0.7 and model[2].p == 0.6


def test_early_stopping_changes_nothing_but_the_record() -> None:
    w = workload()
    (p,) = CATALOGUE["early-stopping"].propose(None, measured(w, 6).measurement)
    treated = treated_copy(w)
    apply(treated, p)
    assert treated.applied == [p]
    assert step(treated) == step(treated_copy(w))
