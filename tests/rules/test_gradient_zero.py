"""GRAD004 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.gradient.zero_gradient import zero_gradient
from gradcheck.types.layers import Snapshot
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import ZeroDerivative
from gradcheck.types.training import Run
from tests.literals import STEPS, layer, location, measurement, parameter, parameter_steps, run, stack, stalled, stats
from tests.rules.verdicts import findings, no_verdict, only, severities

SHORT: dict[str, Any] = {"probe": run((2.3, 2.3, 2.3))}  # too short to say anything


def weights(stuck: list[bool], *, steps: tuple[int, ...] = STEPS, probe: Run | None = None, **overrides: Any) -> Measurement:
    """A stack of layers, input first; `stuck[i]` says whether layer i's weight has no gradient at any step."""
    layers = stack(len(stuck))
    parameters = tuple(
        parameter(f"layers.{i}.weight", steps=parameter_steps(5.0, 0.0 if zero else 0.1, steps)) for i, zero in enumerate(stuck)
    )
    values: dict[str, Any] = {"layers": layers, "parameters": parameters, "measured_steps": steps, "probe": probe or run()}
    return measurement(**values | overrides)


class TestZeroGradient:
    def test_a_model_with_gradients_passes(self):
        assert findings(zero_gradient, weights([False] * 4)) == []

    def test_a_weight_that_never_gets_one_is_a_warning_with_its_place(self):
        f = only(zero_gradient, weights([False, True, False, False]))
        assert f.severity == "warning" and f.layers == ("layers.1",) and f.location == location(12)
        assert "exactly 0 from step 0 to step 99 for 1 of 4 weights (25 %)" in f.message
        assert [r.name for r in f.remedies] == ["remove-detach"]

    def test_the_place_is_the_call_that_has_no_derivative(self):
        rounding = ZeroDerivative("round", "", location(7), ("layers.0.weight", "layers.1.weight"))
        elsewhere = ZeroDerivative("sign", "", location(8), ("layers.3.weight",))
        f = only(zero_gradient, weights([True, True, False, False], zero_derivatives=(elsewhere, rounding)))
        assert f.location == location(7) and [(r.name, r.applicability) for r in f.remedies] == [("straight-through", "safe")]
        assert f.message.endswith("torch.round after them has the derivative 0")

    def test_scales_of_zero_at_one_place_are_named_together(self):
        scales = [ZeroDerivative("product", f"blocks.{i}", location(7), (f"layers.{i}.weight",), f"blocks.{i}.scale") for i in range(3)]
        f = only(zero_gradient, weights([True, True, True, False], zero_derivatives=tuple(scales)))
        assert f.location == location(7) and [(r.name, r.applicability) for r in f.remedies] == [("trainable-scale", "unsafe")]
        assert "blocks.{0..2}.scale, which they are multiplied by, is 0 and is not trained" in f.message

    def test_it_is_an_error_when_the_probe_fails(self):
        assert severities(zero_gradient, weights([False, True, False, False], probe=stalled())) == ["error"]

    @pytest.mark.parametrize(("stuck", "expected"), [([True, True, False, False], "error"), ([True, False, False, False], "warning")])
    def test_half_of_the_weights_is_an_error_when_nothing_is_known_about_the_probe(self, stuck, expected):
        assert severities(zero_gradient, weights(stuck, **SHORT)) == [expected]

    @pytest.mark.parametrize(("stuck", "expected"), [([True, True, True, False], "error"), ([False, True, True, True], "warning")])
    def test_a_model_that_learns_is_only_wrong_when_all_before_some_layer_is_cut_off(self, stuck, expected):
        assert severities(zero_gradient, weights(stuck)) == [expected]

    @pytest.mark.parametrize(("layers", "expected"), [(11, "info"), (10, "warning")])
    def test_an_idle_corner_of_a_model_that_learns_is_advice(self, layers, expected):
        corner = [False, True] + [False] * (layers - 2)
        assert severities(zero_gradient, weights(corner)) == [expected]

    def test_zero_initialised_branches_that_open_are_healthy(self):
        opening = (*parameter_steps(5.0, 0.0, (0, 1)), *parameter_steps(5.0, 0.1, (3, 10)))
        m = weights([False] * 3)
        m = measurement(layers=m.layers, parameters=tuple(parameter(p.name, steps=opening) for p in m.parameters))
        assert findings(zero_gradient, m) == []

    def test_it_is_never_judged_before_step_three(self):
        assert no_verdict(zero_gradient, weights([True, False], steps=(0, 1))) == "not-measured"
        assert severities(zero_gradient, weights([True, False], steps=(0, 1, 3))) == ["error"]

    @pytest.mark.parametrize(
        "exempt",
        [
            {"trainable": False},
            {"used": False},
            {"shape": (64,)},
            {"shape": (64, 1, 1)},
            {"steps": parameter_steps(5.0, None)},
        ],
    )
    def test_frozen_unused_and_one_dimensional_parameters_are_exempt(self, exempt):
        values = {"steps": parameter_steps(5.0, 0.0)} | exempt
        m = measurement(layers=stack(2), parameters=(parameter("layers.0.weight", **values), parameter("layers.1.weight")))
        assert findings(zero_gradient, m) == []

    def test_embeddings_and_idle_experts_are_exempt(self):
        still = parameter_steps(5.0, 0.0)
        embedding = layer("embedding", "embedding", parameters=("embedding.weight",))
        expert = layer("expert", order=1, snapshots=tuple(Snapshot(t, stats(0.0, count=0)) for t in STEPS))
        m = measurement(
            layers=(embedding, expert, layer("fc", order=2)),
            parameters=(parameter("embedding.weight", steps=still), parameter("expert.weight", steps=still), parameter("fc.weight")),
        )
        assert findings(zero_gradient, m) == []


def test_two_factors_of_zero_are_named_with_their_cure():
    pairs = [ZeroDerivative("zeros", f"layers.{i}", location(7), (f"layers.{i}.weight", f"layers.{i}.other")) for i in range(2)]
    f = only(zero_gradient, weights([True, True, False, False], zero_derivatives=tuple(pairs)))
    assert f.location == location(7) and [(r.name, r.applicability) for r in f.remedies] == [("break-symmetry", "safe")]
    assert "are multiplied with each other and both 0" in f.message and "at random" in f.remedies[0].text


def test_a_reverse_direction_that_is_read_at_its_first_step_is_named():
    """`lstm(x)[0][:, -1]` of a bidirectional LSTM: the weight between its states multiplies zeros."""
    names = ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l0_reverse", "lstm.weight_hh_l0_reverse")
    parameters = tuple(parameter(n, steps=parameter_steps(5.0, 0.0 if n == names[-1] else 0.1)) for n in names)
    m = measurement(layers=(layer("lstm", "recurrent", parameters=names), layer("fc", order=1)), parameters=parameters)
    f = only(zero_gradient, m)
    assert f.severity == "warning" and "lstm.weight_hh_l0_reverse will never change; the reverse direction is read" in f.message
    assert [r.name for r in f.remedies] == ["check-data-path"]
