"""LOSS004 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.rules.loss.softmax_dimension import softmax_dimension
from gradcheck.types.measurement import Similarity
from tests.literals import location, loss_call, measurement
from tests.rules.models import softmax
from tests.rules.verdicts import findings, no_verdict, only, severities


class TestSoftmaxDimension:
    def test_softmax_over_classes_passes(self):
        assert findings(softmax_dimension, measurement(softmaxes=(softmax(),))) == []

    def test_no_softmax_is_not_applicable(self):
        assert no_verdict(softmax_dimension, measurement()) == "not-applicable"

    def test_softmax_over_the_batch_before_the_loss_is_an_error(self):
        f = only(softmax_dimension, measurement(softmaxes=(softmax(axis=0, over_batch=True, log=True),)))
        assert f.severity == "error" and "log_softmax on [32, 10]" in f.message and "32 samples" in f.message and f.location == location(25)

    def test_an_implicit_dim_is_said(self):
        m = measurement(softmaxes=(softmax(axis=0, over_batch=True, implicit=True, shape=(32, 7, 10)),))
        assert "dim was not given" in only(softmax_dimension, m).message

    def test_softmax_over_the_batch_inside_is_a_warning(self):
        assert severities(softmax_dimension, measurement(softmaxes=(softmax(axis=0, over_batch=True, to_loss=False),))) == ["warning"]

    def test_axis_zero_that_is_no_batch_passes(self):
        assert findings(softmax_dimension, measurement(softmaxes=(softmax(axis=0),))) == []

    def test_both_directions_of_a_contrastive_loss_pass(self):
        both = (softmax(shape=(32, 32), axis=0, over_batch=True), softmax(shape=(32, 32)))
        assert findings(softmax_dimension, measurement(softmaxes=both)) == []

    def test_one_unit_is_another_rule_s(self):
        assert findings(softmax_dimension, measurement(softmaxes=(softmax(shape=(1, 10), axis=0, over_batch=True),))) == []

    @pytest.mark.parametrize(("axis", "error", "expected"), [(3, 2.2, ["error"]), (1, 3e-7, []), (3, 3e-7, [])])
    def test_pixels_normalised_over_another_axis_than_the_classes(self, axis, error, expected):
        shape = (8, 21, 32, 32)
        call = loss_call("nll_loss", input_shape=shape, row_logsumexp_error=error, producer="log_softmax")
        m = measurement(softmaxes=(softmax(shape=shape, axis=axis, log=True),), losses=(call,))
        assert severities(softmax_dimension, m) == expected

    def test_samples_on_the_second_axis(self):
        views = softmax(shape=(2, 32, 10), axis=1, over_batch=True)
        assert "dim=1; expected another axis" in only(softmax_dimension, measurement(softmaxes=(views,))).message

    @pytest.mark.parametrize(("error", "expected"), [(1.6, ["error"]), (3e-7, [])])
    def test_time_normalised_before_the_positions_are_flattened(self, error, expected):
        call = loss_call("nll_loss", input_shape=(160, 10), row_logsumexp_error=error, producer="log_softmax", producer_site=location(25))
        m = measurement(softmaxes=(softmax(shape=(32, 5, 10), axis=1, log=True),), losses=(call,))
        assert severities(softmax_dimension, m) == expected

    def test_the_only_axis_is_the_right_one(self):
        assert findings(softmax_dimension, measurement(softmaxes=(softmax(shape=(5,), axis=0, implicit=True),))) == []

    @pytest.mark.parametrize(("implicit", "expected"), [(True, ["warning"]), (False, [])])
    def test_an_axis_that_torch_chose_is_a_warning(self, implicit, expected):
        m = measurement(softmaxes=(softmax(shape=(2, 32, 10), axis=0, implicit=implicit),))
        assert severities(softmax_dimension, m) == expected


def test_embeddings_that_are_normalised_over_the_samples():
    f = only(softmax_dimension, measurement(similarities=(Similarity(location(30), (256, 64), (256, 256)),)))
    assert f.severity == "warning" and "256 rows" in f.message and f.location == location(30)

    @pytest.mark.parametrize(("single", "to_loss", "expected"), [("score", False, ["warning"]), ("score", True, []), (None, False, [])])
    def test_one_entry_that_a_layer_with_one_unit_makes(self, single, to_loss, expected):
        m = measurement(softmaxes=(softmax(shape=(32, 24, 1), axis=2, single=single, to_loss=to_loss),))
        assert severities(softmax_dimension, m) == expected
        if expected:
            assert "axis 1 has 24 entries" in only(softmax_dimension, m).message
