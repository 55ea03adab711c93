"""`gradcheck.fix`: it cures what is faulty, leaves what is healthy, and changes nothing of what it is given."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.config.settings import Settings
from gradcheck.errors import ConfigError
from gradcheck.loading.objects import from_objects
from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.repair.fixed import Fixed
from gradcheck.repair.lab import RepairLab
from gradcheck.repair.options import options_of
from gradcheck.repair.story import fix_workload
from gradcheck.workload.treated import treated_copy
from tests.test_no_trace import loss, process_state, users

__all__ = ["users"]  # a fixture

QUICK = {"steps": 50}


def batches(count=4, features=16, classes=4, scale=1.0):
    """Samples of four classes, told apart by their mean."""
    g = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(classes, features, generator=g)
    labels = [torch.randint(classes, (64,), generator=g) for _ in range(count)]
    return [(scale * (means[y] + torch.randn(64, features, generator=g)), y) for y in labels]


def mlp(depth=1, activation=nn.ReLU, last=()):
    torch.manual_seed(0)
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), activation())]
    return nn.Sequential(*hidden, nn.Linear(16, 4), *last)


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


def trained(fixed, data, steps=100):
    """Accuracy on the data after training as the user would, with what `fix` gave."""
    for step in range(steps):
        x, y = fixed.prepare(data[step % len(data)])
        fixed.optimizer.zero_grad()
        fixed.loss(fixed.model(x), y).backward()
        fixed.clip(fixed.model.parameters())
        fixed.optimizer.step()
    with torch.no_grad():
        return sum((fixed.model(fixed.prepare(b)[0]).argmax(1) == b[1]).double().mean().item() for b in data) / len(data)


def kept(fixed):
    return [o.prescription.treatment for o in fixed.outcomes if o.status == "kept"]


FAULTY = {
    "a rate that is far too high": (mlp(), batches(), 300.0, False),
    "a rate that is far too low": (mlp(), batches(), 1e-7, False),
    "inputs without a scale": (mlp(), batches(scale=3000.0), 0.1, False),
    "a softmax before cross entropy": (mlp(last=[nn.Softmax(1)]), batches(), 0.1, True),
    "a deep sigmoid net": (mlp(12, nn.Sigmoid), batches(), 0.1, True),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_workload_trains_after_fix_and_scans_clean(fault):
    model, data, lr, unsafe = FAULTY[fault]
    fixed = gradcheck.fix(model, data, loss=F.cross_entropy, optimizer=sgd(model, lr), unsafe=unsafe, **QUICK)
    assert kept(fixed) and (fixed.report.proof.effect.better or "softmax" in fault)  # a softmax in this place slows, accuracy gets there
    assert fixed.after.count("error") == 0 and set(fixed.report.proof.cured)
    assert trained(fixed, data) > 0.9


def test_the_users_clipping_is_what_was_proposed_whatever_its_kind():
    data, clipped = batches(), []
    for name, setting in (
        ("clip-gradient-norm", "max_norm"),
        ("clip-gradient-value", "clip_value"),
        ("adaptive-gradient-clipping", "clipping"),
    ):
        model = mlp()
        treated = treated_copy(from_objects(model, data, loss=F.cross_entropy, optimizer=sgd(model, 0.1)))
        apply(treated, CATALOGUE[name].fix("", settings={setting: 1e-3}))
        fixed = Fixed(treated, None, None, None)
        F.cross_entropy(fixed.model(data[0][0]), data[0][1]).backward()
        fixed.clip(fixed.model.parameters())
        clipped.append([p.grad for p in fixed.model.parameters()])
    norm, value, adaptive = clipped
    assert sum(float((g**2).sum()) for g in norm) ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert max(float(g.abs().max()) for g in value) == pytest.approx(1e-3)
    assert sum(float((g**2).sum()) for g in adaptive) ** 0.5 > 2e-3  # a thousandth of each unit's weights


def test_a_healthy_workload_is_left_alone():
    model, data = mlp(), batches()
    fixed = gradcheck.fix(model, data, loss=F.cross_entropy, optimizer=sgd(model, 0.1))
    assert fixed.outcomes == () and fixed.report.proof is None and fixed.after is None
    assert fixed.model is not model and all(torch.equal(a, b) for a, b in zip(fixed.model.parameters(), model.parameters(), strict=True))
    assert trained(fixed, data) > 0.9


def test_what_is_not_safe_is_named_and_not_tried():
    model = mlp(last=[nn.Softmax(1)])
    fixed = gradcheck.fix(model, batches(), loss=F.cross_entropy, optimizer=sgd(model, 0.1), **QUICK)
    refused = [o for o in fixed.outcomes if o.status == "untried"]
    assert "remove-output-activation" in [o.prescription.treatment for o in refused]
    assert all("--unsafe-fixes" in o.reason for o in refused)
    assert [type(m) for m in fixed.model] == [type(m) for m in model]


def test_nothing_is_touched(users):
    users.optimizer.param_groups[0]["lr"] = 500.0
    before, process = users.state(), process_state()
    fixed = gradcheck.fix(users.model, users.batches, loss=loss, optimizer=users.optimizer, unsafe=True, budget=8, **QUICK)
    assert kept(fixed)
    assert users.state() == before and process_state() == process


def test_the_same_call_gives_the_same_result():
    def once():
        model = mlp()
        return gradcheck.fix(model, batches(), loss=F.cross_entropy, optimizer=sgd(model, 300.0), **QUICK)

    first, second = once(), once()
    assert [o.prescription for o in first.outcomes] == [o.prescription for o in second.outcomes]
    assert first.report.proof.effect == second.report.proof.effect


def test_outcomes_survive_a_round_trip_through_json(tmp_path):
    model = mlp()
    fixed = gradcheck.fix(model, batches(), loss=F.cross_entropy, optimizer=sgd(model, 300.0), **QUICK)
    fixed.report.to_json(tmp_path / "run.json")
    again = gradcheck.Report.load(tmp_path / "run.json")
    assert [(o.status, o.prescription.treatment) for o in again.outcomes] == [(o.status, o.prescription.treatment) for o in fixed.outcomes]
    assert again.proof.cured == fixed.report.proof.cured
    assert again.proof.effect.treated == pytest.approx(fixed.report.proof.effect.treated, rel=1e-5)


def test_a_training_step_and_a_model_with_a_loss_of_its_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x, labels):
            return {"loss": F.cross_entropy(self.body(x), labels)}

    for arguments in ({}, {"training_step": lambda m, b: m(*b)["loss"]}):
        model = Own()
        data = [{"x": x, "labels": y} for x, y in batches()] if not arguments else batches()
        fixed = gradcheck.fix(model, data, optimizer=sgd(model, 300.0), **arguments, **QUICK)
        assert kept(fixed)
        assert torch.isfinite(fixed.training_step(fixed.model, fixed.prepare(data[0])))


def test_time_that_is_up_leaves_what_is_known():
    model = mlp(12, nn.Sigmoid)
    started = time.perf_counter()
    fixed = gradcheck.fix(model, batches(), loss=F.cross_entropy, optimizer=sgd(model, 0.1), budget=0.01, config={"budget": 2})
    assert time.perf_counter() - started < 30
    assert fixed.report.findings and all(o.status != "kept" or o.treated for o in fixed.outcomes)


def interrupt_after(monkeypatch, count):
    check, seen = RepairLab.check, []

    def interrupted(self, what):
        seen.append(what)
        if len(seen) == count:
            raise KeyboardInterrupt
        check(self, what)

    monkeypatch.setattr(RepairLab, "check", interrupted)


def test_an_interrupt_ends_the_call_and_leaves_no_trace(monkeypatch, users):
    users.optimizer.param_groups[0]["lr"] = 500.0
    before, process = users.state(), process_state()
    interrupt_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        gradcheck.fix(users.model, users.batches, loss=loss, optimizer=users.optimizer, **QUICK)
    assert users.state() == before and process_state() == process


def test_an_interrupt_of_the_command_leaves_what_was_found_by_then(monkeypatch):
    model = mlp()
    workload = from_objects(model, batches(), loss=F.cross_entropy, optimizer=sgd(model, 300.0))
    whole = fix_workload(workload, Settings(), options_of(False, 50, 3, 60.0), partial=True)
    assert not whole.interrupted
    interrupt_after(monkeypatch, 4)
    part = fix_workload(workload, Settings(), options_of(False, 50, 3, 60.0), partial=True)
    assert part.interrupted and kept(part) == kept(whole) == ["lower-learning-rate"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 2}, "steps must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"budget": 0}, "budget must be"),
        ({"steps": 1.5}, "steps must be"),
    ],
)
def test_numbers_that_make_no_sense_are_said(arguments, words):
    with pytest.raises(ConfigError, match=words):
        gradcheck.fix(mlp(), batches(), loss=F.cross_entropy, **arguments)
