"""OPT008 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.rules.optimization.momentum_too_long import momentum_too_long
from tests.literals import measurement, optimizer, run
from tests.rules.verdicts import no_verdict, only, severities


@pytest.mark.parametrize(("momentum", "expected"), [(0.989, []), (0.99, ["info"]), (0.999, ["info"])])
def test_momentum_that_remembers_a_hundred_steps(momentum, expected):
    assert severities(momentum_too_long, measurement(optimizer=optimizer("SGD", momentum=momentum))) == expected


def test_it_says_how_many_steps_are_remembered():
    f = only(momentum_too_long, measurement(optimizer=optimizer("SGD", momentum=0.999)))
    assert "remembers 1000 steps (limit 100)" in f.message and f.remedies[0].name == "lower-momentum"


def test_where_it_says_nothing():
    assert no_verdict(momentum_too_long, measurement(optimizer=optimizer("SGD"))) == "not-applicable"
    assert no_verdict(momentum_too_long, measurement(optimizer=optimizer("AdamW", momentum=0.99))) == "not-applicable"
    assert no_verdict(momentum_too_long, measurement(optimizer=optimizer("SGD", momentum=0.999, given=False))) == "not-applicable"
    assert no_verdict(momentum_too_long, measurement(optimizer=optimizer("SGD", momentum=0.999), probe=run(()))) == "not-measured"
