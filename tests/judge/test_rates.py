"""What a weight decay is lowered to."""

from __future__ import annotations

import pytest

from gradcheck.judge.rates import gentle_decay
from tests.literals import measurement, optimizer


@pytest.mark.parametrize(
    ("facts", "strongest", "decay"),
    [
        (optimizer("SGD", lr=0.01, adaptive=False, decoupled=False), 0.3, 5e-4),  # what is usual beside the gradient
        (optimizer("SGD", lr=0.01, adaptive=False, decoupled=False), 1e-3, 1e-4),  # a tenth
        (optimizer("Adam", lr=1e-3, decoupled=False), 0.3, 1e-4),  # through the moments
        (optimizer("AdamW", lr=1e-3, decoupled=True), 50.0, 1.0),  # a time constant of a thousand steps
    ],
)
def test_a_gentle_decay_is_usual_and_slow(facts, strongest, decay):
    assert gentle_decay(measurement(optimizer=facts), strongest) == pytest.approx(decay)
