"""OPT rules on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.analysis.update_sizes import update_ratio
from gradcheck.rules.optimization.learning_rate_too_high import learning_rate_too_high
from gradcheck.rules.optimization.learning_rate_too_low import learning_rate_too_low
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import SAME_RATE_LONGER, LogColumn, LogFacts, Run
from tests.literals import diverged, falling, location, loop, loss_call, measurement, optimizer, parameter, parameter_steps, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities

ASSUMED = optimizer(given=False)


def at(factor: float, end: float = 0.5, **overrides: Any) -> Run:
    """An experiment at `factor` times the user's rate of 0.001 whose loss ends at `end`."""
    values: dict[str, Any] = {"name": f"rate x{factor:g}", "rate_factor": factor, "lr": 1e-3 * factor}
    losses = overrides.pop("losses", falling(2.3, end) if end < 2.2 else stalled().losses)
    return run(losses, **values | overrides)


def moving(ratio: float, **overrides: Any) -> Measurement:
    """A model whose steps change each weight by this share of its norm."""
    weights = tuple(parameter(n, steps=parameter_steps(update_ratio=ratio)) for n in ("fc1.weight", "fc2.weight"))
    return measurement(**{"parameters": weights} | overrides)


class TestUpdateRatio:
    def test_it_is_the_median_over_matrices_after_the_first_steps(self):
        weights = tuple(parameter(f"{n}.weight", steps=parameter_steps(update_ratio=r)) for n, r in (("a", 0.01), ("b", 0.02), ("c", 0.5)))
        bias = parameter("a.bias", steps=parameter_steps(update_ratio=9.0))
        zero = parameter("z.weight", steps=parameter_steps(0.0, update_ratio=9.0))
        still = parameter("s.weight", steps=parameter_steps(5.0, 0.0, update_ratio=1e-9))
        early = parameter("e.weight", steps=parameter_steps(steps=(0, 1, 99), update_ratio=9.0))
        assert update_ratio(measurement(parameters=(*weights, bias, zero, still, early))) == 0.02

    def test_all_steps_count_when_the_probe_broke_off(self):
        assert update_ratio(measurement(parameters=(parameter(steps=parameter_steps(steps=(0, 1), update_ratio=7.0)),))) == 7.0

    def test_nothing_without_updates(self):
        assert update_ratio(measurement(parameters=())) is None


