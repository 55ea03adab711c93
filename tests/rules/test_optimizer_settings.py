"""OPT003 to OPT005 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.optimization.adam_epsilon import adam_epsilon, gradient_rms
from gradcheck.rules.optimization.coupled_weight_decay import coupled_weight_decay
from gradcheck.rules.optimization.warmup_missing import warmup_missing
from gradcheck.types.measurement import Measurement
from tests.literals import falling, layer, location, measurement, optimizer, parameter, parameter_steps, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities

COUNT = 64 * 64


def with_gradients(*sizes: float, **overrides: Any) -> Measurement:
    """One weight [64, 64] for each size, the root mean square of its gradient; Adam's epsilon is 1e-8."""
    weights = tuple(
        parameter(f"fc{i}.weight", steps=parameter_steps(gradient_norm=size * COUNT**0.5, steps=(0, 3, 10))) for i, size in enumerate(sizes)
    )
    values: dict[str, Any] = {"parameters": weights, "optimizer": optimizer("Adam", eps=1e-8, site=location(50)), "probe": stalled()}
    return measurement(**values | overrides)


class TestAdamEpsilon:
    def test_the_size_of_a_gradient_is_its_median_over_the_early_settled_steps(self):
        steps = tuple(
            s
            for t, norm in ((0, 90.0), (1, 90.0), (3, 1.0), (10, 2.0), (30, 3.0), (99, 90.0))
            for s in parameter_steps(gradient_norm=norm, steps=(t,))
        )
        assert gradient_rms(parameter(steps=steps)) == 2.0 / 64
        assert gradient_rms(parameter(steps=parameter_steps(gradient_norm=0.0))) is None

    @pytest.mark.parametrize(("size", "expected"), [(0.9e-7, ["warning"]), (1.1e-7, [])])
    def test_gradients_are_compared_with_ten_epsilons(self, size, expected):
        assert severities(adam_epsilon, with_gradients(size, 1.0)) == expected

    @pytest.mark.parametrize(("others", "expected"), [(8, ["warning"]), (10, [])])
    def test_a_tenth_of_the_weights_may_be_small(self, others, expected):
        assert severities(adam_epsilon, with_gradients(1e-9, *[1.0] * others)) == expected

    def test_the_message_says_what_is_left_of_a_step(self):
        f = only(adam_epsilon, with_gradients(1e-8))
        assert "gradients of about 1e-08, under 10 times the epsilon 1e-08" in f.message and "50 % of the size" in f.message
        assert f.location == location(50) and f.remedies[0].text == "set eps=1e-12, or scale the loss up"

    @pytest.mark.parametrize(("mine", "usual", "expected"), [(2.0, 0.8, "warning"), (2.0, 1.5, "info"), (0.9, 0.1, "info")])
    def test_a_large_epsilon_is_a_warning_when_the_usual_one_does_much_better(self, mine, usual, expected):
        large = optimizer("Adam", eps=0.1)
        m = with_gradients(1e-3, optimizer=large, probe=run(falling(2.3, mine)), small_epsilon=run(falling(2.3, usual), "epsilon 1e-08"))
        f = only(adam_epsilon, m)
        assert f.severity == expected and f.remedies[0].text == "set eps=1e-08"
        assert ("with epsilon 1e-08 100 steps moved" in f.message) == (expected == "warning")

    @pytest.mark.parametrize(
        "lenient", [{"probe": run()}, {"optimizer": optimizer("Adam", eps=1e-8, given=False)}], ids=["learns", "assumed"]
    )
    def test_it_is_a_note_otherwise(self, lenient):
        assert severities(adam_epsilon, with_gradients(1e-9, **lenient)) == ["info"]

    def test_layer_scale_makes_gradients_small_by_design(self):
        m = with_gradients(1e-9)
        gain = parameter("gamma", shape=(64,), mean=1e-6, std=0.0, steps=parameter_steps(gradient_norm=1.0))
        assert severities(adam_epsilon, measurement(parameters=(*m.parameters, gain), optimizer=m.optimizer, probe=m.probe)) == ["info"]

    def test_embeddings_are_not_judged(self):
        m = with_gradients(1e-9, 1.0, layers=(layer("fc0", "embedding"),))
        assert findings(adam_epsilon, m) == []

    def test_optimizers_without_epsilon(self):
        assert no_verdict(adam_epsilon, with_gradients(1e-9, optimizer=optimizer("SGD"))) == "not-applicable"
        untouched = (parameter(steps=()),)
        assert no_verdict(adam_epsilon, measurement(parameters=untouched, optimizer=optimizer("Adam", eps=1e-8))) == "not-measured"
        assert no_verdict(adam_epsilon, with_gradients(1.0, layers=(layer("fc0", "embedding"),))) == "not-applicable"


