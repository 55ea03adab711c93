"""ACT003 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.activation.deep_sigmoid import deep_sigmoid
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from tests.literals import layer, location, measurement, snapshots
from tests.rules.models import FAILS, SHORT, between
from tests.rules.verdicts import findings, no_verdict, only, severities


def sigmoids(
    count: int, function: str = "sigmoid", decades: float = 0.5, between_them: tuple[Layer, ...] = (), **overrides: Any
) -> Measurement:
    """A plain stack of linear layers, each followed by the function; the gradient loses `decades` per layer."""
    layers: list[Layer] = []
    for i in range(count):
        layers.append(layer(f"fcs.{i}", order=4 * i, activation=function, snapshots=snapshots(1.0, 10 ** (decades * i))))
        layers.append(layer(f"acts.{i}", "activation", function=function, order=4 * i + 1, site=location(15)))
        layers += [layer(f"{x.name}.{i}", x.kind, order=4 * i + 2, residual=x.residual) for x in between_them]
    return measurement(**{"layers": (*layers, layer("head", order=1000, head=True))} | overrides)


class TestDeepSigmoid:
    @pytest.mark.parametrize(("count", "expected"), [(3, []), (4, ["warning"])])
    def test_four_in_a_row(self, count, expected):
        assert severities(deep_sigmoid, sigmoids(count)) == expected

    @pytest.mark.parametrize("function", ["softplus", "hardsigmoid", "logsigmoid"])
    def test_its_kin_count_too(self, function):
        assert severities(deep_sigmoid, sigmoids(5, function)) == ["warning"]

    @pytest.mark.parametrize(
        ("rest", "decades", "expected"), [(FAILS, 0.1, "error"), (SHORT, 0.99, "warning"), (SHORT, 1.01, "error"), ({}, 1.01, "warning")]
    )
    def test_it_is_an_error_when_the_probe_fails_or_six_decades_are_lost(self, rest, decades, expected):
        assert severities(deep_sigmoid, sigmoids(6, decades=decades, **rest)) == [expected]

    def test_the_message_counts_and_names_them(self):
        f = only(deep_sigmoid, sigmoids(6, **FAILS))
        assert f.message.startswith(
            "6 sigmoid layers in a row without normalization (limit 4): acts.{0..5}; the gradient shrinks by 3 decades"
        )
        assert f.location == location(15) and f.remedies[0].name == "replace-activation"

    @pytest.mark.parametrize(("count", "expected"), [(3, []), (4, ["error"])])
    def test_one_sigmoid_applied_many_times_counts_as_often(self, count, expected):
        stack = sigmoids(count).layers
        one = layer(":sigmoid", "activation", function="sigmoid", order=1, calls=count)
        m = measurement(layers=(*(x for x in stack if x.kind != "activation"), one), **FAILS)
        assert severities(deep_sigmoid, m) == expected

    @pytest.mark.parametrize("cure", [layer("norm", "norm"), layer("sum", "other", residual=True)])
    def test_normalization_or_a_bypass_between_them_is_the_cure(self, cure):
        assert findings(deep_sigmoid, sigmoids(8, between_them=(cure,), **FAILS)) == []

    def test_gates_do_not_count(self):
        m = sigmoids(8, **FAILS)
        gates = tuple(layer(x.name, x.kind, function=x.function, order=x.order, gate=x.kind == "activation") for x in m.layers)
        assert no_verdict(deep_sigmoid, measurement(layers=gates, **FAILS)) == "not-applicable"

    def test_several_sigmoids_on_one_layer_are_not_a_stack(self):
        acts = tuple(layer(f"act.{i}", "activation", function="sigmoid", order=1 + i) for i in range(5))
        assert findings(deep_sigmoid, between(*acts, **FAILS)) == []

    def test_nets_beside_each_other_that_a_solver_calls_often_are_no_stack(self):
        """As the drift and diffusion nets of a stochastic differential equation: each layer is called at every step."""
        layers = []
        for net in range(4):
            for i in range(2):
                order = 10 * net + 3 * i
                layers.append(layer(f"{net}.{i}", order=order, activation="softplus", depth=i + 1, calls=9))
                layers.append(layer(f"{net}.{i}:act", "activation", function="softplus", order=order + 1, depth=i + 1, calls=9))
        m = measurement(layers=(*layers, layer("head", order=99, head=True, depth=20)))
        assert findings(deep_sigmoid, m) == []
