"""GRAPH006 and the LOOP rules on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.graph.gradients_not_cleared import gradients_not_cleared
from gradcheck.rules.loop.accumulation_unscaled import accumulation_unscaled
from gradcheck.rules.loop.clipping_misplaced import clipping_misplaced
from gradcheck.rules.loop.evaluation_mode_in_training import evaluation_mode_in_training
from gradcheck.rules.loop.optimizer_never_steps import optimizer_never_steps
from gradcheck.rules.loop.same_batch_every_step import same_batch_every_step
from gradcheck.rules.loop.scaler_misused import scaler_misused
from gradcheck.rules.loop.schedule_kills_rate import schedule_kills_rate
from gradcheck.types.loop import LoopBatches, LoopClip, LoopEvaluation, LoopReads, LoopScaler
from gradcheck.types.measurement import Measurement
from tests.literals import location, loop, measurement, optimizer, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities

RULES = (
    gradients_not_cleared,
    optimizer_never_steps,
    clipping_misplaced,
    evaluation_mode_in_training,
    schedule_kills_rate,
    same_batch_every_step,
    accumulation_unscaled,
    scaler_misused,
)


def seen(**overrides: Any) -> Measurement:
    return measurement(loop=loop(**overrides))


def clip(**overrides: Any) -> LoopClip:
    values: dict[str, Any] = {"kind": "norm", "threshold": 1.0, "calls": 40, "parameters": 4, "site": location(82)}
    return LoopClip(**values | overrides)


def scaler(**overrides: Any) -> LoopScaler:
    return LoopScaler(**{"enabled": True, "factor": 65536.0, "scaled": 40, "steps": 40, "bare": 0, "updates": 40} | overrides)


def falling_rates(steps: int, factor: float) -> tuple[float, ...]:
    return tuple(0.1 * factor**i for i in range(steps))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)
def test_without_a_script_there_is_nothing_to_judge(rule):
    assert no_verdict(rule, measurement()) == "not-applicable"


class TestGradientsNotCleared:
    @pytest.mark.parametrize(("left", "expected"), [(39, ["error"]), (21, ["error"]), (20, []), (0, [])])
    def test_most_steps_must_hold_earlier_gradients(self, left, expected):
        assert severities(gradients_not_cleared, seen(leftover=left)) == expected

    def test_it_points_at_the_backward_pass_and_names_the_optimizer(self):
        f = only(gradients_not_cleared, seen(leftover=39))
        assert f.location == location(80) and "of optimizer: 39 of 40 steps" in f.message

    @pytest.mark.parametrize(("lost", "expected"), [(40, ["error"]), (20, [])])
    def test_gradients_cleared_before_the_step(self, lost, expected):
        assert severities(gradients_not_cleared, seen(lost=lost)) == expected
        if expected:
            assert only(gradients_not_cleared, seen(lost=lost)).location == location(79)

    @pytest.mark.parametrize(("steps", "status"), [(2, "not-measured"), (0, "not-applicable")])
    def test_few_steps_say_nothing(self, steps, status):
        assert no_verdict(gradients_not_cleared, seen(steps=steps, leftover=steps)) == status
        assert findings(gradients_not_cleared, seen(steps=3, leftover=2))

    def test_an_optimizer_without_backward_pass_is_not_judged(self):
        assert no_verdict(gradients_not_cleared, seen(backwards=0)) == "not-applicable"


class TestOptimizerNeverSteps:
    @pytest.mark.parametrize(("share", "expected"), [(None, []), (0.89, []), (0.9, ["warning"])])
    def test_steps_that_are_put_back(self, share, expected):
        assert severities(optimizer_never_steps, seen(undone=share)) == expected

    def test_backward_passes_without_a_step(self):
        assert severities(optimizer_never_steps, seen(steps=0, backwards=8, moved=0)) == ["error"]
        assert no_verdict(optimizer_never_steps, seen(steps=0, backwards=7, moved=0)) == "not-measured"

    def test_a_short_script_that_ended_by_itself_took_all_its_steps(self):
        assert severities(optimizer_never_steps, seen(steps=0, backwards=3, moved=0, ended="end")) == ["error"]

    def test_one_that_was_cut_short_says_nothing(self):
        assert no_verdict(optimizer_never_steps, seen(steps=0, backwards=3, moved=0, ended="raised")) == "not-measured"

    @pytest.mark.parametrize("change", [{"steps": 1}, {"moved": 1}])
    def test_steps_and_parameters_that_move_speak_against_it(self, change):
        assert findings(optimizer_never_steps, seen(**{"steps": 0, "moved": 0} | change)) == []


class TestClippingMisplaced:
    @pytest.mark.parametrize("how", ["empty", "foreign", "late", "early", "scaled"])
    def test_each_way_to_misplace_it(self, how):
        f = only(clipping_misplaced, seen(clips=(clip(**{how: 40}),), scaler=scaler()))
        assert f.severity == "error" and f.location == location(82)
        assert findings(clipping_misplaced, seen(clips=(clip(**{how: 21}),)))
        assert not findings(clipping_misplaced, seen(clips=(clip(**{how: 20}),)))

    def test_well_placed_clipping_and_a_norm_that_is_only_measured_are_left_alone(self):
        assert findings(clipping_misplaced, seen(clips=(clip(), clip(threshold=float("inf"), late=40)))) == []

    def test_no_clipping(self):
        assert no_verdict(clipping_misplaced, seen()) == "not-applicable"


class TestEvaluationMode:
    @pytest.mark.parametrize(("before", "fresh", "severity"), [(True, False, "error"), (False, True, "error"), (False, False, "warning")])
    def test_how_severe_it_is(self, before, fresh, severity):
        mode = LoopEvaluation(20, 20, before, ("drop",), ("bn",), fresh, location(83))
        f = only(evaluation_mode_in_training, seen(evaluation=mode))
        assert f.severity == severity and f.location == location(83) and f.layers == ("drop", "bn")

    @pytest.mark.parametrize(("steps", "count"), [(2, 1), (1, 0)])
    def test_one_step_is_no_pattern(self, steps, count):
        assert len(findings(evaluation_mode_in_training, seen(evaluation=LoopEvaluation(steps, 3, True, ("drop",))))) == count

    def test_training_mode(self):
        assert findings(evaluation_mode_in_training, seen()) == []


class TestScheduleKillsRate:
    def test_a_script_that_took_no_step_shows_no_schedule(self):
        assert no_verdict(schedule_kills_rate, seen(rates=(), steps=0, base_rate=0.1)) == "not-measured"

    @pytest.mark.parametrize(
        ("rates", "expected"),
        [
            (falling_rates(40, 0.5), ["error"]),  # a thousandth after 10 steps
            (falling_rates(19, 0.5), []),  # as many steps after it as before it are to be seen
            (falling_rates(200, 0.9), ["warning"]),  # after 66 steps
            (falling_rates(200, 0.99), []),
            ((0.1,) * 20 + (1.01e-4,) * 20, []),
            ((0.1,) * 20 + (0.99e-4,) * 20, ["error"]),
            ((0.1,) * 20 + (0.0,) * 19, []),
            (tuple(0.1 * i / 40 for i in range(40)), []),  # a warm-up from 0
            ((0.0,) * 5, ["error"]),  # from the start
            ((0.0,) * 4, []),
            ((0.1, 0.1, 0.0, 0.0, 0.0, 0.0), []),
            ((0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0), ["error"]),
        ],
    )
    def test_rates_that_vanish(self, rates, expected):
        assert severities(schedule_kills_rate, seen(rates=rates, steps=len(rates), base_rate=0.1)) == expected

    @pytest.mark.parametrize(
        ("rates", "expected"),
        [
            (tuple(1e-3 * 1.2**i for i in range(40)), ["error"]),  # 1225 times
            (tuple(1e-3 * 1.2**i for i in range(25)), []),  # 79 times
            (tuple(1e-3 * (1 + 5 * i) for i in range(40)), []),  # 196 times, at a steady pace
            ((*(1e-3 * 1.2**i for i in range(40)), 1e-3), []),
        ],
    )
    def test_rates_that_explode(self, rates, expected):
        assert severities(schedule_kills_rate, seen(rates=rates, steps=len(rates), base_rate=1e-3)) == expected

    def test_a_warm_up_in_a_straight_line_is_no_explosion(self):
        rates = tuple(6e-4 * ((i + 1) / 700) for i in range(169))  # its last rises differ by rounding, each above the one before it
        assert not findings(schedule_kills_rate, seen(rates=rates, steps=169, base_rate=rates[0]))
        faster = tuple(r * 1.04**i for i, r in enumerate(rates))  # to 0.1
        assert findings(schedule_kills_rate, seen(rates=faster, steps=169, base_rate=rates[0]))

    def test_an_exponential_warm_up_from_next_to_nothing_is_no_explosion(self):
        rates = tuple(1e-7 * 1.3**i for i in range(40))  # to 3e-3
        assert not findings(schedule_kills_rate, seen(rates=rates, steps=40, base_rate=1e-7))

    def test_a_search_for_the_rate_that_is_over_is_no_explosion(self):
        rates = tuple(1e-6 * 1.5**i for i in range(40))  # to 7
        assert findings(schedule_kills_rate, seen(rates=rates, steps=40, base_rate=1e-6))
        assert not findings(schedule_kills_rate, seen(rates=rates, steps=40, base_rate=1e-6, over=True))

    def test_it_points_at_the_call_of_the_scheduler(self):
        f = only(schedule_kills_rate, seen(rates=falling_rates(40, 0.5), schedules=40, schedule_site=location(84)))
        assert f.location == location(84) and "after every step" in f.remedies[0].text

    def test_a_constant_rate(self):
        assert no_verdict(schedule_kills_rate, seen()) == "not-applicable"


class TestSameBatch:
    @pytest.mark.parametrize(("available", "severity"), [(1000, "warning"), (129, "warning"), (128, "info"), (64, "info"), (None, "info")])
    def test_what_else_there_is_decides(self, available, severity):
        assert only(same_batch_every_step, seen(batches=LoopBatches(32, 1, 64, available, True))).severity == severity

    def test_batches_that_change(self):
        assert findings(same_batch_every_step, seen(batches=LoopBatches(32, 2, 64, 1000))) == []

    @pytest.mark.parametrize("batches", [None, LoopBatches(4, 1, 64, 1000)])
    def test_too_little_to_compare(self, batches):
        assert no_verdict(same_batch_every_step, seen(batches=batches)) == "not-measured"
        assert findings(same_batch_every_step, seen(batches=LoopBatches(5, 1, 64, 1000)))


class TestAccumulation:
    @pytest.mark.parametrize(("weight", "count"), [(4.0, 1), (1.51, 1), (1.5, 0), (1.0, 0), (0.67, 0), (0.66, 1)])
    def test_the_factors_are_to_sum_to_one(self, weight, count):
        assert len(findings(accumulation_unscaled, seen(accumulated=4, weight=weight))) == count

    def test_what_it_means_depends_on_the_optimizer(self):
        adam, sgd = (measurement(loop=loop(accumulated=4, weight=4.0), optimizer=optimizer(name)) for name in ("AdamW", "SGD"))
        assert (
            "AdamW rescales its steps" in only(accumulation_unscaled, adam).message
            and "so is every step" in only(accumulation_unscaled, sgd).message
        )

    @pytest.mark.parametrize(
        ("factor", "optimizer_name", "severity"), [(0.1, "SGD", "error"), (0.08, "SGD", "warning"), (0.1, "Adam", "warning")]
    )
    def test_an_error_where_the_rate_of_a_mean_learns(self, factor, optimizer_name, severity):
        learned = run(name="rate", rate_factor=factor)
        facts = {"loop": loop(accumulated=4, weight=4.0), "optimizer": optimizer(optimizer_name, adaptive=optimizer_name == "Adam")}
        m = measurement(probe=stalled(), experiments=(learned,), chance=2.3, **facts)
        assert severities(accumulation_unscaled, m) == [severity]

    @pytest.mark.parametrize(("dropped", "count"), [(21, 1), (20, 0)])
    def test_passes_that_are_cleared_before_the_step(self, dropped, count):
        assert len(findings(accumulation_unscaled, seen(accumulated=4, weight=1.0, dropped=dropped))) == count

    @pytest.mark.parametrize(("facts", "status"), [({}, "not-applicable"), ({"accumulated": 4}, "not-measured")])
    def test_no_verdict(self, facts, status):
        assert no_verdict(accumulation_unscaled, seen(**facts)) == status


class TestScaler:
    @pytest.mark.parametrize(("bare", "expected"), [(40, ["error"]), (21, ["error"]), (20, [])])
    def test_steps_on_scaled_gradients(self, bare, expected):
        assert severities(scaler_misused, seen(scaler=scaler(bare=bare))) == expected

    def test_the_other_halves_that_may_be_missing(self):
        assert "refuses its next step" in only(scaler_misused, seen(scaler=scaler(updates=0, steps=2))).message
        assert "never scales" in only(scaler_misused, seen(scaler=scaler(scaled=0))).message
        assert "still scaled by 65536" in only(scaler_misused, seen(scaler=scaler(), clips=(clip(scaled=40),))).message

    def test_a_scaler_that_is_off_here_is_a_warning(self):
        assert severities(scaler_misused, seen(scaler=scaler(enabled=False, bare=40))) == ["warning"]

    def test_used_right_or_not_at_all(self):
        assert findings(scaler_misused, seen(scaler=scaler(), clips=(clip(),))) == []
        assert no_verdict(scaler_misused, seen()) == "not-applicable"
        assert no_verdict(scaler_misused, seen(scaler=scaler(scaled=0, steps=0))) == "not-applicable"


def test_a_sampler_with_too_few_weights():
    m = measurement(loop=loop(reads=LoopReads(10, 1400, location(12))))
    f = only(same_batch_every_step, m)
    assert f.severity == "warning" and f.location == location(12) and "10 weights for 1400 samples" in f.message
