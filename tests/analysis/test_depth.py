"""The arithmetic of trends, against a slow and obvious second implementation."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradcheck.analysis import depth
from gradcheck.analysis.activations import GAINS
from gradcheck.analysis.depth import Trend, forward_trend, gradient_norms, gradient_trend, largest_drop, log_sizes, trend
from gradcheck.analysis.layer_groups import (
    body,
    by_site,
    constant_at_start,
    gain,
    gate_makers,
    is_matrix,
    output_side,
    parameters_by_name,
    settled_step,
)
from tests.literals import layer, location, measurement, parameter, snapshots


def slow_slope(points: list[tuple[float, float]]) -> float:
    """Least squares by numpy's polynomial fit."""
    return float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_is_that_of_least_squares(seed):
    draw = random.Random(seed)
    points = [(float(x), draw.gauss(0.3 * x, 2.0)) for x in range(40) if draw.random() < 0.7]
    fitted = trend(points)
    assert fitted.slope == pytest.approx(slow_slope(points), rel=1e-9)
    assert fitted.n == len(points) and fitted.total == pytest.approx(slow_slope(points) * len(points))


@pytest.mark.parametrize("points", [[], [(0.0, 5.0)], [(2.0, 1.0), (2.0, 9.0)]])
def test_too_few_depths_have_no_slope(points):
    assert trend(points).slope == 0.0


def test_both_limits_count():
    assert Trend(-0.1, 30).beyond(0.1, 3.0)
    assert not Trend(-0.099, 40).beyond(0.1, 3.0)
    assert not Trend(0.5, 5).beyond(0.1, 3.0)


def test_sizes_that_cannot_be_judged_keep_their_depth():
    assert log_sizes([10.0, 0.0, None, math.inf, 1000.0]) == [(0.0, 1.0), (4.0, pytest.approx(3.0))]
    assert log_sizes([1e-13, 0.1, 1.0], 1e-12) == [(1.0, pytest.approx(-1.0)), (2.0, 0.0)]
    assert len(log_sizes([1e-13, 0.1, 1.0])) == 3


def stacked(gradients: list[float], outputs: list[float] | None = None, **overrides: Any):
    outputs = outputs or [1.0] * len(gradients)
    layers = tuple(layer(f"fc.{i}", order=i, snapshots=snapshots(o, g)) for i, (g, o) in enumerate(zip(gradients, outputs, strict=True)))
    return measurement(**{"layers": (*layers, layer("head", order=99, head=True))} | overrides)


def test_a_vanishing_gradient_has_a_positive_slope():
    vanishing = gradient_trend(stacked([10.0**i for i in range(6)]))
    assert vanishing.slope == pytest.approx(1.0) and vanishing.total == pytest.approx(6.0)


def test_the_slope_does_not_depend_on_the_scale_of_the_loss():
    sizes = [3.0**i for i in range(8)]
    assert gradient_trend(stacked(sizes)).slope == pytest.approx(gradient_trend(stacked([1e-6 * x for x in sizes])).slope)


def test_silent_layers_are_skipped_and_counted():
    fitted = gradient_trend(stacked([1.0, 0.0, 100.0, 1e-14, 1e4]))
    assert (fitted.n, fitted.skipped) == (3, 2) and fitted.slope == pytest.approx(1.0)


def test_the_forward_trend_spans_many_decades():
    assert forward_trend(stacked([1.0] * 5, [1.0, 1e5, 1e10, 1e15, 1e18])).total > 20


def test_layers_side_by_side_share_a_depth():
    """Two towers that run one after the other and meet: what one has less of is no trend."""
    m = stacked([1e-5, 1e-4, 1e-1, 1.0, 1e-2])
    towers = tuple(replace(x, depth=d) for x, d in zip(m.layers[:5], (1, 2, 1, 2, 5), strict=True))
    beside = replace(m, layers=(*towers, *m.layers[5:]))
    assert gradient_trend(m).total > 4 and gradient_trend(m).n == 5
    assert gradient_trend(beside).total < 3 and gradient_trend(beside).n == 3
    chain, apart = largest_drop(gradient_norms(m), rising=True), largest_drop(gradient_norms(beside), rising=True)
    assert chain is not None and (chain.before.name, chain.after.name) == ("fc.1", "fc.2")
    assert apart is not None and apart.decades == pytest.approx(1.0)


def test_the_steepest_neighbours():
    m = stacked([1e-6, 1e-5, 1.0, 0.5])
    rising, falling = largest_drop(gradient_norms(m), rising=True), largest_drop(gradient_norms(m), rising=False)
    assert rising is not None and (rising.before.name, rising.after.name) == ("fc.1", "fc.2") and rising.decades == pytest.approx(5.0)
    assert falling is not None and falling.after.name == "fc.3"
    assert largest_drop(gradient_norms(stacked([1.0, 2.0, 3.0])), rising=False) is None


