"""A trial that ended before the untreated model had learned what it can says so, and recommends nothing for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import gradcheck
from gradcheck.report.brief import render as brief
from gradcheck.report.html import render as page
from gradcheck.report.markdown import render as markdown
from gradcheck.saved_run import dumps
from gradcheck.trials.plan import gets_further, leads_to, still_falling
from gradcheck.types.fix import Effect
from gradcheck.types.report import Report
from gradcheck.types.trial import Curve, Entry
from tests.literals import measurement
from tests.trials.problems import classes

LONGER_WAY = tuple(2.3 * 0.97**i for i in range(21))
OVERFITTED = tuple(0.6 + abs(i - 8) * 0.03 for i in range(21))


def entry(values, **more):
    steps = tuple(50 * i for i in range(len(values)))
    return Entry("untreated", "untreated", "untreated", validation=Curve(steps, tuple(values), tuple(values), tuple(values)), **more)


@pytest.mark.parametrize(
    ("values", "falls"),
    [
        (LONGER_WAY, True),
        (OVERFITTED, False),
        ([2.3, 0.6, *(0.5 + 0.004 * (i % 2) for i in range(19))], False),  # settled
        ([2.3 - 0.01 * i for i in range(21)], True),
        ([2.3, 2.0, 1.0, *(float("inf") for _ in range(18))], False),
        ([2.3], False),
        ((), False),
    ],
)
def test_whether_it_still_falls(values, falls):
    assert still_falling(entry(values), 0.02 * 2.3) is falls


def test_only_what_the_untreated_model_does_not_reach_by_going_on_is_recommended():
    base = entry(LONGER_WAY)
    assert leads_to(base) == pytest.approx(2.3 * 0.97**80)
    loss = Effect("validation loss", 1.3, 0.2, -1.1, -1.2, -1.0, 6, True)
    assert gets_further(entry((2.3, 0.5, 0.1), effect=loss), base)
    assert not gets_further(entry((2.3, 1.5, 1.0), effect=loss), base)
    assert not gets_further(entry((2.3, 0.5, 0.1), effect=replace(loss, lower_is_better=False)), base)


@pytest.fixture(scope="module")
def short():
    problem = classes()
    return gradcheck.trial(
        problem.model, problem.data, loss=problem.loss, optimizer=problem.optimizer, val_data=problem.val, remedies=["l2", "dropout"],
        steps=34, seeds=3, budget=60.0, workers=1,
    )  # fmt: skip


def test_a_short_trial_says_so_everywhere(short):
    said = "After 34 steps the untreated model's loss was still falling; too short to show overfitting: raise --budget."
    assert short.falling and not short.recommended and not short.diff and short.verdict.startswith(said)
    report = Report("model.py", (), (), (measurement(),), trial=short)
    assert "too short to recommend anything" in page([report]) and "After 34 steps" in brief([report])
    assert "still falling; too short to show overfitting: raise --budget" in markdown([report])
    assert '"falling":true' in dumps(report) and "Leave the model as it is" not in dumps(report)