class TestLearningRateTooHigh:
    @pytest.mark.parametrize("probe", [diverged(), stalled()])
    def test_it_is_an_error_when_a_lower_rate_learns(self, probe):
        f = only(learning_rate_too_high, measurement(probe=probe, experiments=(at(0.1),), optimizer=optimizer(site=location(50))))
        assert f.severity == "error" and f.confirmed.startswith("by the probe: the same optimizer at 1e-04 (x 0.1)")
        assert f.location == location(50) and f.remedies[0].text == "set the rate to 1e-04"

    @pytest.mark.parametrize(("steps", "end", "expected"), [(300, 2.1, ["error"]), (300, 2.27, []), (200, 2.1, [])])
    def test_a_lower_rate_that_was_cut_off_need_not_have_come_far(self, steps, end, expected):
        """A CNN of sixteen layers without normalization: 300 steps at chance, and 6 % below it after 76 steps at a tenth of the rate."""
        lower = at(0.1, losses=(*stalled(steps=40).losses, *[end] * 36), ended="budget")
        assert severities(learning_rate_too_high, measurement(probe=stalled(steps=steps), experiments=(lower,))) == expected

    def test_a_rate_that_was_cut_off_has_to_be_lower_than_the_probe_on_the_same_batches(self):
        """A critic on episodes of its own: 300 steps where the loss stays, and a fall within 70 because later episodes are easier."""
        probe = run(([2.0] * 35 + [1.5] * 35 + [1.75] * 30) * 3, batches=100)
        m = measurement(probe=probe, experiments=(at(0.1, losses=[2.1] * 35 + [1.6] * 35, batches=100, ended="budget"),))
        assert findings(learning_rate_too_high, m) == []
        below = at(0.1, losses=[2.1] * 35 + [1.4] * 35, batches=100, ended="budget")
        assert severities(learning_rate_too_high, replace(m, experiments=(below,))) == ["error"]

    def test_the_message_compares_both_runs(self):
        f = only(learning_rate_too_high, measurement(probe=stalled(), experiments=(at(0.1),)))
        assert "with AdamW at rate 0.001, 100 steps moved the loss from 2.3" in f.message
        assert "; at 1e-04 (x 0.1), 100 steps moved the loss from 2.2" in f.message

    @pytest.mark.parametrize(("lower", "higher", "expected"), [(0.3, 0.5, 1), (0.5, 0.3, 0), (2.3, 0.3, 0)])
    def test_the_best_other_rate_decides(self, lower, higher, expected):
        m = measurement(probe=stalled(), experiments=(at(0.1, lower), at(10.0, higher)))
        assert len(findings(learning_rate_too_high, m)) == expected
        assert len(findings(learning_rate_too_low, m)) == 1 - expected

    def test_adam_on_one_batch_says_nothing_about_the_rate(self):
        one_batch = run(falling(), "adam 0.001 on one batch", batches=1)
        assert findings(learning_rate_too_high, measurement(probe=stalled(), experiments=(one_batch,))) == []

    def test_a_lower_rate_that_stays_finite_is_an_error_too(self):
        flat = at(0.1, 2.3)
        m = measurement(probe=diverged(), experiments=(flat,))
        assert severities(learning_rate_too_high, m) == ["error"]
        assert findings(learning_rate_too_high, replace(m, experiments=(replace(flat, losses=flat.losses[:20]),))) == []
        assert findings(learning_rate_too_high, replace(m, experiments=(replace(flat, ended="non-finite"),))) == []

    @pytest.mark.parametrize(("end", "expected"), [(4.5, []), (6.0, ["error"])])
    def test_a_loss_that_runs_away_is_an_error_when_nothing_learns(self, end, expected):
        m = measurement(probe=run(falling(2.3, end)), experiments=(at(0.1, 2.3),))
        assert severities(learning_rate_too_high, replace(m, parameters=())) == expected

    def test_a_probe_that_learns_in_another_order_is_a_warning(self):
        m = measurement(probe=stalled(), experiments=(at(0.1), at(1.0, name="other order")))
        f = only(learning_rate_too_high, m)
        assert f.severity == "warning" and "depends on luck" in f.message

    @pytest.mark.parametrize(
        ("ratio", "probe", "expected"),
        [
            (0.09, stalled(), []),
            (0.11, stalled(), ["info"]),
            (0.29, stalled(), ["info"]),
            (0.31, stalled(), ["warning"]),
            (0.29, run(), []),
            (0.31, run(), ["info"]),
        ],
    )
    def test_large_updates_without_experiments(self, ratio, probe, expected):
        assert severities(learning_rate_too_high, moving(ratio, probe=probe)) == expected

    def test_the_size_of_an_update_is_in_the_message(self):
        f = only(learning_rate_too_high, moving(0.4, probe=stalled()))
        assert "each step of AdamW at rate 0.001 changes a typical weight by 40 % of its norm (limit 30 %)" in f.message
        assert "set the rate to about 3e-05" in f.remedies[0].text

    @pytest.mark.parametrize(
        ("end", "size", "expected"),
        [(1.9, 40.0, ["warning"]), (1.9, 2.0, ["info"]), (0.5, 40.0, ["info"])],  # far along, as nets whose layers are normalised come
    )
    def test_weights_that_outgrow_their_scale_are_a_warning_where_the_loss_has_not_come_far(self, end, size, expected):
        """A small Llama at AdamW 0.3: updates of 36 %, weights 40 to 80 times as large after 100 steps, a loss down by a quarter."""
        first, *rest = parameter_steps(norm=5.0, update_ratio=0.36)
        steps = (first, *(replace(s, norm=5.0 * size) for s in rest))
        m = measurement(parameters=(parameter(steps=steps),), probe=run(falling(2.3, end)))
        assert severities(learning_rate_too_high, m) == expected

    def test_an_assumed_optimizer_gets_advice_only(self):
        assert severities(learning_rate_too_high, measurement(probe=diverged(), experiments=(at(0.1),), optimizer=ASSUMED)) == ["info"]
        assert severities(learning_rate_too_high, moving(0.4, probe=stalled(), optimizer=ASSUMED)) == ["info"]

    @pytest.mark.parametrize(("end", "expected"), [(1.1, []), (1.4, ["warning"])])
    def test_what_is_learned_and_lost_again_is_a_warning(self, end, expected):
        losses = (*falling(2.3, 0.2, 50), *(0.2,) * 10, *(end,) * 40)
        assert severities(learning_rate_too_high, measurement(probe=run(losses))) == expected
        assert severities(learning_rate_too_high, measurement(probe=run(losses), optimizer=ASSUMED)) == (["info"] if expected else [])

    def test_and_an_error_when_all_of_it_is_lost(self):
        m = measurement(probe=run((*falling(2.3, 0.2, 50), *(3.8,) * 50)))
        assert severities(learning_rate_too_high, m) == ["error"]
        assert "after 0.2" in only(learning_rate_too_high, m).message

    def test_a_rate_that_jumps_in_a_watched_run_is_named(self):
        rate = LogColumn("watched", (0, 1, 2, 3, 5, 54, 55), (0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 5.0))
        probe = run((*falling(2.3, 0.2, 50), *(3.8,) * 50))
        found = only(learning_rate_too_high, measurement(probe=probe, course=LogFacts("watched", rate=rate)))
        assert "jumps to 5 at step 55, 100 times" in found.message and "0.05 was the highest one" in found.remedies[0].text

    def test_a_probe_that_raised_is_not_judged(self):
        assert no_verdict(learning_rate_too_high, measurement(probe=run((2.3,), ended="raised", error="ValueError: x"))) == "not-measured"
        assert no_verdict(learning_rate_too_low, measurement(probe=Run("probe", ()))) == "not-measured"


