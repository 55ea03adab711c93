"""LOSS005 on literal measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.rules.loss.loss_not_falling import loss_not_falling
from gradcheck.types.checks import Baseline
from gradcheck.types.measurement import Measurement
from tests.literals import data, diverged, falling, loss_call, measurement, optimizer, parameter, run, stalled
from tests.rules.models import CHANCE
from tests.rules.verdicts import findings, no_verdict, only, severities


def stuck(level: float = 2.3, **overrides) -> Measurement:
    """A probe and experiments of which none learns."""
    experiments = (
        stalled(level, name="rate x0.1", rate_factor=0.1),
        stalled(level, name="rate x10", rate_factor=10.0),
        stalled(level, name="adam 0.003 on one batch", batches=1),
        stalled(level, name="adam 0.001 on one batch", batches=1),
    )
    return measurement(**{"probe": stalled(level), "experiments": experiments} | overrides)


class TestLossNotFalling:
    def test_a_probe_that_learns_passes(self):
        assert findings(loss_not_falling, measurement()) == []

    def test_nothing_learns_is_an_error_that_names_the_plateau(self):
        f = only(loss_not_falling, stuck(2.3))
        assert f.severity == "error" and f.confirmed.startswith("by the probe: it stalls with AdamW")
        assert "adam 0.003, adam 0.001" in f.message and "that is 2.3, the loss of the" in f.message

    def test_the_floor_of_a_softmax_is_recognised(self):
        assert "softmax outputs" in only(loss_not_falling, stuck(1.461)).message

    @pytest.mark.parametrize(("level", "known"), [(CHANCE * 1.017, True), (CHANCE * 1.023, False)])
    def test_a_plateau_is_known_within_two_percent(self, level, known):
        assert (
            "constant" in only(loss_not_falling, stuck(level)).message or "uniform" in only(loss_not_falling, stuck(level)).message
        ) == known

    def test_a_probe_that_diverges_counts_too(self):
        f = only(loss_not_falling, stuck(probe=diverged()))
        assert f.severity == "error" and "it diverges" in f.confirmed

    @pytest.mark.parametrize("index", range(4))
    def test_one_experiment_that_learns_makes_it_another_rule_s(self, index):
        m = stuck()
        learned = run(falling(), name=m.experiments[index].name, rate_factor=m.experiments[index].rate_factor, batches=1)
        experiments = (*m.experiments[:index], learned, *m.experiments[index + 1 :])
        assert findings(loss_not_falling, stuck(experiments=experiments)) == []

    @pytest.mark.parametrize(
        "doubt", [{"data": data(given=False)}, {"loss_given": False}, {"pretrained": True}, {"chance": 5.0}], ids=lambda d: next(iter(d))
    )
    def test_doubts_make_it_a_warning(self, doubt):
        assert severities(loss_not_falling, stuck(**doubt)) == ["warning"]

    @pytest.mark.parametrize(("end", "expected"), [(2.30 * 0.91, ["error"]), (2.30 * 0.89, [])])
    def test_how_far_one_batch_must_be_fitted(self, end, expected):
        """A drop at once to a level where the loss stays, as label frequencies give, below the first loss."""
        one = run((2.30, *([end] * 150)), name="adam 0.003 on one batch", batches=1)
        assert severities(loss_not_falling, stuck(2.30, experiments=(one,))) == expected

    @pytest.mark.parametrize(("end", "expected"), [(4.615 * 0.97, "not-measured"), (4.615 * 0.99, "error")])
    def test_a_loss_that_may_end_near_its_start_by_design(self, end, expected):
        """Cross-entropy of soft targets, written out: nothing tells how far it can fall."""
        one = run((*falling(4.615, end, 100), *([end] * 100)), name="adam 0.003 on one batch", batches=1)
        m = stuck(4.615, experiments=(one,), chance=None, losses=())
        assert (no_verdict(loss_not_falling, m) if expected == "not-measured" else only(loss_not_falling, m).severity) == expected

    def test_learning_slowly_beyond_the_label_frequencies_is_learning(self):
        one = run((2.3, *([1.7] * 150)), name="adam 0.003 on one batch", batches=1, chance=2.0)
        assert findings(loss_not_falling, stuck(2.30, experiments=(one,))) == []

    def test_a_probe_that_is_still_on_its_way_passes(self):
        assert findings(loss_not_falling, stuck(probe=run(falling(99.0, 20.0, 300)), chance=0.04)) == []

    @pytest.mark.parametrize(("end", "expected"), [(4.5, []), (2.31, ["error"])])
    def test_a_batch_that_is_still_on_its_way_is_no_failure(self, end, expected):
        """From far above the best constant prediction: still well above it and falling, or down on it and flat."""
        course = falling(40.0, end, 200) if end > 3 else (*falling(40.0, end, 100), *([end] * 100))
        one = run(course, name="adam 0.003 on one batch", batches=1, chance=2.3)
        assert severities(loss_not_falling, stuck(experiments=(one,))) == expected

    @pytest.mark.parametrize(("width", "expected"), [(17, ["error"]), (15, "not-applicable")])
    def test_a_model_with_fewer_weights_than_a_few_samples_have_targets_cannot_memorise_them(self, width, expected):
        m = stuck(
            parameters=(parameter("head.weight", shape=(1, width)),),
            losses=(loss_call("mse_loss", input_shape=(32, 1), target_shape=(32, 1)),),
            data=data(batch_size=32),
        )
        assert (severities(loss_not_falling, m) if width == 17 else no_verdict(loss_not_falling, m)) == expected

    @pytest.mark.parametrize(
        "overrides", [{"surrogate": "it weighs"}, {"losses": tuple([-0.1, 0.1] * 150)}], ids=["surrogate", "below zero"]
    )
    def test_a_loss_whose_level_says_nothing_is_not_judged(self, overrides):
        probe = replace(stalled(), **overrides)
        assert no_verdict(loss_not_falling, stuck(probe=probe, chance=None)) == "not-applicable"

    def test_learning_the_frequencies_of_a_few_labels_is_no_fit(self):
        one = run((2.3, *([1.9] * 150)), name="adam 0.003 on one batch", batches=1, chance=1.9)
        f = only(loss_not_falling, stuck(experiments=(one,)))
        assert f.severity == "error" and "best constant prediction (needed: 10 % below)" in f.message

    @pytest.mark.parametrize(("steps", "expected"), [(49, ["warning"]), (50, ["error"])])
    def test_trainings_that_were_cut_short_are_a_warning(self, steps, expected):
        one = stalled(steps=steps, name="adam 0.003 on one batch", batches=1, ended="budget")
        assert severities(loss_not_falling, stuck(experiments=(one,))) == expected

    def test_an_assumed_optimizer_is_no_doubt(self):
        assert severities(loss_not_falling, stuck(optimizer=optimizer(given=False))) == ["error"]

    def test_without_trainings_on_one_batch_there_is_no_verdict(self):
        assert no_verdict(loss_not_falling, stuck(experiments=stuck().experiments[:2])) == "not-measured"

    def test_a_short_probe_is_no_verdict(self):
        assert no_verdict(loss_not_falling, stuck(probe=stalled(steps=4))) == "not-measured"

    def test_non_finite_trainings_are_said(self):
        bad = diverged(name="adam 0.003 on one batch", batches=1)
        assert "non-finite" in only(loss_not_falling, stuck(experiments=(bad,))).message


class TestBehindALinearModel:
    """Sixteen samples can be memorised, and nothing of the data is learned."""

    def faulty(self, explained: float = 0.5, shuffled: float = 0.0, steps: int = 300, **overrides):
        memorised = run(falling(2.3, 0.5, 30), "adam 0.003 on one batch", batches=1, chance=2.0, ended="learned")
        probe = stalled(steps=steps)
        return measurement(probe=probe, experiments=(memorised,), baseline=Baseline(explained, shuffled, 500, 64), **overrides)

    @pytest.mark.parametrize(
        ("explained", "shuffled", "expected"), [(0.11, 0.0, ["error"]), (0.09, 0.0, []), (0.15, 0.06, []), (0.1, -3.0, ["error"])]
    )
    def test_what_a_linear_model_finds_beyond_chance_decides(self, explained, shuffled, expected):
        assert severities(loss_not_falling, self.faulty(explained, shuffled)) == expected

    def test_a_short_probe_says_nothing(self):
        assert findings(loss_not_falling, self.faulty(steps=200)) == []

    @pytest.mark.parametrize(("level", "expected"), [(2.3 * 0.94, ["error"]), (2.3 * 0.92, [])])
    def test_a_model_that_finds_half_of_it_is_left_alone(self, level, expected):
        """Beside a linear model that explains 0.15."""
        m = replace(self.faulty(0.15), probe=stalled(level, steps=300), chance=2.3)
        assert severities(loss_not_falling, m) == expected

    def test_an_assumed_optimizer_is_no_prediction(self):
        assert severities(loss_not_falling, self.faulty(optimizer=optimizer(given=False))) == ["warning"]
