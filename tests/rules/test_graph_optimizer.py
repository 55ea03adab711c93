"""GRAPH003 on literal measurements."""

from __future__ import annotations

from gradcheck.rules.graph.parameters_not_in_optimizer import parameters_not_in_optimizer
from tests.literals import layer, location, measurement, optimizer, parameter, with_parameter
from tests.rules.models import BODY
from tests.rules.verdicts import findings, no_verdict, only, severities


def left_out(*names, **overrides):
    m = measurement(**overrides)
    for name in names:
        m = with_parameter(m, name, groups=0)
    return m


class TestParametersNotInOptimizer:
    def test_a_complete_optimizer_passes(self):
        assert findings(parameters_not_in_optimizer, measurement()) == []

    def test_an_assumed_optimizer_is_not_judged(self):
        assert no_verdict(parameters_not_in_optimizer, left_out("fc2.weight", optimizer=optimizer(given=False))) == "not-applicable"

    def test_a_missing_head_is_an_error(self):
        f = only(parameters_not_in_optimizer, left_out("fc2.weight", "fc2.bias"))
        assert f.severity == "error" and f.layers == ("fc2",) and "2 of 4" in f.message and f.location == location(12)

    def test_a_body_before_the_trained_head_may_be_fixed_on_purpose(self):
        assert severities(parameters_not_in_optimizer, left_out(*BODY)) == ["warning"]
        assert severities(parameters_not_in_optimizer, left_out(*BODY, pretrained=True)) == ["info"]

    def test_missing_weights_of_a_pretrained_model_are_a_warning(self):
        assert severities(parameters_not_in_optimizer, left_out("fc2.weight", pretrained=True)) == ["warning"]

    def test_missing_biases_are_a_warning(self):
        assert severities(parameters_not_in_optimizer, left_out("fc1.bias", "fc2.bias")) == ["warning"]

    def test_stale_tensors_make_it_an_error_always(self):
        f = only(parameters_not_in_optimizer, left_out(*BODY, pretrained=True, optimizer=optimizer(stale=2)))
        assert f.severity == "error" and "2 tensors that are not in the model" in f.message

    def test_an_optimizer_of_another_model_is_an_error(self):
        assert severities(parameters_not_in_optimizer, left_out(*(p.name for p in measurement().parameters), pretrained=True)) == ["error"]

    def test_frozen_and_unused_parameters_are_fine(self):
        m = with_parameter(with_parameter(measurement(), "fc2.weight", groups=0, trainable=False), "fc2.bias", groups=0, used=False)
        assert findings(parameters_not_in_optimizer, m) == []

    def test_a_parameter_in_two_groups_is_an_error(self):
        f = only(parameters_not_in_optimizer, with_parameter(measurement(), "fc1.weight", groups=2))
        assert f.severity == "error" and f.evidence[0].value == 2

    def test_extra_tensors_alone_are_advice(self):
        assert severities(parameters_not_in_optimizer, measurement(optimizer=optimizer(stale=3))) == ["info"]

    def test_a_layer_between_the_body_and_the_head_is_no_prefix(self):
        layers = (layer("fc1", order=0), layer("mid", order=1), layer("fc2", order=2, head=True))
        parameters = (parameter("fc1.weight"), parameter("mid.weight", groups=0), parameter("fc2.weight"))
        assert severities(parameters_not_in_optimizer, measurement(layers=layers, parameters=parameters)) == ["error"]
