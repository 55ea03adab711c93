"""Rates, schedules and decay: what is proposed from which numbers, and what becomes of the optimizer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.optimizer.settings import higher_rate, lower_rate, spare_vectors
from gradcheck.types.finding import Finding
from gradcheck.types.training import OptimizerFacts, Run
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, treated_copy
from tests.literals import falling, measurement
from tests.remedies.recipes import classification, measured, net, order, patient, step, workload


def with_rate(rate: float, ratio: float, **more: Any) -> Any:
    """A measurement at a rate, whose updates are `ratio` of their weights."""
    m = measurement(**more)
    steps = lambda p: tuple(replace(s, update_ratio=ratio) for s in p.steps)  # noqa: E731
    parameters = tuple(replace(p, steps=steps(p)) for p in m.parameters)
    return replace(m, parameters=parameters, optimizer=replace(m.optimizer, lr=rate))


def test_the_rate_of_the_experiment_that_learned_best_is_taken() -> None:
    run = lambda f, end: Run(f"rate x{f}", falling(steps=60, end=end), batches=4, lr=f, rate_factor=f)  # noqa: E731
    m = with_rate(1.0, 0.5, experiments=(run(0.1, 1.0), run(0.01, 0.1)), probe=Run("probe", (2.3,) * 60, batches=4))
    assert lower_rate(m) == 0.01


def test_without_experiments_the_update_ratio_gives_the_rate() -> None:
    assert lower_rate(with_rate(1.0, 0.2)) == pytest.approx(0.1)
    assert lower_rate(with_rate(1.0, 0.02)) == pytest.approx(0.33)
    assert higher_rate(with_rate(1e-5, 2e-6)) == pytest.approx(0.1)
    assert higher_rate(with_rate(1e-3, 0.02)) == pytest.approx(3e-3)


def test_a_training_that_diverges_gets_a_hundredth_at_most() -> None:
    m = with_rate(1.0, 0.1, probe=Run("probe", (2.3, 9.0, float("inf")), batches=4, ended="non-finite"))
    assert lower_rate(m) == pytest.approx(0.01)


def test_groups_keep_their_ratio_and_the_original_its_rate() -> None:
    model = net()
    groups = [{"params": list(model[0].parameters()), "lr": 0.1}, {"params": list(model[4].parameters()), "lr": 0.4}]
    w = workload(model, optimizer=lambda _: torch.optim.SGD(groups, lr=0.1))
    treated = treated_copy(w)
    apply(treated, order("lower-learning-rate", lr=0.01))
    assert [g["lr"] for g in treated.optimizer.param_groups] == pytest.approx([0.01, 0.04])
    assert [g["lr"] for g in w.optimizer.param_groups] == [0.1, 0.4]


@pytest.mark.parametrize("rate", [10.0, 30.0])
def test_a_rate_that_is_too_high_is_cured_on_a_real_net(rate: float) -> None:
    w = workload(optimizer=lambda p: torch.optim.SGD(p, lr=rate))
    report = measured(w, 60)
    finding = next(f for f in report.findings if f.code == "OPT001")
    (p,) = CATALOGUE["lower-learning-rate"].propose(finding, report.measurement)
    treated = treated_copy(w)
    apply(treated, p)
    after = measured(treated.workload, 60)
    assert not any(f.code == "OPT001" for f in after.findings)
    assert after.measurement.probe.losses[-1] < 0.5 * after.measurement.probe.losses[0]


@pytest.mark.parametrize(("batches", "beta", "steps"), [(8, 0.999, 200), (70, 0.999, 700), (70, 0.98, 100), (900, 0.999, 2000)])
def test_warm_up_is_untuned_and_no_longer_than_ten_passes(batches: int, beta: float, steps: int) -> None:
    m = measurement()
    m = replace(m, data=replace(m.data, batches=batches), optimizer=replace(m.optimizer, betas=(0.9, beta)))
    assert CATALOGUE["warm-up"].propose(None, m)[0].settings["steps"] == steps


@pytest.mark.parametrize("name", ["warm-up", "cosine-schedule", "step-schedule"])
def test_schedules_act_in_a_bare_loop_and_in_copies(name: str) -> None:
    (p,) = CATALOGUE[name].propose(None, measured(workload(), 6).measurement)
    p = replace(p, settings={**p.settings, "steps": 2})
    plain, treated = patient(), patient()
    apply(treated, p)
    twin = treated.copy()
    for _ in range(4):
        for one in (plain, treated, twin):
            step(one)
    assert all(torch.equal(a, b) for a, b in zip(treated.model.parameters(), twin.model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(treated.model.parameters(), plain.model.parameters(), strict=True))
    assert treated.optimizer.param_groups[0]["lr"] == 0.1


def test_epsilon_becomes_the_usual_one_or_a_smaller_one() -> None:
    def proposed(eps: float) -> float:
        m = replace(measurement(), optimizer=replace(measurement().optimizer, eps=eps))
        finding = Finding("OPT003", "adam-epsilon", "warning", "")
        return float(CATALOGUE["adam-epsilon"].propose(finding, m)[0].settings["eps"])

    assert proposed(0.1) == 1e-8
    assert proposed(1e-8) == 1e-12
    assert CATALOGUE["adam-epsilon"].propose(None, replace(measurement(), optimizer=replace(measurement().optimizer, eps=1e-8))) == []
    treated = patient(optimizer=lambda p: torch.optim.Adam(p, eps=0.1))
    apply(treated, order("adam-epsilon", eps=1e-8))
    assert treated.optimizer.param_groups[0]["eps"] == 1e-8
    with pytest.raises(Inapplicable, match="SGD has no epsilon"):
        apply(patient(), order("adam-epsilon", eps=1e-8))


def test_momentum_becomes_the_usual_one() -> None:
    facts = replace(measurement().optimizer, name="SGD", adaptive=False, momentum=0.999)
    assert CATALOGUE["lower-momentum"].propose(None, replace(measurement(), optimizer=facts))[0].settings == {"momentum": 0.9}
    assert CATALOGUE["lower-momentum"].propose(None, replace(measurement(), optimizer=replace(facts, momentum=0.9))) == []
    treated = patient(optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.999))
    apply(treated, order("lower-momentum", momentum=0.9))
    assert treated.optimizer.param_groups[0]["momentum"] == 0.9
    with pytest.raises(Inapplicable, match="Adam has no momentum"):
        apply(patient(optimizer=torch.optim.Adam), order("lower-momentum", momentum=0.9))


def test_adam_becomes_adamw_with_its_moments_and_hooks() -> None:
    treated = patient(optimizer=lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3))
    apply(treated, order("warm-up", steps=100, start=0.5))
    for _ in range(3):
        step(treated)
    old = treated.optimizer
    moments = {k: v["exp_avg"].clone() for k, v in old.state.items()}
    apply(treated, order("decoupled-weight-decay", weight_decay=0.05))
    new = treated.optimizer
    assert isinstance(new, torch.optim.AdamW) and new is not old
    assert all(torch.equal(new.state[k]["exp_avg"], v) for k, v in moments.items())
    assert {g["weight_decay"] for g in new.param_groups} == {0.05, 0.0}
    assert all(p.dim() >= 2 for g in new.param_groups if g["weight_decay"] for p in g["params"])
    assert len(new._optimizer_step_pre_hooks) == 1
    step(treated)
    assert {k: v["lr"] for k, v in enumerate(new.param_groups)} == {0: 0.01, 1: 0.01}


def assert_same_training(treated: TreatedWorkload, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Over ten steps on one batch."""
    x, y = classification()[0]
    for _ in range(10):
        step(treated)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for a, b in zip(treated.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_decoupled_decay_is_that_of_torch() -> None:
    """A patient treated from Adam, against AdamW written by hand, over ten steps."""
    treated = patient(optimizer=lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3))
    apply(treated, order("decoupled-weight-decay", weight_decay=0.1))
    model = net()
    matrices, vectors = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=0.01)
    assert_same_training(treated, model, optimizer)


