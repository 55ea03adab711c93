"""GRAD rules on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.gradient.exploding_gradient import exploding_gradient
from gradcheck.rules.gradient.vanishing_gradient import vanishing_gradient
from gradcheck.types.layers import Layer, Snapshot
from gradcheck.types.measurement import Measurement
from tests.literals import (
    STEPS,
    diverged,
    falling,
    layer,
    location,
    measurement,
    optimizer,
    parameter,
    run,
    snapshots,
    stack,
    stalled,
    stats,
)
from tests.rules.verdicts import findings, no_verdict, only, severities

HEAD = layer("head", order=1000, head=True, output_shape=(32, 10), site=location(30))
SGD = optimizer("SGD", lr=0.01)
FAILS: dict[str, Any] = {"probe": stalled()}
SHORT: dict[str, Any] = {"probe": run((2.3, 2.3, 2.3))}  # too short to say anything
LEARNED_ELSEWHERE = run(falling(), "adam 0.001 on one batch", batches=1)


def with_gradients(sizes: dict[int, list[float | None]], **overrides: Any) -> tuple[Layer, ...]:
    """A plain stack whose layers have these gradients (rms), by measured step."""
    count = len(next(iter(sizes.values())))

    def snaps(i: int) -> dict[str, Any]:
        return {"snapshots": tuple(s for step in sizes for s in snapshots(1.0, sizes[step][i], [step]))} | overrides

    return (*stack(count, snaps), HEAD)


def sloped(slope: float, n: int, later: float | None = None, **overrides: Any) -> Measurement:
    """n layers whose gradient falls by `slope` decades per layer towards the input (by `later` from step 3 on)."""
    sizes = {t: [10 ** ((slope if t < 3 or later is None else later) * i) for i in range(n)] for t in STEPS}
    return measurement(**{"layers": with_gradients(sizes), "parameters": ()} | overrides)  # type: ignore[arg-type]


class TestVanishingGradient:
    @pytest.mark.parametrize(
        ("slope", "n", "expected"),
        [(0.076, 40, 1), (0.074, 40, 0), (0.13, 20, 1), (0.12, 20, 0), (-0.2, 20, 0), (0.0, 20, 0)],
    )
    def test_it_needs_a_steep_slope_and_a_large_total(self, slope, n, expected):
        assert len(findings(vanishing_gradient, sloped(slope, n, **FAILS))) == expected

    def test_the_message_gives_the_numbers_and_the_place(self):
        f = only(vanishing_gradient, sloped(0.41, 14, **FAILS))
        assert f.message.startswith("gradient shrinks towards the input: 0.41 decades per layer over 14 layers (5.74 decades; limit 2.5)")
        assert "from layers.13 back to layers.0" in f.message
        assert f.location == location(12) and len(f.layers) == 14 and "head" not in f.layers
        assert [e.limit for e in f.evidence] == [0.075, 2.5]
        assert f.remedies[0].name in ("orthogonal-init", "he-init")

    @pytest.mark.parametrize(
        ("total", "chosen", "rest", "expected"),
        [
            (3.0, optimizer(), FAILS, "error"),
            (3.0, optimizer(), SHORT, "warning"),
            (5.9, optimizer(), SHORT, "warning"),
            (6.1, optimizer(), SHORT, "error"),
            (3.9, SGD, SHORT, "warning"),
            (4.1, SGD, SHORT, "error"),
            (3.9, optimizer(), {}, "info"),
            (4.1, optimizer(), {}, "warning"),
            (20.0, SGD, {}, "warning"),
        ],
    )
    def test_severity_is_a_prediction(self, total, chosen, rest, expected):
        assert severities(vanishing_gradient, sloped(total / 20, 20, optimizer=chosen, **rest)) == [expected]

    @pytest.mark.parametrize(("end", "total", "expected"), [(2.20, 8.0, "warning"), (2.20, 3.0, "warning"), (2.0, 3.0, "info")])
    def test_a_model_that_learns_a_little_is_a_warning(self, end, total, expected):
        assert severities(vanishing_gradient, sloped(total / 20, 20, probe=run(falling(2.30, end)))) == [expected]

    def test_an_assumed_optimizer_that_fails_confirms_nothing_when_another_one_learned(self):
        assumed = optimizer(given=False)
        assert severities(vanishing_gradient, sloped(0.2, 20, optimizer=assumed, **FAILS)) == ["error"]
        other: dict[str, Any] = {"optimizer": assumed, "experiments": (LEARNED_ELSEWHERE,)} | FAILS
        assert severities(vanishing_gradient, sloped(0.2, 20, **other)) == ["warning"]
        assert severities(vanishing_gradient, sloped(0.4, 20, **other)) == ["warning"]

    def test_a_trend_that_is_gone_after_three_steps_passes(self):
        assert findings(vanishing_gradient, sloped(0.4, 20, later=0.05, **FAILS)) == []

    def test_a_trend_that_turns_round_passes(self):
        assert findings(vanishing_gradient, sloped(0.4, 20, later=-0.4, **FAILS)) == []

    def test_zero_initialised_branches_are_judged_by_the_later_trend_alone(self):
        start: list[float | None] = [0.0 if i % 2 else 10 ** (0.3 * i) for i in range(20)]
        healthy = {t: start if t == 0 else [1.0] * 20 for t in STEPS}
        assert findings(vanishing_gradient, measurement(layers=with_gradients(healthy), **FAILS)) == []  # type: ignore[arg-type]
        faulty = {t: start if t == 0 else [10 ** (0.3 * i) for i in range(20)] for t in STEPS}
        assert severities(vanishing_gradient, measurement(layers=with_gradients(faulty), **FAILS)) == ["error"]  # type: ignore[arg-type]

    def test_zero_gradients_at_the_start_are_not_judged_without_a_later_step(self):
        m = measurement(layers=with_gradients({0: [0.0, 1.0, 10.0, 100.0, 1e3, 1e4]}), measured_steps=(0,))
        assert no_verdict(vanishing_gradient, m) == "not-measured"

    def test_one_layer_that_loses_most_of_it_is_named(self):
        sizes = [1e-5] * 8 + [1.0] * 8
        m = measurement(layers=with_gradients({t: list(sizes) for t in STEPS}), **FAILS)
        f = only(vanishing_gradient, m)
        assert "5 of them between layers.7 and layers.8" in f.message

    def test_shallow_models_are_not_applicable(self):
        assert no_verdict(vanishing_gradient, sloped(2.0, 3, **FAILS)) == "not-applicable"
        assert severities(vanishing_gradient, sloped(2.0, 4, **FAILS)) == ["error"]

    def test_layers_without_gradient_path_do_not_count(self):
        layers = with_gradients({t: [1e-9] * 6 for t in STEPS}, trained=False)
        assert no_verdict(vanishing_gradient, measurement(layers=layers)) == "not-applicable"

    @pytest.mark.parametrize(("groups", "expected"), [(1, 1), (0, 0)])
    def test_layers_behind_the_last_trained_one_scale_all_gradients_alike(self, groups, expected):
        layers = with_gradients({t: [1e-4] * 10 + [10 ** (0.4 * i - 4) for i in range(1, 11)] for t in STEPS})
        layers = tuple(replace(x, parameters=(f"{x.name}.weight",)) for x in layers)
        held = tuple(parameter(f"{x.name}.weight", groups=1 if i < 10 else groups) for i, x in enumerate(layers))
        assert len(findings(vanishing_gradient, measurement(layers=layers, parameters=held, **FAILS))) == expected

    def test_a_pretrained_model_is_not_told_to_reinitialise(self):
        f = only(vanishing_gradient, sloped(0.2, 20, pretrained=True, **FAILS))
        assert not [r for r in f.remedies if r.name.endswith("-init")]

    def test_a_stack_of_sigmoids_is_told_to_change_the_activation(self):
        layers = with_gradients({t: [10 ** (0.7 * i) for i in range(6)] for t in STEPS}, activation="sigmoid")  # type: ignore[arg-type]
        assert only(vanishing_gradient, measurement(layers=layers, **FAILS)).remedies[0].name == "replace-activation"


class TestExplodingGradient:
    @pytest.mark.parametrize(("slope", "n", "expected"), [(-0.076, 40, 1), (-0.074, 40, 0), (-0.13, 20, 1), (-0.12, 20, 0), (0.3, 20, 0)])
    def test_it_needs_a_steep_slope_and_a_large_total(self, slope, n, expected):
        assert len(findings(exploding_gradient, sloped(slope, n, **FAILS))) == expected

    def test_the_message_gives_the_numbers(self):
        f = only(exploding_gradient, sloped(-0.3, 20, **FAILS))
        assert "gradient grows towards the input: 0.3 decades per layer over 20 layers (6 decades; limit 2.5)" in f.message
        assert "clip-gradient-norm" in [r.name for r in f.remedies]

    @pytest.mark.parametrize(("ratio", "expected"), [(0.99e4, []), (1.01e4, ["error"])])
    def test_a_huge_initial_loss_is_an_error(self, ratio, expected):
        chance = math.log(10)
        m = measurement(probe=run((ratio * chance,) * 3), chance=chance)
        assert severities(exploding_gradient, sloped(0.0, 6, probe=m.probe, chance=chance)) == expected

    def test_a_huge_initial_loss_that_is_learned_away_is_a_warning(self):
        f = only(exploding_gradient, sloped(0.0, 6, probe=run(falling(1e5, 0.5))))
        assert f.severity == "warning" and "43429 times" in f.message

    def test_a_huge_initial_loss_counts_in_shallow_models_and_not_without_classes(self):
        big = run((1e6,) * 3)
        assert severities(exploding_gradient, measurement(probe=big)) == ["error"]
        assert no_verdict(exploding_gradient, measurement(probe=big, losses=())) == "not-applicable"

    def test_an_overflow_that_growth_leads_to_is_an_error(self):
        outputs = [stats(10.0 ** (1.5 * i)) for i in range(12)] + [stats(1e18, inf=2048)] * 4
        lost = stats(0.0, nan=2048)
        layers = tuple(layer(f"layers.{i}", order=i, site=location(12), snapshots=(Snapshot(0, o, lost),)) for i, o in enumerate(outputs))
        m = measurement(layers=(*layers, HEAD), probe=run((math.nan,), ended="non-finite"), measured_steps=(0,))
        f = only(exploding_gradient, m)
        assert f.severity == "error" and "signal grows with depth by 1.5 decades per layer over 12 layers" in f.message
        assert f.evidence[0].value == 16

    def test_non_finite_gradients_without_growth_are_left_to_the_rule_that_names_their_operation(self):
        lost = stats(0.0, nan=2048)
        broken = tuple(layer(f"layers.{i}", order=i, snapshots=(Snapshot(0, stats(1.0), lost),)) for i in range(6))
        fine = tuple(layer(f"rest.{i}", order=10 + i, snapshots=snapshots(steps=[0])) for i in range(6))
        m = measurement(layers=(*broken, *fine, HEAD), probe=diverged(), measured_steps=(0,))
        assert no_verdict(exploding_gradient, m) == "not-measured"

    def test_a_probe_that_learns_makes_it_a_warning_at_most(self):
        assert severities(exploding_gradient, sloped(-0.5, 20)) == ["warning"]
        assert severities(exploding_gradient, sloped(-0.15, 20)) == ["info"]
