"""INIT005 and INIT006 on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.initialization.degenerate_initialization import degenerate_initialization
from gradcheck.rules.initialization.symmetric_units import symmetric_units
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.structure import Shared
from tests.literals import layer, location, measurement, parameter, parameter_steps
from tests.rules.models import FAILS, SHORT
from tests.rules.verdicts import findings, no_verdict, only, severities

CONSTANT: dict[str, Any] = {"mean": 0.1, "std": 1.5e-8}
ZERO: dict[str, Any] = {"mean": 0.0, "std": 0.0}


def weighing(steps: tuple, **facts: Any) -> Measurement:
    """fc1 (with this weight) -> relu -> fc2 -> relu -> head."""
    layers = (
        layer("fc1", order=0, site=location(10)),
        layer("act1", "activation", order=1),
        layer("fc2", order=2, site=location(12)),
        layer("act2", "activation", order=3),
        layer("head", order=4, head=True),
    )
    weights = (parameter("fc1.weight", **{"steps": steps} | facts), parameter("fc2.weight"), parameter("head.weight"))
    return measurement(layers=layers, parameters=weights)


class TestDegenerateInitialization:
    def test_random_weights_pass(self):
        assert findings(degenerate_initialization, weighing(parameter_steps())) == []

    @pytest.mark.parametrize(("facts", "words"), [(ZERO, "are zero, and after 99 steps still equal"), (CONSTANT, "are equal to 0.1")])
    def test_a_weight_that_stays_constant_is_an_error(self, facts, words):
        f = only(degenerate_initialization, weighing(parameter_steps(0.0, 0.0, constant=True, duplicate_units=1.0), **facts))
        assert f.severity == "error" and words in f.message and "all 4096 entries of fc1.weight" in f.message
        assert f.location == location(10) and f.remedies[0].name == "break-symmetry"

    def test_zero_initialised_branches_open_and_are_silent(self):
        opened = (*parameter_steps(0.0, 0.0, (0,), constant=True, duplicate_units=1.0), *parameter_steps(0.1, 0.1, (1, 3, 10)))
        assert findings(degenerate_initialization, weighing(opened, **ZERO)) == []

    @pytest.mark.parametrize(("twins", "expected"), [(0.98, 0), (0.995, 1)])
    def test_a_constant_whose_units_stay_equal_is_one_although_its_entries_part(self, twins, expected):
        steps = (*parameter_steps(5.0, 0.1, (0,), constant=True), *parameter_steps(5.0, 0.1, (1, 3, 10), duplicate_units=twins))
        assert len(findings(degenerate_initialization, weighing(steps, **CONSTANT))) == expected

    def test_zeros_whose_units_are_equal_but_not_constant_any_more_are_left_to_symmetric_units(self):
        steps = (*parameter_steps(0.0, 0.1, (0,), constant=True), *parameter_steps(5.0, 0.1, (1, 3, 10), duplicate_units=1.0))
        assert findings(degenerate_initialization, weighing(steps, **ZERO)) == []

    @pytest.mark.parametrize("exempt", [{"trainable": False}, {"groups": 0}, {"used": False}, {"shape": (64, 1)}, {"shape": (1, 1)}])
    def test_parameters_that_nobody_trains_are_exempt(self, exempt):
        steps = parameter_steps(0.0, 0.0, constant=True)
        assert findings(degenerate_initialization, weighing(steps, **ZERO | exempt)) == []

    def test_the_head_is_exempt(self):
        m = weighing(parameter_steps())
        zero_head = parameter("head.weight", steps=parameter_steps(0.0, 0.0, constant=True), **ZERO)
        assert findings(degenerate_initialization, replace(m, parameters=(*m.parameters[:2], zero_head))) == []

    def test_nothing_is_said_when_the_optimizer_moves_nothing(self):
        steps = parameter_steps(0.0, 0.0, constant=True, update_ratio=0.0)
        m = weighing(steps, **ZERO)
        assert findings(degenerate_initialization, replace(m, parameters=m.parameters[:1])) == []

    def test_it_is_not_judged_before_step_three(self):
        m = weighing(parameter_steps(0.0, 0.0, (0, 1), constant=True), **ZERO)
        assert no_verdict(degenerate_initialization, replace(m, parameters=m.parameters[:1])) == "not-measured"

    @pytest.mark.parametrize(("mean", "dead", "expected"), [(-0.9, 64, 0), (-1.1, 64, 1), (-5.0, 63, 0)])
    def test_biases_that_shut_a_layer(self, mean, dead, expected):
        m = shut(mean, dead)
        assert severities(degenerate_initialization, replace(m, **SHORT)) == ["warning"] * expected
        assert severities(degenerate_initialization, replace(m, **FAILS)) == ["error"] * expected

    def test_a_shut_layer_is_named_with_its_bias(self):
        f = only(degenerate_initialization, replace(shut(-10.0, 64), **FAILS))
        assert "biases of fc1 average -10 (limit -1), and none of the 64 units of act1 is active" in f.message
        assert f.layers == ("fc1", "act1") and f.location == location(10)

    @pytest.mark.parametrize(("samples", "expected"), [(63, 0), (64, 1)])
    def test_a_layer_is_called_shut_on_enough_samples(self, samples, expected):
        assert len(findings(degenerate_initialization, shut(-10.0, 64, effective_samples=samples))) == expected


def shut(mean: float, dead: int, **overrides: Any) -> Measurement:
    m = weighing(parameter_steps())
    act: Layer = replace(
        m.layers[1], **{"units": 64, "dead_units": dead, "dead_at_start": dead, "effective_samples": 128, "dead_batches": 2} | overrides
    )
    return replace(m, layers=(m.layers[0], act, *m.layers[2:]), parameters=(*m.parameters, parameter("fc1.bias", mean=mean)))


class TestSymmetricUnits:
    @pytest.mark.parametrize(("twins", "expected"), [(0.5, []), (0.52, ["error"])])
    def test_more_than_half_of_the_units(self, twins, expected):
        assert severities(symmetric_units, weighing(parameter_steps(duplicate_units=twins))) == expected

    def test_the_message_counts_units(self):
        f = only(symmetric_units, weighing(parameter_steps(duplicate_units=1.0)))
        assert "100 % of the 64 units of fc1 equal another unit (limit 50 %), in weights and gradients, still after 99 steps" in f.message
        assert f.location == location(10)

    def test_units_that_part_are_healthy(self):
        steps = (*parameter_steps(steps=(0,), duplicate_units=1.0), *parameter_steps(steps=(1, 3, 10), duplicate_units=0.0))
        assert findings(symmetric_units, weighing(steps)) == []

    def test_constant_weights_are_another_rule(self):
        assert findings(symmetric_units, weighing(parameter_steps(duplicate_units=1.0), **CONSTANT)) == []

    def test_grouped_layers_and_heads_are_exempt(self):
        m = weighing(parameter_steps(duplicate_units=1.0))
        assert no_verdict(symmetric_units, replace(m, layers=(replace(m.layers[0], groups=64), *m.layers[1:]))) == "not-applicable"
        assert no_verdict(symmetric_units, replace(m, layers=(replace(m.layers[0], head=True), *m.layers[1:]))) == "not-applicable"

    def test_it_is_not_judged_before_step_three(self):
        assert no_verdict(symmetric_units, weighing(parameter_steps(steps=(0, 1), duplicate_units=1.0))) == "not-applicable"

    @pytest.mark.parametrize(("targets", "expected"), [(2, "error"), (1, "warning"), (0, "warning")])
    def test_one_module_in_place_of_several(self, targets, expected):
        m = replace(weighing(parameter_steps()), shared=(Shared(("heads.0", "heads.1"), location(17), 2, targets),))
        f = only(symmetric_units, m)
        assert f.severity == expected and f.location == location(17) and "are one module (expected 2)" in f.message