class TestCoupledWeightDecay:
    @pytest.mark.parametrize(("name", "decay", "expected"), [("Adam", 1e-4, ["info"]), ("Adam", 0.0, []), ("RMSprop", 1e-4, ["info"])])
    def test_decay_inside_the_moments(self, name, decay, expected):
        assert severities(coupled_weight_decay, measurement(optimizer=optimizer(name, weight_decay=decay))) == expected

    @pytest.mark.parametrize(("decay", "expected"), [(2.1e-4, ["info"]), (1e-8, [])])
    def test_a_decay_that_does_nothing_is_no_matter(self, decay, expected):
        weights = (parameter("fc1.weight", weight_decay=decay),)
        m = measurement(optimizer=optimizer("Adam", weight_decay=decay), parameters=weights)
        assert severities(coupled_weight_decay, m) == expected

    def test_decoupled_decay_passes(self):
        assert findings(coupled_weight_decay, measurement(optimizer=optimizer("NAdam", weight_decay=0.1, decoupled=True))) == []

    @pytest.mark.parametrize("other", [optimizer("AdamW", weight_decay=0.1), optimizer("Adam", weight_decay=0.1, given=False)])
    def test_other_optimizers_are_not_judged(self, other):
        assert no_verdict(coupled_weight_decay, measurement(optimizer=other)) == "not-applicable"


class TestWarmupMissing:
    @pytest.mark.parametrize(("step", "expected"), [(0.9, []), (1.1, ["info"]), (30.0, ["info"])])
    def test_a_model_that_learns_gets_a_note(self, step, expected):
        assert severities(warmup_missing, measurement(functional_step=step)) == expected

    @pytest.mark.parametrize(("peak", "expected"), [(4.5, "info"), (4.7, "warning")])
    def test_a_loss_that_doubles_at_once_is_a_warning(self, peak, expected):
        m = measurement(functional_step=1.5, probe=run((2.3, peak, *falling(3.0, 0.5, 98))))
        f = only(warmup_missing, m)
        assert f.severity == expected and "changes the output by 1.5 times its spread (limit 1)" in f.message

    @pytest.mark.parametrize(("later", "expected"), [(2.2, "info"), (2.32, "info"), (2.4, "warning")])
    def test_a_rise_that_is_made_good_within_the_first_steps_is_a_note(self, later, expected):
        """A contrastive loss of a siamese network: 0.9, 9.2, 5.7, 4.2, 1.2, and from the sixth step on below its start."""
        losses = (2.3, 24.0, 15.0, 11.0, 3.2, *falling(2.1, 0.5, 95))
        losses = (*losses[:50], later, *losses[51:])
        assert only(warmup_missing, measurement(functional_step=2.9, probe=run(losses))).severity == expected

    def test_a_rise_that_leaves_nothing_learned_is_a_warning(self):
        assert only(warmup_missing, measurement(functional_step=2.9, probe=run((2.3, 24.0, *falling(2.29, 2.2, 98))))).severity == "warning"

    def test_a_probe_that_fails_and_learns_at_a_lower_rate_is_a_warning(self):
        lower = run(falling(), "rate x0.1", rate_factor=0.1, lr=1e-4)
        assert severities(warmup_missing, measurement(functional_step=1.5, probe=stalled(), experiments=(lower,))) == ["warning"]
        assert severities(warmup_missing, measurement(functional_step=1.5, probe=stalled())) == ["info"]

    def test_the_length_of_the_warm_up_follows_the_second_moment(self):
        f = only(warmup_missing, measurement(functional_step=1.5, optimizer=optimizer(betas=(0.9, 0.98))))
        assert "over the first 100 steps" in f.remedies[0].text

    @pytest.mark.parametrize("other", [optimizer("SGD"), optimizer(given=False), optimizer(warming_up=True)])
    def test_not_for_sgd_nor_assumed_nor_warming_up(self, other):
        assert no_verdict(warmup_missing, measurement(functional_step=5.0, optimizer=other)) == "not-applicable"

    def test_not_measured(self):
        assert no_verdict(warmup_missing, measurement()) == "not-measured"
