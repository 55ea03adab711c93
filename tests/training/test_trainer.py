"""A short training ends in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gradcheck.training import trainer
from gradcheck.training.trainer import Trainer


@pytest.mark.parametrize(("seconds", "given", "steps"), [(1.0, 10.0, 10), (4.0, 10.0, 3), (6.0, 10.0, 3), (30.0, 10.0, 1), (1.0, -5.0, 3)])
def test_the_last_step_is_the_one_after_which_the_time_is_over(
    seconds: float, given: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least three are taken, but of steps that take far longer than all were to take, one is enough."""
    now = 100.0

    def observe(step: int, batch: Any) -> float:
        nonlocal now
        now += seconds
        return 1.0

    monkeypatch.setattr(trainer, "now", lambda: now)
    training = Trainer(SimpleNamespace(training_step=None), [None])  # type: ignore[arg-type]
    training.train(10, 100.0 + given, measured=range(10), observe=observe)
    assert training.step == steps and training.ended == ("done" if steps == 10 else "budget")
