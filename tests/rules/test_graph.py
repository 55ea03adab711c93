"""GRAPH rules on literal measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.rules.graph.disconnected_parameters import disconnected_parameters
from gradcheck.rules.graph.unregistered_modules import unregistered_modules
from gradcheck.types.parameters import Cut, HiddenTensor
from tests.literals import location, measurement, optimizer, parameter, with_parameter
from tests.rules.models import BODY
from tests.rules.verdicts import findings, no_verdict, only, severities


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
        assert "3 trainable tensors" in f.message and "12288 numbers" in f.message and "self.blocks.{0..2}" in f.message
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
