"""LOOP013 on literal measurements."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradcheck.instrument.schedulers import laid_out
from gradcheck.rules.loop.schedule_kills_rate import schedule_kills_rate
from gradcheck.rules.loop.schedule_misplaced import schedule_misplaced
from gradcheck.types.loop import LoopSchedule
from tests.literals import location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def schedule(**overrides: Any) -> LoopSchedule:
    """One-cycle over 10 epochs of 30 steps, stepped once an epoch."""
    values: dict[str, Any] = {"kind": "OneCycleLR", "length": 300, "decay": None, "calls": 6, "stepped": "epoch", "epochs": 10}
    return LoopSchedule(**values | {"epoch_steps": 30, "site": location(5), "step_site": location(9)} | overrides)


def seen(**overrides: Any) -> Any:
    return measurement(loop=loop(schedulers=(schedule(**overrides),)))


class TestScheduleMisplaced:
    @pytest.mark.parametrize(("length", "expected"), [(300, ["warning"]), (240, ["warning"]), (239, []), (10, [])])
    def test_laid_out_for_all_steps_and_stepped_once_an_epoch(self, length, expected):
        assert severities(schedule_misplaced, seen(length=length)) == expected

    @pytest.mark.parametrize(("steps", "expected"), [(4, ["warning"]), (3, [])])
    def test_short_epochs_say_nothing(self, steps, expected):
        assert severities(schedule_misplaced, seen(epoch_steps=steps, length=10 * steps)) == expected

    @pytest.mark.parametrize(("length", "expected"), [(10, ["warning"]), (20, ["warning"]), (21, []), (300, [])])
    def test_laid_out_for_epochs_and_stepped_after_each_step(self, length, expected):
        assert severities(schedule_misplaced, seen(kind="CosineAnnealingLR", length=length, stepped="step")) == expected

    @pytest.mark.parametrize("kind", ["LinearLR", "ConstantLR"])
    def test_a_warm_up_may_be_short(self, kind):
        assert findings(schedule_misplaced, seen(kind=kind, length=10, stepped="step")) == []
        assert severities(schedule_misplaced, seen(kind=kind)) == ["warning"]

    @pytest.mark.parametrize(("decay", "expected"), [(0.96, ["warning"]), (0.97, []), (0.3, [])])
    def test_a_decay_that_leaves_nothing_when_it_is_stepped_too_often(self, decay, expected):
        """Over 300 steps 0.96 leaves 5e-6 and 0.97 1e-4; 0.3 leaves 6e-6 over 10 epochs, too."""
        assert severities(schedule_misplaced, seen(kind="ExponentialLR", length=1, decay=decay, stepped="step")) == expected

    @pytest.mark.parametrize(("warm_up", "stepped", "told"), [(601, "step", True), (600, "step", False), (21, "epoch", True)])
    def test_a_warm_up_longer_than_the_training(self, warm_up, stepped, told):
        given = seen(kind="LambdaLR", length=warm_up, warm_up=warm_up, stepped=stepped)
        assert severities(schedule_misplaced, given) == ["warning"] * told

    def test_a_short_warm_up_that_stays_at_its_peak(self):
        assert findings(schedule_misplaced, seen(kind="LambdaLR", length=10, warm_up=10, stepped="step")) == []

    @pytest.mark.parametrize(
        ("factor", "expected"),
        [
            (lambda s: min(1.0, (s + 1) / 360), (359, None, 359)),
            (lambda s: 0.5 ** (s // 10), (10, 0.5, 0)),
            (lambda s: 0.1 + 0.45 * (1 + math.cos(math.pi * s / 360)), (360, None, 0)),
            (lambda s: s / 20 if s < 20 else 0.5 * (1 + math.cos(math.pi * (s - 20) / 340)), (360, None, 20)),
            (lambda s: 1 - s / 12, (12, None, 0)),
            (lambda s: min((s + 1) ** -0.5, (s + 1) * 400**-1.5), (None, None, 403)),
            (lambda s: 1 / (1 + 0.1 * s), (None, None, 0)),
            (lambda s: 1 + math.cos(math.pi * (s % 10) / 10), (None, None, 0)),
            (lambda s: [1.0, 0.1][s], (None, None, None)),
        ],
    )
    def test_what_a_function_is_laid_out_for(self, factor, expected):
        assert laid_out(factor) == expected

    def test_it_points_at_the_call_or_else_at_the_scheduler(self):
        assert only(schedule_misplaced, seen()).location == location(9)
        assert only(schedule_misplaced, seen(step_site=None)).location == location(5)

    @pytest.mark.parametrize("unknown", [{"stepped": ""}, {"epochs": None}, {"epoch_steps": None}])
    def test_what_is_not_known_is_not_judged(self, unknown):
        assert findings(schedule_misplaced, seen(**unknown)) == []
        assert no_verdict(schedule_misplaced, seen(calls=0, **unknown)) == "not-measured"

    def test_without_a_length_there_is_nothing_to_judge(self):
        assert no_verdict(schedule_misplaced, seen(length=None)) == "not-applicable"
        assert no_verdict(schedule_misplaced, measurement(loop=loop())) == "not-applicable"
        assert no_verdict(schedule_misplaced, measurement()) == "not-applicable"


RISES, FALLS, LOSS = (0.1, 0.3, 0.4, 0.35), (0.4, 0.3, 0.1, 0.2), (2.3, 2.0, 1.7, 1.8)
OVERFIT = (1.9, 2.0, 2.2, 2.4)  # a validation loss that only rises


class TestPlateausInTheWrongMode:
    @pytest.mark.parametrize(
        ("mode", "given", "expected"),
        [
            ("min", RISES, ["warning"]),
            ("min", RISES[:3], []),
            ("min", FALLS, []),
            ("min", OVERFIT, []),
            ("min", (0.1, 0.3, 0.05, 0.3), []),
            ("max", LOSS, ["warning"]),
            ("max", RISES, []),
            ("max", FALLS, []),  # an accuracy may fall
        ],
    )
    def test_a_number_that_goes_the_other_way_in_every_call(self, mode, given, expected):
        plateau = schedule(kind="ReduceLROnPlateau", mode=mode, metrics=tuple((10 * i + 10, x) for i, x in enumerate(given)))
        assert severities(schedule_kills_rate, self.seen(plateau)) == expected

    def test_a_rate_that_was_not_cut_is_no_matter(self):
        plateau = schedule(kind="ReduceLROnPlateau", mode="min", metrics=tuple((10 * i + 10, x) for i, x in enumerate(RISES)))
        assert findings(schedule_kills_rate, self.seen(plateau, rates=(1e-3,) * 20 + (2e-3,) * 20)) == []
        assert findings(schedule_kills_rate, self.seen(plateau, losses=(2.3,) * 40)) == []

    def seen(self, plateau: LoopSchedule, **overrides: Any) -> Any:
        values = {"schedulers": (plateau,), "rates": (1e-3,) * 20 + (2e-4,) * 20, "losses": tuple(2.3 - 0.01 * i for i in range(40))}
        return measurement(loop=loop(**values | overrides))
