"""When runs on fresh seeds prove a treatment whatever their interval says."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from gradcheck.repair.rescan import compare
from gradcheck.repair.verification import _rescued, _undecided, verify
from gradcheck.training.result import Result
from gradcheck.types.fix import Fix, Outcome
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


@pytest.mark.parametrize(
    ("untreated", "treated", "undecided"),
    [
        ((1.0, 0.5, 1.0), (0.34, 0.22, 0.58), True),  # one of them does not train well, and three differences are too few
        ((1.0, 1.0, 1.0), (0.8, 0.81, 0.8), False),  # better for sure
        ((1.0, 1.0, 1.0), (0.1, 0.2, 0.1), False),  # proved
        ((1.0, 0.9, 1.0), (0.99, 0.91, 0.98), False),  # nothing that more pairs would be spent on
        ((0.5, 0.5, 0.5), (0.9, 0.6, 1.5), False),  # worse
    ],
)
def test_more_pairs_are_trained_where_three_show_a_gain_and_leave_it_in_doubt(untreated, treated, undecided):
    session = SimpleNamespace(reference=1.0)
    pairs = [(result(a), result(b)) for a, b in zip(untreated, treated, strict=True)]
    effect = compare([a for a, _ in pairs], [b for _, b in pairs])
    assert _undecided(session, effect, pairs) is undecided


class Trainings:
    """A session whose trainings are made up; what a scan finds with a treatment is `after`."""

    def __init__(self, untreated, treated, after=()):
        self.kept, self.reference, self.steps, self.outcomes = (PLAN,), 1.0, 100, {}
        self.base, self.losses, self.seeds = SimpleNamespace(findings=(), measurement=None), (untreated, treated), set()
        self.lab = SimpleNamespace(
            options=SimpleNamespace(seeds=3),
            proof_seed=0,
            settings=None,
            train=self.train,
            rescan=lambda plan: SimpleNamespace(findings=after, measurement=None),
        )

    def train(self, plan, steps, seed):
        self.seeds.add(seed)
        return result(self.losses[bool(plan)][seed])

    def drop(self, fix, status, reason):
        self.kept, self.outcomes = (), {"": Outcome(fix, status, reason)}


PLAN = Fix("warm-up", "", "optimizer", "safe")


@pytest.mark.parametrize(("last", "kept"), [((0.3, 0.3), (PLAN,)), ((1.3, 1.2), ())])
def test_five_pairs_decide_what_three_did_not(last, kept):
    session = Trainings((1.0, 0.5, 1.0, 1.0, 1.0), (0.34, 0.22, 0.58, *last))
    assert verify(session).plan == kept and session.seeds == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("severity", "kept"), [("warning", (PLAN,)), ("error", ())])
def test_a_rescued_training_may_come_with_a_new_warning_and_not_with_a_new_error(severity, kept):
    session = Trainings((1.0,) * 3, (0.1,) * 3, (SimpleNamespace(code="OPT005", severity=severity),))
    assert verify(session).plan == kept and session.seeds == {0, 1, 2}
    merely_better = Trainings((1.0,) * 3, (0.7,) * 3, (SimpleNamespace(code="OPT005", severity=severity),))
    assert verify(merely_better).plan == ()
