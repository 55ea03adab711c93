"""The Python face: one call, and the objects that it was given are as before."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import gradcheck
from gradcheck.instrument import activation_recorder, unit_activity
from gradcheck.pipeline import MANY, _counted, _in_turn


def data(count: int = 4):
    g = torch.Generator().manual_seed(0)
    means = torch.randn(3, 8, generator=g)
    labels = [torch.randint(3, (32,), generator=g) for _ in range(count)]
    return [(means[y] + 0.5 * torch.randn(32, 8, generator=g), y) for y in labels]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def test_a_healthy_model_has_no_findings_and_every_rule_has_a_state():
    model = net()
    report = gradcheck.scan(model, data(), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(model.parameters(), 0.01))
    assert report.findings == () and report.exit_code("info") == 0
    assert {s.status for s in report.rules} <= {"passed", "not-applicable", "not-measured"}
    assert [x.name for x in report.layers] == ["0", "1", "2", ""]


class Kernel(nn.Module):
    """No layer, and called past torch's hooks: as the kernels of a Gaussian process are."""

    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(3, 8))

    def __call__(self, x):
        return -torch.cdist(x, self.centers)


def test_a_model_whose_inside_is_not_seen_is_judged_in_part():
    batches = data()
    for model, in_part in ((net(), False), (torch.jit.script(net()), True), (nn.Sequential(Kernel()), False)):
        report = gradcheck.scan(model, batches, loss=nn.CrossEntropyLoss(), config={"ignore": ["GRAPH005"]})
        assert report.coverage.in_part is in_part and report.exit_code() == 2 * in_part
        assert any("torch.jit" in reason for reason in report.coverage.reasons) is in_part


def test_selected_rules_measure_only_what_they_need():
    model = net()
    report = gradcheck.scan(model, data(), loss=nn.CrossEntropyLoss(), config={"select": ["LOSS001"]})
    assert report.measurement.steps == 1 and [s.code for s in report.rules] == ["LOSS001"]


def test_a_layer_that_cannot_be_measured_spoils_nothing_else(monkeypatch):
    def fails(*_):
        raise ValueError("no units here")

    monkeypatch.setattr(unit_activity, "alive", fails)
    monkeypatch.setattr(unit_activity, "saturated_share", fails)
    report = gradcheck.scan(net(), data(), loss=nn.CrossEntropyLoss())
    assert ("layer 1", "ValueError: no units here") in {(n.what, n.detail) for n in report.measurement.not_measured}
    assert report.measurement.steps == 100 and report.measurement.layer("2").at(0).gradient.norm > 0


def test_a_fault_of_gradchecks_own_is_not_blamed_on_the_user(monkeypatch):
    def fails(self):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(activation_recorder.ActivationRecorder, "settle", fails)
    with pytest.raises(ZeroDivisionError):
        gradcheck.scan(net(), data(), loss=nn.CrossEntropyLoss())


def test_a_later_batch_of_another_width_is_one_error_that_names_the_step():
    batches = [*data(2), (torch.randn(32, 9), torch.zeros(32, dtype=torch.long))]
    with pytest.raises(gradcheck.TargetError) as error:
        gradcheck.scan(net(), batches, loss=nn.CrossEntropyLoss())
    assert "step 2" in error.value.message and "shapes cannot be multiplied" in error.value.message and error.value.hint


def test_labels_out_of_range_in_a_later_batch_are_a_finding():
    batches = [*data(2), (torch.randn(32, 8), torch.full((32,), 3))]
    report = gradcheck.scan(net(), batches, loss=nn.CrossEntropyLoss())
    assert ("LOSS002", "error") in {(f.code, f.severity) for f in report.findings}


def test_a_penalty_over_the_models_own_weights_works_on_the_copy():
    model = net()
    penalty = lambda output, target: nn.functional.cross_entropy(output, target) + 1e-3 * sum(p.square().sum() for p in model.parameters())  # noqa: E731
    report = gradcheck.scan(model, data(), loss=penalty)
    assert report.findings == () and all(p.grad is None for p in model.parameters())
    assert not report.measurement.hidden


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.Adadelta, torch.optim.Rprop, torch.optim.NAdam])
def test_other_optimizers_train_the_copy(optimizer):
    model = net()
    report = gradcheck.scan(model, data(), loss=nn.CrossEntropyLoss(), optimizer=optimizer(model.parameters(), lr=0.01), steps=12)
    assert report.measurement.steps >= 12 and report.measurement.optimizer.given


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_draws_the_same_order_after_a_scan(workers):
    inputs, labels = (torch.cat(column) for column in zip(*data(), strict=True))
    generator = torch.Generator().manual_seed(5)
    dataset = torch.utils.data.TensorDataset(inputs, labels)
    loader = torch.utils.data.DataLoader(dataset, 32, True, generator=generator, num_workers=workers, persistent_workers=workers > 0)
    before = generator.get_state()
    gradcheck.scan(net(), loader, loss=nn.CrossEntropyLoss(), steps=5)
    assert torch.equal(generator.get_state(), before)
    assert loader._iterator is None


def test_making_a_large_model_counts_in_its_budget():
    with torch.device("meta"):
        large = nn.Linear(10_000, 5_000)
    assert [_counted(loading, 60.0, large) for loading in (2.0, 10.0, 90.0)] == [0.0, 7.0, 30.0]
    many = nn.Sequential(*(nn.Identity() for _ in range(MANY)))
    assert _counted(10.0, 60.0, many) == 7.0
    assert _counted(10.0, 60.0, net()) == 0.0  # slow imports take nothing from the measuring of a small one


@pytest.mark.parametrize(("alone", "order", "given"), [(True, [1, 2, 9], [3, 4, 7]), (False, [9, 1, 2], [3, 3, 3])])
def test_the_time_that_a_small_training_leaves_goes_to_larger_ones(monkeypatch, alone, order, given):
    trainings: list[Any] = [SimpleNamespace(workload=SimpleNamespace(model=nn.Linear(size, 1))) for size in (9, 1, 2)]
    seen, clock = [], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def scanned(training, seconds):
        seen.append((training.workload.model.in_features, seconds))
        clock[0] += 1
        return training

    assert _in_turn(trainings, 9.0, scanned, alone=alone) == trainings
    assert seen == list(zip(order, given, strict=True))
