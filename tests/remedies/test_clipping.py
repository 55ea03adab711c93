"""Thresholds from measured norms, and clipping in the training of a patient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.clipping import norm_threshold, percentile
from gradcheck.types.training import Run
from gradcheck.workload.treated import treated_copy
from tests.literals import falling, measurement, optimizer
from tests.remedies.recipes import measured, order, patient, workload
from tests.trained import train


def test_the_percentile_of_a_list_against_counting() -> None:
    for count in (1, 2, 9, 10, 37):
        values = torch.randperm(count).tolist()
        found = percentile(values, 0.9)
        assert sum(v < found for v in values) <= 0.9 * count
        assert sum(v <= found for v in values) > 0.9 * count or found == max(values)


def test_the_threshold_is_the_90th_percentile_of_the_settled_norms() -> None:
    norms = (100.0,) * 20 + tuple(float(i) for i in range(1, 101))
    m = replace(measurement(), probe=Run("probe", falling(steps=120), norms))
    assert norm_threshold(m) == 91.0
    assert norm_threshold(replace(m, probe=replace(m.probe, gradient_norms=()))) == 1.0
    assert norm_threshold(replace(m, probe=replace(m.probe, gradient_norms=(3.0, float("inf"))))) == 3.0


def test_a_diverging_training_is_clipped_by_the_size_of_its_steps() -> None:
    """Its norms are symptoms: a step of plain SGD is to move the weights by 2 %, with momentum as much in the long run."""
    m = measurement(probe=Run("probe", (2.3, 1e9, float("inf")), (1e3, 1e9), ended="non-finite"), optimizer=optimizer("SGD", lr=0.1))
    m = replace(m, optimizer=replace(m.optimizer, adaptive=False, momentum=0.0))
    weights = sum(p.steps[0].norm ** 2 for p in m.parameters) ** 0.5
    assert norm_threshold(m) == pytest.approx(0.02 * weights / 0.1, rel=0.05)
    assert norm_threshold(replace(m, optimizer=replace(m.optimizer, momentum=0.9))) == pytest.approx(0.002 * weights / 0.1, rel=0.05)


def test_clipping_is_in_force_in_a_patient_s_training_and_its_copies() -> None:
    w = workload(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    for name, settings in (
        ("clip-gradient-norm", {"max_norm": 1e-3}),
        ("clip-gradient-value", {"clip_value": 1e-4}),
        ("adaptive-gradient-clipping", {"clipping": 1e-4}),
    ):
        treated = treated_copy(w)
        apply(treated, order(name, **settings))
        run = train(treated.copy(), steps=12, seed=0)
        assert abs(run.losses[-1] - run.losses[0]) < 0.6 * abs(train(treated_copy(w), steps=12, seed=0).losses[-1] - run.losses[0])
        assert w.clip is None


def test_adaptive_clipping_leaves_the_head_out() -> None:
    m = measured(workload(), 6, fast=True).measurement
    (p,) = CATALOGUE["adaptive-gradient-clipping"].propose(None, m)
    assert p.settings["exempt"] == "4.weight,4.bias"
    treated = patient()
    apply(treated, p)
    assert treated.workload.clip.exempt == ("4.weight", "4.bias")
    report = measured(treated.workload, 30)
    assert report.measurement.clip.kind == "adaptive" and report.measurement.clip.threshold == 0.01


def test_value_clipping_starts_from_the_largest_entries() -> None:
    m = measured(workload(), 30).measurement
    (p,) = CATALOGUE["clip-gradient-value"].propose(None, m)
    largest = [s.gradient_max for q in m.parameters for s in q.steps if s.gradient_max]
    assert min(largest) < float(p.settings["clip_value"]) <= max(largest) * 1.05
