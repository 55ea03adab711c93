"""GRAPH rules on literal measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.nouns.measurement import Ascent, Cut, HiddenTensor
from gradcheck.rules.graph import disconnected_parameters, gradient_ascent, parameters_not_in_optimizer, unregistered_modules
from tests.literals import diverged, layer, location, loss_call, measurement, optimizer, parameter, run, with_parameter
from tests.rules.verdicts import findings, no_verdict, only, severities

BODY = ("fc1.weight", "fc1.bias")


def cut(operation="detach", names=BODY, **overrides):
    return Cut(**{"operation": operation, "layer": "fc1", "site": location(22), "parameters": names} | overrides)


def disconnected(*cuts, **overrides):
    """The literal classifier with the cut parameters out of the loss's reach."""
    m = measurement(cuts=cuts or (cut(),), **overrides)
    for c in m.cuts:
        for name in c.parameters:
            m = with_parameter(m, name, used=False) if m.parameter(name) else m
    return m


class TestDisconnectedParameters:
    def test_a_connected_model_passes(self):
        assert findings(disconnected_parameters, measurement()) == []

    @pytest.mark.parametrize("operation", ["detach", "no_grad", "data", "numpy", "item", "argmax", "round", "bool", "int-cast"])
    def test_a_cut_before_optimised_parameters_is_an_error(self, operation):
        f = only(disconnected_parameters, disconnected(cut(operation)))
        assert f.severity == "error" and f.confirmed == "by the measured value alone"
        assert f.location == location(22)
        assert "fc1" in f.message and "2 of 4 trainable parameters" in f.message

    def test_parameters_outside_the_optimizer_may_be_cut(self):
        m = disconnected()
        for name in BODY:
            m = with_parameter(m, name, groups=0)
        assert findings(disconnected_parameters, m) == []

    def test_groups_say_nothing_when_the_optimizer_was_assumed(self):
        m = replace(disconnected(), optimizer=optimizer(given=False))
        assert severities(disconnected_parameters, m) == ["error"]

    def test_a_package_may_cut_by_design(self):
        assert severities(disconnected_parameters, disconnected(cut(in_package=True))) == ["info"]

    def test_a_cut_in_a_pretrained_model_may_be_meant(self):
        assert severities(disconnected_parameters, disconnected(pretrained=True)) == ["warning"]

    @pytest.mark.parametrize("operation", ["unused-output", "not-called"])
    def test_idle_modules_are_one_piece_of_advice(self, operation):
        f = only(disconnected_parameters, disconnected(cut(operation, BODY[:1]), cut(operation, BODY[1:])))
        assert f.severity == "info" and "2 of 4" in f.message

    def test_unreached_parameters_without_a_known_cut_are_advice(self):
        m = with_parameter(measurement(), "fc1.weight", used=False)
        assert severities(disconnected_parameters, m) == ["info"]

    @pytest.mark.parametrize("operation", ["detach", "unused-output"])
    def test_no_gradient_at_all_is_an_error_whatever_cuts(self, operation):
        names = tuple(p.name for p in measurement().parameters)
        f = only(disconnected_parameters, disconnected(cut(operation, names, in_package=True)))
        assert f.severity == "error" and "any of the 4 trainable parameters" in f.message

    def test_cuts_at_one_place_are_one_finding(self):
        f = only(disconnected_parameters, disconnected(cut(names=BODY[:1]), cut(names=BODY[1:])))
        assert f.layers == ("fc1",)

    def test_a_momentum_teacher_is_no_fault(self):
        twins = tuple(parameter(f"{net}.encoder.{kind}") for net in ("student", "teacher") for kind in ("weight", "bias"))
        m = disconnected(cut("no_grad", ("teacher.encoder.weight", "teacher.encoder.bias")), parameters=twins)
        assert severities(disconnected_parameters, m) == ["info"]

    def test_equal_layers_of_a_stack_are_no_momentum_teacher(self):
        m = disconnected(cut("detach", ("blocks.0.weight",)), parameters=(parameter("blocks.0.weight"), parameter("blocks.1.weight")))
        assert severities(disconnected_parameters, m) == ["error"]

    def test_a_frozen_model_has_nothing_to_judge(self):
        frozen = tuple(replace(p, trainable=False) for p in measurement().parameters)
        assert no_verdict(disconnected_parameters, measurement(parameters=frozen)) == "not-applicable"


def hidden(name="self.blocks[0].weight", **overrides):
    values = {"owner": "Linear", "shape": (64, 64), "site": location(14), "in_optimizer": False}
    return HiddenTensor(name, **values | overrides)


