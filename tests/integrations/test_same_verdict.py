"""The same training gets the same verdict in a plain loop, in Accelerate, in Lightning and in transformers, although they clip, scale and
step at different places: gradients are read before clipping, without the loss scaler's factor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from gradcheck.types.report import Report
from tests.integrations import trainers
from tests.integrations.trainers import Plan

WAYS: dict[str, tuple[str, Callable[[Plan, Path], Report]]] = {
    "accelerate": ("accelerate", trainers.accelerated),
    "lightning": ("lightning", trainers.lightning),
    "pytorch_lightning": ("pytorch_lightning", functools.partial(trainers.lightning, package="pytorch_lightning")),
    "transformers": ("accelerate", trainers.transformers),  # its Trainer needs it
}
PLANS = {
    "healthy": Plan(trainers.healthy, steps=20),
    "vanishing, loss scaler": Plan(trainers.vanishing, scale=1024.0, steps=12),
    "exploding, accumulation": Plan(trainers.exploding, accumulate=3, steps=12),
}
EXPECTED = {"healthy": (), "vanishing, loss scaler": ("GRAD001",), "exploding, accumulation": ("GRAD002",)}


@functools.cache
def plain(name: str) -> Report:
    return trainers.plain(PLANS[name], Path())


@pytest.mark.parametrize("name", PLANS)
def test_the_plain_loop_gets_the_right_verdict(name: str) -> None:
    errors = {f.code for f in plain(name).findings if f.severity == "error"}
    assert set(EXPECTED[name]) <= errors
    assert errors if EXPECTED[name] else not plain(name).findings


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("way", WAYS)
def test_the_same_training_gets_the_same_verdict(way: str, name: str, tmp_path: Path) -> None:
    library, train = WAYS[way]
    pytest.importorskip(library)
    mine, other = plain(name), train(PLANS[name], tmp_path)
    assert [(f.code, f.severity) for f in other.findings] == [(f.code, f.severity) for f in mine.findings]
    a, b = mine.measurement.probe, other.measurement.probe
    assert b.gradient_norms == pytest.approx(a.gradient_norms, rel=1e-3)
    assert b.losses == pytest.approx(a.losses, rel=1e-3)
    assert (b.clipped, b.loss_scale) == (a.clipped, a.loss_scale) == (False, PLANS[name].scale or 1.0)
    assert max(a.gradient_norms) > PLANS[name].clip  # clipping was at work, and would be seen
    assert other.measurement.measured_steps == mine.measurement.measured_steps
    assert other.measurement.chance == pytest.approx(mine.measurement.chance, rel=1e-3)