class TestLearningRateTooLow:
    def test_a_model_that_learns_passes(self):
        assert findings(learning_rate_too_low, moving(1e-6)) == []

    @pytest.mark.parametrize(("end", "expected"), [(2.21, "error"), (2.13, "warning")])
    def test_a_loss_that_crawls_down_is_a_warning(self, end, expected):
        crawling = run((2.3, 2.3, 2.3, 2.3, *[end] * 296))
        assert only(learning_rate_too_low, moving(1e-4, probe=crawling, experiments=(at(10.0, 0.1),))).severity == expected

    @pytest.mark.parametrize(("end", "higher", "expected"), [(1.2, 0.3, ["error"]), (0.9, 0.3, []), (1.2, 1.3, [])])
    def test_a_loss_that_creeps_down_to_chance_where_a_higher_rate_gets_there(self, end, higher, expected):
        """An LSTM whose classes leave 0.22 by their shares: 1.45 becomes 1.12 in 400 steps, and 0.22 in 3,000."""
        probe, faster = run(falling(1.45, end, 400), batches=4), at(46.0, losses=falling(1.45, higher, 180), batches=4, ended="budget")
        assert severities(learning_rate_too_low, moving(1e-4, probe=probe, chance=0.22, experiments=(faster,))) == expected

    @pytest.mark.parametrize(("ratio", "expected"), [(0.0099, "error"), (0.0101, "warning")])
    def test_it_is_an_error_when_a_higher_rate_learns_and_updates_are_small(self, ratio, expected):
        f = only(learning_rate_too_low, moving(ratio, probe=stalled(), experiments=(at(10.0),)))
        assert f.severity == expected and "at 0.01 (x 10)" in f.message and f.remedies[0].name == "raise-learning-rate"

    @pytest.mark.parametrize(("weight", "adaptive", "blamed"), [(1e-3, False, True), (0.1, False, False), (1e-3, True, False)])
    def test_a_loss_that_is_a_small_part_of_its_mean_is_named(self, weight, adaptive, blamed):
        call = loss_call(weight_in_total=weight / 32, summed=32)
        given = moving(1e-4, probe=stalled(), experiments=(at(10.0),), losses=(call,), optimizer=optimizer("SGD", adaptive=adaptive))
        f = only(learning_rate_too_low, given)
        assert (f.location == call.site, "of the mean over the batch" in f.message) == (blamed, blamed)

    @pytest.mark.parametrize(("end", "expected"), [(1.8, ["error"]), (2.15, [])])
    def test_a_higher_rate_that_learns_clearly_more_is_enough(self, end, expected):
        """An RNN at a rate too low: 1.3 % in 300 steps, and 15.5 % at fourteen times the rate."""
        higher = at(10.0, losses=(2.3, 2.3, *[end] * 298), ended="done")
        assert severities(learning_rate_too_low, moving(1e-4, probe=stalled(steps=300), experiments=(higher,))) == expected

    @pytest.mark.parametrize(("ratio", "end", "expected"), [(0.0011, 1.5, "info"), (0.0009, 1.5, "warning"), (0.0011, 2.28, "error")])
    def test_a_rate_that_learns_later_is_slow(self, ratio, end, expected):
        """A skip-gram model at Adam's default rate, trained for 5000 steps: 3 % in 300 steps, clear after 1400."""
        later = run(falling(2.3, end, 2000), name=SAME_RATE_LONGER)
        f = only(learning_rate_too_low, moving(ratio, probe=stalled(steps=300), experiments=(at(10.0), later)))
        assert f.severity == expected and ("at its own, 2000 steps" in f.message) == (end < 2)

    @pytest.mark.parametrize(("steps", "expected"), [(680, "warning"), (690, "error")])
    def test_a_longer_run_has_to_go_as_far_as_the_higher_rate_foretells(self, steps, expected):
        """SGD at 31 times the rate leaves chance after 22 steps, each 31 times as long as one of the user's: 682 of these."""
        higher = at(31.0, losses=(*stalled(steps=23).losses, *[1.9] * 93))
        later = run(stalled(steps=steps).losses, name=SAME_RATE_LONGER, ended="budget")
        assert only(learning_rate_too_low, moving(1e-4, probe=stalled(steps=300), experiments=(higher, later))).severity == expected

    @pytest.mark.parametrize(("steps", "expected"), [(300, "warning"), (301, "error")])
    def test_a_longer_run_that_was_cut_off_early_tells_nothing(self, steps, expected):
        """Forty heads, one a step: the rate that trains them in 150,000 steps takes 3 % off in 300, and the time was up after 145 more."""
        later = run(falling(2.3, 2.28, steps), name=SAME_RATE_LONGER, ended="budget")
        assert only(learning_rate_too_low, moving(1e-4, probe=stalled(steps=300), experiments=(at(10.0), later))).severity == expected

    def test_divergence_is_never_too_low(self):
        assert findings(learning_rate_too_low, moving(1e-6, probe=diverged(), experiments=(at(10.0),))) == []

    @pytest.mark.parametrize(("ratio", "expected"), [(0.9e-5, ["warning"]), (1.1e-5, [])])
    def test_tiny_updates_without_experiments(self, ratio, expected):
        assert severities(learning_rate_too_low, moving(ratio, probe=stalled())) == expected

    def test_experiments_that_failed_as_well_acquit_the_rate(self):
        assert findings(learning_rate_too_low, moving(1e-6, probe=stalled(), experiments=(at(10.0, 2.3),))) == []

    def test_a_rate_that_is_warming_up_is_not_judged(self):
        m = moving(1e-6, probe=stalled(), experiments=(at(10.0),), optimizer=optimizer(warming_up=True))
        assert no_verdict(learning_rate_too_low, m) == "not-applicable"

    def test_a_schedule_that_multiplies_by_a_rate_only_lowers_it(self):
        """LambdaLR with `lambda step: lr * decay(step)`: the rate is lr squared."""
        schedule = loop(rates=tuple(1e-6 * 0.99**i for i in range(40)))
        m = moving(1e-6, probe=stalled(), experiments=(at(10.0),), optimizer=optimizer(warming_up=True), loop=schedule)
        assert severities(learning_rate_too_low, m) == ["error"]

    @pytest.mark.parametrize("lenient", [{"optimizer": ASSUMED}, {"pretrained": True}])
    def test_assumed_optimizers_and_fine_tuning_get_advice_only(self, lenient):
        assert severities(learning_rate_too_low, moving(1e-6, probe=stalled(), experiments=(at(10.0),), **lenient)) == ["info"]