def test_sgd_has_no_decoupled_form() -> None:
    with pytest.raises(Inapplicable, match="SGD"):
        apply(patient(), order("decoupled-weight-decay", weight_decay=0.1))
    sgd = replace(measurement(), optimizer=OptimizerFacts("SGD", True, False, 0.1))
    assert CATALOGUE["decoupled-weight-decay"].propose(None, sgd) == []


def test_biases_and_gains_leave_the_decayed_group() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    w = workload(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2))
    (p,) = CATALOGUE["weight-decay-groups"].propose(None, measured(w, 6).measurement)
    treated = treated_copy(w)
    apply(treated, p)
    first, second = treated.optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.2, 0.0)
    assert [q.dim() for q in first["params"]] == [2, 2] and len(second["params"]) == 4
    assert second["momentum"] == 0.9
    assert len(w.optimizer.param_groups) == 1
    step(treated)
    with pytest.raises(Inapplicable):
        apply(treated, p)


def test_a_group_of_vectors_only_loses_its_decay() -> None:
    bias = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([bias], lr=0.1, weight_decay=0.5)
    assert spare_vectors(optimizer) == 1
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["weight_decay"] == 0.0


def test_weaker_decay_never_raises_it() -> None:
    model = net()
    groups = [{"params": list(model[0].parameters()), "weight_decay": 1e-6}, {"params": list(model[4].parameters()), "weight_decay": 0.5}]
    treated = patient(model, optimizer=lambda _: torch.optim.SGD(groups, lr=0.1))
    apply(treated, order("weaker-weight-decay", weight_decay=1e-3))
    assert [g["weight_decay"] for g in treated.optimizer.param_groups] == [1e-6, 1e-3]
    with pytest.raises(Inapplicable, match="no weight decay"):
        apply(patient(), order("weaker-weight-decay", weight_decay=1e-3))


