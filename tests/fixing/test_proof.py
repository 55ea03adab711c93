"""When runs on fresh seeds prove a treatment whatever their interval says."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from gradcheck.fixing.performance import Result
from gradcheck.fixing.proof import _rescued
from tests.literals import run


def result(loss):
    if math.isinf(loss):
        return Result(run([3.0, math.nan], ended="non-finite"), True)
    return Result(run([3.0] * 10 + [loss] * 90), True)


@pytest.mark.parametrize(
    ("untreated", "treated", "rescued"),
    [
        ((0.7, 2.1, 0.7), (0.01, 0.02, 0.01), True),  # the spread of the untreated losses makes an interval that includes 0
        ((1.0, math.inf, 1.0), (0.4, 0.1, 0.2), True),
        ((0.95,), (0.3,), True),
        ((0.7, 2.1, 0.7), (0.01, 0.6, 0.01), False),  # one of them does not train well
        ((0.7, 2.1, 0.5), (0.01, 0.2, 0.01), False),  # one untreated run comes near
        ((1.0, 1.0), (math.inf, 0.1), False),
        ((), (), False),
    ],
)
def test_what_trains_well_far_from_every_untreated_run_is_proved(untreated, treated, rescued):
    pairs = [(result(a), result(b)) for a, b in zip(untreated, treated, strict=True)]
    assert _rescued(SimpleNamespace(reference=1.0), pairs) is rescued
