"""What a weight decay is lowered to."""

from __future__ import annotations

import pytest

from gradcheck.analysis.update_sizes import decay_matters, gentle_decay
from tests.literals import measurement, optimizer, parameter


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


@pytest.mark.parametrize(
    ("name", "decoupled", "decay", "matters"),
    [
        ("AdamW", True, 0.01, True),
        ("AdamW", True, 1.1e-4, True),  # 1 % in 100 000 steps at 0.001
        ("AdamW", True, 0.9e-4, False),
        ("SGD", False, 1e-8, False),
        ("Adam", False, 2.1e-4, True),  # 5 of weight beside 0.1 of gradient: 1 % of it
        ("Adam", False, 1.9e-4, False),
        ("Adam", False, 1e-8, False),
    ],
)
def test_a_decay_that_does_nothing_does_not_matter(name, decoupled, decay, matters):
    m = measurement(optimizer=optimizer(name, adaptive=name != "SGD", decoupled=decoupled, lr=1e-3))
    assert decay_matters(m, parameter("fc1.bias", weight_decay=decay)) is matters
