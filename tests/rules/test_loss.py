"""LOSS rules on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradcheck.rules.loss.loss_domain import loss_domain
from gradcheck.rules.loss.output_loss_mismatch import output_loss_mismatch
from gradcheck.rules.outputs import floor_of_bounded_logits, share_outside
from gradcheck.types.checks import Dependence, LossOperation
from gradcheck.types.losses import BroadcastMix
from gradcheck.types.measurement import Measurement
from tests.literals import data, layer, location, loss_call, measurement
from tests.rules.models import softmax
from tests.rules.verdicts import findings, no_verdict, only, severities


def calling(function: str = "cross_entropy", *, measured: dict | None = None, **overrides) -> Measurement:
    return measurement(losses=(loss_call(function, **overrides),), **(measured or {}))


PROBABILITIES = {"producer": "softmax", "input_min": 0.02, "input_max": 0.4, "row_sum_error": 2e-7, "row_logsumexp_error": 2.4}
LOG_PROBABILITIES = {"producer": "log_softmax", "input_min": -4.0, "input_max": -0.9, "row_sum_error": 30.0, "row_logsumexp_error": 3e-7}


class TestFloors:
    @pytest.mark.parametrize("classes", [2, 10, 100, 1000])
    @pytest.mark.parametrize("width", [1.0, 2.0])
    def test_the_floor_is_the_loss_of_the_best_bounded_logits(self, classes, width):
        logits = [width, *([0.0] * (classes - 1))]
        slow = -math.log(math.exp(logits[0]) / sum(math.exp(z) for z in logits))
        assert floor_of_bounded_logits(classes, width) == pytest.approx(slow)

    @pytest.mark.parametrize(("classes", "floor"), [(10, 1.461), (100, 3.622), (1000, 5.909)])
    def test_the_floor_of_probabilities_is_the_published_one(self, classes, floor):
        assert floor_of_bounded_logits(classes, 1.0) == pytest.approx(floor, abs=1e-3)

    def test_share_outside_counts_both_tails(self):
        assert share_outside(0.0, 1.0, -1.0, 1.0) == pytest.approx(0.3173, abs=1e-3)
        assert share_outside(0.0, 1.0, 0.0, math.inf) == pytest.approx(0.5)
        assert share_outside(2.0, 0.0, 0.0, 1.0) == 1.0


class TestOutputLossMismatch:
    def test_logits_into_cross_entropy_pass(self):
        assert findings(output_loss_mismatch, measurement()) == []

    def test_softmax_before_cross_entropy_is_an_error_that_cites_its_floor(self):
        f = only(output_loss_mismatch, calling(**PROBABILITIES, producer_site=location(25)))
        assert f.severity == "error" and f.confirmed == "by the measured value alone" and f.location == location(25)
        assert "softmax before cross_entropy (output of layer fc2)" in f.message
        assert "below 1.46" in f.message and "chance is 2.3" in f.message

    @pytest.mark.parametrize(("row_sum_error", "expected"), [(9e-5, ["error"]), (1.1e-4, [])])
    def test_probabilities_are_known_by_their_sums(self, row_sum_error, expected):
        assert severities(output_loss_mismatch, calling(**PROBABILITIES | {"producer": "div", "row_sum_error": row_sum_error})) == expected

    def test_rows_with_negative_entries_are_no_probabilities(self):
        assert findings(output_loss_mismatch, calling(input_min=-0.1, row_sum_error=0.0)) == []

    def test_log_softmax_before_cross_entropy_is_advice(self):
        assert severities(output_loss_mismatch, calling(**LOG_PROBABILITIES)) == ["info"]

    @pytest.mark.parametrize(("producer", "low", "high"), [("sigmoid", 0.3, 0.7), ("relu", 0.0, 1.2)])
    def test_one_sided_logits_are_an_error(self, producer, low, high):
        f = only(output_loss_mismatch, calling(producer=producer, input_min=low, input_max=high))
        assert f.severity == "error" and f"{producer} before cross_entropy" in f.message

    def test_positive_logits_of_a_linear_layer_pass(self):
        assert findings(output_loss_mismatch, calling(producer="linear", input_min=0.0, input_max=0.9)) == []

    @pytest.mark.parametrize(("classes", "expected"), [(10, ["warning"]), (100, ["error"])])
    def test_tanh_weighs_more_with_more_classes(self, classes, expected):
        m = calling(producer="tanh", input_min=-0.5, input_max=0.5, classes=classes)
        assert severities(output_loss_mismatch, m) == expected

    def test_scaled_tanh_is_no_bounded_logit(self):
        assert findings(output_loss_mismatch, calling(producer="tanh", input_min=-9.0, input_max=9.0)) == []

    def test_pooling_between_relu_and_loss_is_healthy(self):
        """SqueezeNet averages a ReLU over positions into its logits."""
        relu = layer("classifier.2", "activation", output_shape=(32, 10, 13, 13))
        m = measurement(layers=(relu,), losses=(loss_call(producer="relu", producer_layer="classifier.2", input_min=0.0),))
        assert findings(output_loss_mismatch, m) == []

    def test_pooling_over_a_single_position_is_healthy_too(self):
        relu = layer("classifier.2", "activation", output_shape=(32, 10, 1, 1))
        m = measurement(layers=(relu,), losses=(loss_call(producer="relu", producer_layer="classifier.2", input_min=0.0),))
        assert findings(output_loss_mismatch, m) == []

    def test_logits_into_nll_loss_are_an_error(self):
        f = only(output_loss_mismatch, calling("nll_loss"))
        assert f.severity == "error" and "unnormalised logits into nll_loss" in f.message

    def test_probabilities_into_nll_loss_are_an_error(self):
        assert "probabilities into nll_loss" in only(output_loss_mismatch, calling("nll_loss", **PROBABILITIES)).message

    def test_log_probabilities_into_nll_loss_pass(self):
        assert findings(output_loss_mismatch, calling("nll_loss", **LOG_PROBABILITIES)) == []
        assert findings(output_loss_mismatch, calling("nll_loss", **LOG_PROBABILITIES | {"producer": "log"})) == []

    @pytest.mark.parametrize(("error", "expected"), [(0.009, []), (0.011, ["warning"])])
    def test_negative_values_that_do_not_add_up_are_a_warning(self, error, expected):
        values = LOG_PROBABILITIES | {"producer": "logsigmoid", "row_logsumexp_error": error}
        assert severities(output_loss_mismatch, calling("nll_loss", **values)) == expected

    @pytest.mark.parametrize("function", ["kl_div", "ctc_loss"])
    def test_losses_of_log_probabilities_reject_positive_ones(self, function):
        assert severities(output_loss_mismatch, calling(function, producer="linear")) == ["error"]
        assert findings(output_loss_mismatch, calling(function, **LOG_PROBABILITIES | {"row_logsumexp_error": 5.0})) == []

    @pytest.mark.parametrize(
        ("producer", "low", "high", "expected"),
        [
            ("sigmoid", 0.2, 0.8, ["error"]),
            ("softmax", 0.2, 0.8, ["error"]),
            ("relu", 0.0, 3.0, ["error"]),
            ("tanh", -0.6, 0.6, ["warning"]),
            ("linear", 0.2, 0.8, []),
            ("relu", -0.5, 3.0, []),
        ],
    )
    def test_binary_cross_entropy_with_logits_wants_logits(self, producer, low, high, expected):
        m = calling("binary_cross_entropy_with_logits", producer=producer, input_min=low, input_max=high, target_kind="probabilities")
        assert severities(output_loss_mismatch, m) == expected

    @pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 1.0, []), (-0.01, 0.9, ["error"]), (0.1, 1.01, ["error"])])
    def test_binary_cross_entropy_wants_probabilities(self, low, high, expected):
        m = calling("binary_cross_entropy", input_min=low, input_max=high, producer="sigmoid" if not expected else "linear")
        assert severities(output_loss_mismatch, m) == expected

    def regression(self, producer, targets, **measured) -> Measurement:
        low, high, mean, std = targets
        bounds = {"relu": (0.0, 2.0), "sigmoid": (0.2, 0.8), "tanh": (-0.8, 0.8), "softmax": (0.1, 0.6)}[producer]
        return calling(
            "mse_loss",
            measured=measured,
            producer=producer,
            input_min=bounds[0],
            input_max=bounds[1],
            target_kind="values",
            target_min=low,
            target_max=high,
            target_mean=mean,
            target_std=std,
        )

    STANDARDISED = (-3.0, 3.0, 0.0, 1.0)

    @pytest.mark.parametrize("producer", ["relu", "sigmoid", "tanh", "softmax"])
    def test_targets_out_of_an_output_s_reach_are_an_error(self, producer):
        f = only(output_loss_mismatch, self.regression(producer, self.STANDARDISED))
        assert f.severity == "error" and "-3 to 3" in f.message and f"{producer} on the output" in f.message

    @pytest.mark.parametrize(
        ("producer", "targets"),
        [
            ("relu", (0.0, 9.0, 2.0, 1.0)),
            ("relu", (-0.09, 9.0, 2.0, 1.0)),
            ("sigmoid", (0.0, 1.0, 0.5, 0.5)),
            ("softmax", (0.0, 1.0, 0.1, 0.3)),
            ("tanh", (-1.0, 1.0, 0.0, 0.4)),
            ("tanh", (0.0, 1.0, 0.3, 0.2)),
        ],
    )
    def test_targets_within_reach_pass(self, producer, targets):
        assert findings(output_loss_mismatch, self.regression(producer, targets)) == []

    @pytest.mark.parametrize(("low", "expected"), [(-0.09, []), (-0.11, ["warning"])])
    def test_targets_barely_out_of_reach(self, low, expected):
        assert severities(output_loss_mismatch, self.regression("relu", (low, 9.0, 2.0, 1.0))) == expected

    @pytest.mark.parametrize(("mean", "expected"), [(1.30, ["warning"]), (1.26, ["error"])])
    def test_a_tenth_of_the_targets_out_of_reach_is_an_error(self, mean, expected):
        """Of normal targets with std 1, 9.7 % are negative at mean 1.30, 10.4 % at 1.26."""
        assert severities(output_loss_mismatch, self.regression("relu", (-1.5, 4.0, mean, 1.0))) == expected

    def test_a_few_targets_out_of_reach_are_a_warning(self):
        assert severities(output_loss_mismatch, self.regression("relu", (-0.5, 9.0, 2.0, 1.0))) == ["warning"]

    def test_targets_that_gradcheck_made_up_do_not_count(self):
        assert findings(output_loss_mismatch, self.regression("relu", self.STANDARDISED, data=data(given=False))) == []

    def test_an_assumed_loss_gives_advice_only(self):
        assert severities(output_loss_mismatch, calling(**PROBABILITIES, measured={"loss_given": False})) == ["info"]
        assert severities(output_loss_mismatch, self.regression("relu", self.STANDARDISED, loss_given=False)) == ["warning"]

    def test_softmax_over_one_unit_is_an_error_even_with_an_assumed_loss(self):
        call = loss_call("binary_cross_entropy", producer="softmax", input_shape=(32, 1), input_min=1.0, input_max=1.0, classes=None)
        m = measurement(softmaxes=(softmax(shape=(32, 1)),), losses=(call,), loss_given=False)
        f = only(output_loss_mismatch, m)
        assert f.severity == "error" and "1 unit" in f.message and f.location == location(25)

    def test_attention_over_one_key_is_healthy(self):
        m = measurement(softmaxes=(softmax(shape=(32, 4, 1), axis=2, to_loss=False),))
        assert findings(output_loss_mismatch, m) == []

    def test_cross_entropy_over_one_class_is_an_error(self):
        f = only(output_loss_mismatch, calling(classes=1, input_shape=(32, 1), input_min=-1.0, row_logsumexp_error=1.0))
        assert f.severity == "error" and "over 1 class" in f.message

    def test_a_call_without_weight_in_the_loss_does_not_count(self):
        assert findings(output_loss_mismatch, calling(**PROBABILITIES, weight_in_total=0.0)) == []

    def test_a_custom_loss_is_not_judged(self):
        assert no_verdict(output_loss_mismatch, measurement(losses=())) == "not-applicable"


class TestLossDomain:
    def test_labels_within_range_pass(self):
        assert findings(loss_domain, measurement()) == []

    def test_labels_of_ctc_that_are_its_blank(self):
        f = only(loss_domain, calling(function="ctc_loss", out_of_range=3, target_shape=(8, 4), target_kind="none"))
        assert f.severity == "error" and "3 of 32 labels of ctc_loss are its blank" in f.message

    def test_labels_out_of_range_are_an_error(self):
        f = only(loss_domain, calling(out_of_range=3, target_min=1.0, target_max=10.0, raised="IndexError: Target 10 is out of bounds."))
        assert f.severity == "error" and "3 of 32 targets" in f.message and "[0, 10)" in f.message and "Target 10" in f.message

    def test_binary_targets_out_of_range_are_an_error(self):
        m = calling("binary_cross_entropy_with_logits", target_kind="probabilities", out_of_range=16, target_min=-1.0, target_max=1.0)
        assert severities(loss_domain, m) == ["error"]

    def test_labels_that_gradcheck_made_up_are_a_warning(self):
        assert severities(loss_domain, calling(out_of_range=3, target_max=10.0, measured={"data": data(given=False)})) == ["warning"]

    @pytest.mark.parametrize(
        ("output", "target", "result", "expected"),
        [
            ((32, 1), (32,), (32, 32), ["error"]),
            ((32,), (32, 1), (32, 32), ["error"]),
            ((1, 1), (1,), (1, 1), []),
            ((32, 1), (), (32, 1), []),
            ((32, 1), (1,), (32, 1), []),
            ((32, 4), (32, 1), (32, 4), ["warning"]),
            ((32, 32), (32,), (32, 32), ["warning"]),
            ((32, 4), (4,), (32, 4), []),
        ],
    )
    def test_broadcasts(self, output, target, result, expected):
        m = calling("mse_loss", input_shape=output, target_shape=target, broadcast=result, target_kind="values")
        assert severities(loss_domain, m) == expected

    def test_the_message_holds_the_shapes(self):
        m = calling("mse_loss", input_shape=(32, 1), target_shape=(32,), broadcast=(32, 32), target_kind="values")
        assert "mse_loss between [32, 1] and [32] broadcasts to [32, 32]" in only(loss_domain, m).message

    @pytest.mark.parametrize(("right", "expected"), [((32,), ["error"]), ((1, 32), [])])
    def test_arithmetic_on_the_way_to_the_loss(self, right, expected):
        mix = BroadcastMix("sub", location(40), (32, 1), right, (32, 32))
        assert severities(loss_domain, measurement(losses=(), mixes=(mix,))) == expected

    def test_a_row_against_a_column_counts_where_nothing_asks_whose_target_it_is(self):
        mix = BroadcastMix("sub", location(40), (32, 1), (1, 32), (32, 32))
        for unpaired in (True, False):
            m = measurement(losses=(), mixes=(mix,), dependence=Dependence(unpaired=unpaired))
            assert severities(loss_domain, m) == ["warning"] * unpaired

    def test_a_loss_that_raises_is_an_error_with_its_words(self):
        f = only(loss_domain, calling(raised="RuntimeError: expected scalar type Long but found Float"))
        assert f.severity == "error" and "expected scalar type Long" in f.message

    def test_unbounded_outputs_are_another_rule_s(self):
        m = calling("binary_cross_entropy", input_min=-1.0, raised="RuntimeError: all elements of input should be between 0 and 1")
        assert findings(loss_domain, m) == []
        assert severities(output_loss_mismatch, m) == ["error"]


@pytest.mark.parametrize(("smallest", "expected"), [(1e-7, ["error"]), (0.02, [])])
def test_a_relu_is_no_softmax(smallest, expected):
    """Evidential losses take shares of a ReLU too: one is added to it, and none of them is near 0."""
    operation = LossOperation("log", "shares", location(30), minimum=smallest, maximum=0.9)
    m = measurement(losses=(loss_call("nll_loss", **LOG_PROBABILITIES | {"producer": "log"}),), loss_operations=(operation,))
    assert severities(output_loss_mismatch, m) == expected


@pytest.mark.parametrize(("classes", "expected"), [(128, ["warning"]), (10, ["info"])])
def test_cosines_that_nothing_scales(classes, expected):
    call = loss_call(producer="cosine", input_min=-0.4, input_max=1.0, classes=classes, row_sum_error=9.0, row_logsumexp_error=3.0)
    assert severities(output_loss_mismatch, measurement(losses=(call,))) == expected
    assert findings(output_loss_mismatch, measurement(losses=(replace(call, producer="div"),))) == []


@pytest.mark.parametrize(("off", "expected"), [(0.11, ["error"]), (0.09, []), (None, [])])
def test_a_softmax_over_labels_of_which_several_are_right(off, expected):
    call = loss_call("binary_cross_entropy", **PROBABILITIES, classes=None, target_rows_off=off)
    assert severities(output_loss_mismatch, measurement(losses=(call,))) == expected