def penalised_step(model: nn.Module, batch: Any) -> torch.Tensor:
    penalty = sum(p.abs().sum() for p in model.parameters())
    return F.cross_entropy(model(batch[0]), batch[1]) + 0.1 * penalty


def test_a_penalty_in_the_loss_is_divided() -> None:
    w = workload(training_step=penalised_step, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3))
    report = measured(w, 60)
    finding = next(f for f in report.findings if f.code == "REG001")
    (p,) = CATALOGUE["weaker-weight-decay"].propose(finding, report.measurement)
    divisor = float(p.settings["divisor"])
    treated = treated_copy(w)
    apply(treated, p)
    treated = treated.copy()
    x, y = w.batches[0]
    model = treated.model
    wanted = F.cross_entropy(model(x), y) + 0.1 / divisor * sum(q.abs().sum() for q in model.parameters())
    value = treated.workload.training_step(model, (x, y))
    torch.testing.assert_close(value, wanted)
    ours = torch.autograd.grad(value, list(model.parameters()))
    theirs = torch.autograd.grad(wanted, list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not any(f.code == "REG001" and f.severity == "error" for f in measured(treated.workload, 60).findings)


def test_adam_in_the_place_of_sgd_is_that_of_torch() -> None:
    """A patient treated from SGD with momentum, after some steps, against AdamW written by hand."""
    treated = patient(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.3))
    model = copy.deepcopy(treated.model)
    apply(treated, order("adaptive-optimizer", lr=0.003, weight_decay=0.01))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.01)
    assert_same_training(treated, model, optimizer)


def test_adam_keeps_the_ratios_of_groups_and_gives_none_a_decay_that_it_had_not() -> None:
    treated = patient()
    first, *rest = treated.model.parameters()
    groups = [{"params": [first], "weight_decay": 0.5}, {"params": rest, "lr": 0.2, "initial_lr": 0.4}]
    treated.replace_optimizer(torch.optim.SGD(groups, lr=0.1))
    apply(treated, order("warm-up", steps=100, start=0.5))
    apply(treated, order("adaptive-optimizer", lr=1e-3, weight_decay=0.01))
    new = treated.optimizer
    assert [(g["lr"], g["weight_decay"]) for g in new.param_groups] == [(1e-3, 0.01), (2e-3, 0.0)]
    assert new.param_groups[1]["initial_lr"] == 4e-3 and len(new._optimizer_step_pre_hooks) == 1


def test_adam_is_put_in_the_place_of_sgd_only() -> None:
    with pytest.raises(Inapplicable, match="Adam is not SGD"):
        apply(patient(optimizer=torch.optim.Adam), order("adaptive-optimizer", lr=1e-3, weight_decay=0.0))
    propose = CATALOGUE["adaptive-optimizer"].propose
    sgd = OptimizerFacts("SGD", True, False, 0.1)
    assert propose(None, replace(measurement(), optimizer=replace(sgd, name="AdamW"))) == []
    (plain,), (decayed,) = (
        propose(None, replace(measurement(), optimizer=o, parameters=())) for o in (sgd, replace(sgd, weight_decay=0.3))
    )
    assert plain.settings == {"lr": 1e-3, "weight_decay": 0.0} and "train with Adam at rate 0.001" in plain.text
    assert decayed.settings == {"lr": 1e-3, "weight_decay": 0.01} and decayed.applicability == "unsafe"
