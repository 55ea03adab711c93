"""NORM007 on literal measurements."""

from __future__ import annotations

from dataclasses import replace

from gradcheck.rules.normalization.bias_before_normalization import bias_before_normalization
from tests.literals import location, norm, with_parameter
from tests.rules.models import having
from tests.rules.verdicts import findings, no_verdict, only


class TestBias:
    def test_a_bias_that_is_subtracted_again(self):
        f = only(bias_before_normalization, having(norm(after="fc1")))
        assert f.severity == "info" and "biases of fc1 (64 numbers)" in f.message and f.location == location(10)

    def test_without_a_trained_bias_there_is_nothing_to_say(self):
        m = having(norm(after="fc1"))
        assert findings(bias_before_normalization, with_parameter(m, "fc1.bias", trainable=False)) == []
        assert findings(bias_before_normalization, replace(m, parameters=m.parameters[:1])) == []
        assert no_verdict(bias_before_normalization, having(norm(after="fc1", of_batch=False))) == "not-applicable"