def test_recommended_gains_keep_the_variance_of_a_unit_normal_input():
    """The fast table against numerical integration of E[phi(z)^2] and E[phi'(z)^2]: 1 / root lies in or at the end of each range."""
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    functions = {
        "relu": np.maximum(z, 0),
        "tanh": np.tanh(z),
        "sigmoid": 1 / (1 + np.exp(-z)),
        "silu": z / (1 + np.exp(-z)),
        "softplus": np.log1p(np.exp(z)),
        "linear": z,
    }
    for name, values in functions.items():
        low, high = GAINS[name]
        unit = 1 / math.sqrt(float((values**2 * density).sum()))
        backward = 1 / math.sqrt(float((np.gradient(values, z) ** 2 * density).sum()))
        assert low <= min(unit, backward) * 1.01 and max(unit, backward) <= high * 1.01, (name, unit, backward)


class TestLayers:
    def test_the_body_is_what_carries_the_signal(self):
        kinds = ("embedding", "linear", "norm", "conv", "activation", "recurrent", "container")
        layers = [layer(f"x.{k}", k, order=9 - i) for i, k in enumerate(kinds)]
        layers += [layer("head", order=20, head=True), layer("frozen", order=21, trained=False)]
        assert [x.kind for x in body(measurement(layers=tuple(layers)))] == ["recurrent", "conv", "linear"]

    def test_gain_is_the_factor_on_unit_inputs(self):
        fc = layer("fc", fan_in=400)
        for facts, expected in ({"std": 0.05}, 1.0), ({"std": 0.0}, None), ({"std": 0.05, "trainable": False}, None):
            m = measurement(layers=(fc,), parameters=(parameter("fc.weight", **facts),))
            assert gain(fc, parameters_by_name(m)) == (expected if expected is None else pytest.approx(expected))

    def test_a_reparametrised_weight_has_no_gain(self):
        fc = layer("fc", parameters=("fc.weight_g", "fc.weight_v"))
        parameters = (parameter("fc.weight_v"), parameter("fc.weight_g", shape=(64, 1)))
        assert gain(fc, parameters_by_name(measurement(parameters=parameters))) is None

    def test_tied_parameters_are_found_under_each_name(self):
        tied = parameter("embedding.weight", aliases=("head.weight",))
        assert parameters_by_name(measurement(parameters=(tied,)))["head.weight"] is tied

    @pytest.mark.parametrize(("mean", "std", "constant"), [(0.0, 0.0, True), (0.1, 1.5e-8, True), (0.0, 1e-9, False), (1.0, 0.02, False)])
    def test_rounding_does_not_hide_a_constant(self, mean, std, constant):
        assert constant_at_start(parameter(mean=mean, std=std)) is constant

    @pytest.mark.parametrize(
        ("shape", "matrix"), [((64,), False), ((64, 1, 1), False), ((1, 1), False), ((4, 3), True), ((8, 1, 3, 3), True)]
    )
    def test_gains_and_biases_are_no_matrices(self, shape, matrix):
        assert is_matrix(parameter(shape=shape)) is matrix

    def test_layers_of_one_expression_belong_together(self):
        layers = [layer("a", site=location(1)), layer("b", site=location(2)), layer("c", site=location(1)), layer("d", site=None)]
        assert [[x.name for x in group] for group in by_site(layers)] == [["a", "c"], ["b"], ["d"]]

    @pytest.mark.parametrize(("steps", "settled"), [((0, 1), None), ((0, 1, 3, 10), 3), ((0, 2, 5), 5)])
    def test_branches_have_settled_at_step_three(self, steps, settled):
        assert settled_step(measurement(measured_steps=steps)) == settled

    def test_an_activation_after_a_head_or_after_all_layers_is_an_output(self):
        act = layer("act", "activation", order=5)
        hidden, later = layer("fc", order=4), layer("fc2", order=6)
        assert not output_side(measurement(layers=(hidden, act, later)), act)
        assert output_side(measurement(layers=(hidden, act)), act)
        assert output_side(measurement(layers=(layer("fc", order=4, head=True), act, later)), act)

    def test_what_only_makes_a_gate_is_not_part_of_the_body(self):
        one = {"output_shape": (8, 16, 1, 1)}
        squeeze = (
            layer("conv", "conv", order=0, output_shape=(8, 16, 9, 9)),
            layer("reduce", "conv", order=1, **one),
            layer("act", "activation", order=2),
            layer("expand", "conv", order=3, **one),
            layer("gate", "activation", function="sigmoid", order=4, gate=True),
            layer("project", "conv", order=5),
        )
        m = measurement(layers=squeeze)
        assert gate_makers(m) == {"reduce", "act", "expand"}
        assert [x.name for x in body(m)] == ["conv", "project"]

    def test_a_gated_linear_unit_is_part_of_the_body(self):
        unit = (layer("up", order=0), layer("gate", order=1), layer("act", "activation", function="silu", order=2, gate=True))
        assert [x.name for x in body(measurement(layers=unit))] == ["up", "gate"]


def test_what_several_rules_ask_of_a_measurement_is_found_out_once(monkeypatch):
    m = measurement(layers=tuple(layer(f"l{i}", order=i) for i in range(3)))
    asked = []
    monkeypatch.setattr(depth, "depths", lambda layers: asked.append(layers) or list(range(len(layers))))
    assert gradient_trend(m) is gradient_trend(m) and body(m) is body(m) and len(asked) == 1
    assert body(replace(m, layers=m.layers[:1])) == body(m)[:1] and m == replace(m)