class TestUnregisteredModules:
    def test_a_registered_model_passes(self):
        assert findings(unregistered_modules, measurement()) == []

    def test_modules_in_a_list_are_one_error_at_their_expression(self):
        tensors = tuple(hidden(f"self.blocks[{i}].weight") for i in range(3))
        f = only(unregistered_modules, measurement(hidden=tensors))
        assert f.severity == "error" and f.location == location(14)
        assert "3 trainable tensors" in f.message and "12300 numbers" in f.message and "self.blocks.{0..2}" in f.message
        assert "nn.ModuleList" in f.remedies[0].text

    def test_tensors_that_are_trained_by_hand_are_a_warning(self):
        assert severities(unregistered_modules, measurement(hidden=(hidden(in_optimizer=True),))) == ["warning"]

    def test_a_tensor_that_cannot_be_placed_is_a_warning(self):
        assert severities(unregistered_modules, measurement(hidden=(hidden("", owner="Parameter", site=None),))) == ["warning"]

    def test_a_loss_with_trained_parameters_of_its_own_is_no_fault(self):
        assert findings(unregistered_modules, measurement(hidden=(hidden("", owner="Parameter", site=None, in_optimizer=True),))) == []

    @pytest.mark.parametrize(
        ("name", "owner", "container"),
        [
            ("self.heads['a'].weight", "Linear", "nn.ModuleDict"),
            ("self.scale", "Parameter", "nn.ParameterList"),
            ("self.b[0]", "Tensor", "nn.ParameterList"),
        ],
    )
    def test_the_remedy_names_the_fitting_container(self, name, owner, container):
        assert container in only(unregistered_modules, measurement(hidden=(hidden(name, owner=owner),))).remedies[0].text


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


class TestGradientAscent:
    def test_descent_passes(self):
        assert findings(gradient_ascent, measurement(ascent=Ascent(0.8))) == []

    @pytest.mark.parametrize(("cosine", "expected"), [(-0.04, []), (-0.06, ["error"]), (-1.0, ["error"])])
    def test_a_step_uphill_is_an_error(self, cosine, expected):
        assert severities(gradient_ascent, measurement(ascent=Ascent(cosine))) == expected

    def test_the_message_holds_cosine_and_limit(self):
        f = only(gradient_ascent, measurement(ascent=Ascent(-0.9)))
        assert "-0.9 (limit -0.05)" in f.message and "AdamW" in f.message

    @pytest.mark.parametrize(("cosine", "expected"), [(-0.4, []), (-0.6, ["error"])])
    def test_weight_decay_may_turn_the_first_step(self, cosine, expected):
        assert severities(gradient_ascent, measurement(ascent=Ascent(cosine), optimizer=optimizer(weight_decay=0.1))) == expected

    def test_an_assumed_optimizer_is_never_at_fault(self):
        assert findings(gradient_ascent, measurement(ascent=Ascent(-1.0), optimizer=optimizer(given=False))) == []

    def test_maximize_with_a_known_loss_is_an_error(self):
        m = measurement(ascent=Ascent(-0.8), optimizer=optimizer(maximize=True))
        assert "it raises cross_entropy, from 2.3" in only(gradient_ascent, m).message

    def test_maximize_of_a_negated_loss_is_right(self):
        m = measurement(ascent=Ascent(-0.8), optimizer=optimizer(maximize=True), losses=(loss_call(weight_in_total=-1.0),))
        assert findings(gradient_ascent, m) == []

    def test_maximize_of_an_unknown_objective_is_advice(self):
        m = measurement(ascent=Ascent(-0.8), optimizer=optimizer(maximize=True), losses=())
        assert severities(gradient_ascent, m) == ["info"]

    def test_a_negated_loss_alone_is_an_error(self):
        m = measurement(losses=(loss_call(weight_in_total=-1.0),), probe=run((-2.3, -2.4, -3.0)), ascent=Ascent(1.0))
        f = only(gradient_ascent, m)
        assert f.severity == "error" and f.location == loss_call().site and "weight -1" in f.message

    def test_a_subtracted_term_beside_others_is_advice_unless_it_runs_away(self):
        losses = (loss_call(), loss_call(weight_in_total=-0.1, site=location(31)))
        assert severities(gradient_ascent, measurement(losses=losses)) == ["info"]
        assert severities(gradient_ascent, measurement(losses=losses, ascent=Ascent(1.0, unbounded=True))) == ["error"]

    def test_a_loss_without_bound_is_an_error_for_itself(self):
        m = measurement(losses=(), ascent=Ascent(1.0, unbounded=True), probe=run((0.1, -1.0, -40.0, -900.0)))
        f = only(gradient_ascent, m)
        assert f.severity == "error" and "-900" in f.message and f.confirmed.startswith("by the probe")

    def test_a_density_may_exceed_one(self):
        m = measurement(losses=(loss_call("gaussian_nll_loss"),), ascent=Ascent(1.0, unbounded=True), probe=diverged())
        assert findings(gradient_ascent, m) == []
