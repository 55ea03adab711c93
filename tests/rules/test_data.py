"""DATA rules of inputs on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.data.non_finite_input import non_finite_input
from gradcheck.rules.data.uninformative_features import uninformative_features
from gradcheck.rules.data.unscaled_input import unscaled_input
from gradcheck.types.loop import LoopReads
from gradcheck.types.measurement import Entering, Measurement
from tests.literals import data, input_facts, layer, location, loop, loss_call, measurement, norm, parameter, run, snapshots
from tests.rules.verdicts import findings, no_verdict, only, severities


def fed(**facts) -> Measurement:
    """A classifier whose first layer answers to the scale of its input as random weights do."""
    x = input_facts(**facts)
    first = layer(
        "fc1",
        x.used_by if x.used_by in ("linear", "conv", "recurrent") else "linear",
        snapshots=snapshots(0.58 * math.hypot(x.mean, x.std)),
    )
    return measurement(layers=(first,), data=data(inputs=(x,)))


PIXELS = {"used_by": "conv", "shape": (32, 3, 32, 32), "feature_std_ratio": None}


class TestUnscaledInput:
    @pytest.mark.parametrize(
        "facts",
        [
            {},
            PIXELS | {"mean": 0.5, "std": 0.25, "min": 0.0, "max": 1.0},
            PIXELS | {"mean": 0.98, "std": 0.05, "min": 0.0, "max": 1.0},
            PIXELS | {"mean": 0.0, "std": 0.05, "min": -0.9, "max": 0.9},
            PIXELS | {"mean": -4.0, "std": 4.0, "min": -14.0, "max": 4.0},
            {"mean": 2e-4, "std": 0.014, "min": 0.0, "max": 1.0, "feature_std_ratio": 30.0},
            {"mean": 0.3, "std": 0.46, "min": 0.0, "max": 1.0, "feature_std_ratio": 5e3},
            {"std": 0.0, "mean": 1.0},
        ],
        ids=["standardised", "images", "white images", "audio", "spectrogram", "one-hot", "MNIST", "constant"],
    )
    def test_usual_inputs_pass(self, facts):
        assert findings(unscaled_input, fed(**facts)) == []

    def test_bytes_as_floats_are_a_warning(self):
        f = only(unscaled_input, fed(**PIXELS | {"mean": 120.0, "std": 65.0, "min": 0.0, "max": 255.0}))
        assert f.severity == "warning" and "standard deviation is 65 (limit 10)" in f.message and f.location == location(10)
        assert "subtract 120 and divide by 65" in f.remedies[0].text

    @pytest.mark.parametrize(("std", "expected"), [(9.9, []), (10.1, ["warning"])])
    def test_large_scales(self, std, expected):
        assert severities(unscaled_input, fed(std=std, feature_std_ratio=2.0)) == expected

    @pytest.mark.parametrize(("std", "expected"), [(2.1e-3, []), (1.9e-3, ["warning"])])
    def test_tiny_scales(self, std, expected):
        assert severities(unscaled_input, fed(std=std, min=-4e-3, max=4e-3)) == expected

    @pytest.mark.parametrize(("ratio", "std", "expected"), [(900.0, 5.0, []), (1100.0, 3.1, ["warning"]), (1100.0, 2.9, ["info"])])
    def test_features_of_different_scales(self, ratio, std, expected):
        assert severities(unscaled_input, fed(feature_std_ratio=ratio, std=std, min=-5 * std, max=5 * std)) == expected

    @pytest.mark.parametrize(
        ("mean", "std", "expected"), [(29.0, 10.0, []), (29.0, 9.0, ["warning"]), (10.1, 3.0, ["warning"]), (9.9, 3.0, ["info"])]
    )
    def test_offsets(self, mean, std, expected):
        assert severities(unscaled_input, fed(mean=mean, std=std, min=mean - 3 * std, max=mean + 3 * std)) == expected

    def test_sparse_counts_are_advice_at_most(self):
        assert severities(unscaled_input, fed(mean=1.0, std=20.0, min=0.0, max=900.0)) == ["info"]

    @pytest.mark.parametrize(
        ("facts", "after", "batch", "expected"),
        [
            ({"std": 100.0}, "norm", True, []),
            ({"std": 100.0}, "norm", False, []),
            ({"std": 100.0}, "relu", True, []),
            ({"std": 100.0}, "tanh", True, ["warning"]),
            ({"std": 100.0}, "conv", True, ["warning"]),
            ({"mean": 30.0}, "norm", True, []),
            ({"mean": 30.0}, "norm", False, ["warning"]),  # a layer normalization of what all samples share
            ({"std": 0.5e-3, "min": -2e-3, "max": 2e-3}, "norm", True, ["warning"]),  # its epsilon is larger
            ({"std": 5.0, "feature_std_ratio": 2e3}, "norm", True, ["warning"]),
        ],
    )
    def test_a_normalization_after_the_first_layer_divides_the_scale_out(self, facts, after, batch, expected):
        m = fed(**{"min": -500.0, "max": 500.0} | facts)
        first = replace(m.layers[0], normalized=after == "norm", activation=after if after in ("relu", "tanh") else None)
        between = {"relu": [layer("act", "activation", function="relu")], "tanh": [layer("act", "activation", function="tanh")]}
        between |= {"conv": [layer("conv", "conv")]}
        rest = [*between.get(after, []), layer("bn", "norm")]
        layers = (first, *(replace(x, order=i) for i, x in enumerate(rest, 1)))
        assert severities(unscaled_input, replace(m, layers=layers, norms=(norm("bn", batch=batch),))) == expected

    def test_an_input_that_the_model_rescales_is_advice(self):
        facts = input_facts(**PIXELS | {"mean": 120.0, "std": 65.0, "min": 0.0, "max": 255.0})
        m = measurement(
            layers=(layer("conv1", "conv", snapshots=snapshots(0.3)),), data=data(inputs=(facts,)), parameters=(parameter("conv1.weight"),)
        )
        assert severities(unscaled_input, m) == ["info"]

    @pytest.mark.parametrize("used_by", ["embedding", "norm"])
    def test_some_layers_do_not_mind(self, used_by):
        assert findings(unscaled_input, fed(std=100.0, used_by=used_by)) == []

    def test_an_unknown_consumer_gives_advice(self):
        assert severities(unscaled_input, fed(std=100.0, used_by=None)) == ["info"]

    @pytest.mark.parametrize("facts", [{"dtype": "int64", "std": 100.0}, {"shape": (32,), "std": 300.0}], ids=["token ids", "time steps"])
    def test_integers_and_scalars_are_not_judged(self, facts):
        assert no_verdict(unscaled_input, fed(**facts)) == "not-applicable"

    def test_made_up_data_are_not_judged(self):
        assert no_verdict(unscaled_input, measurement(data=data(given=False))) == "not-applicable"


def spoiled(place=(0, 3, 5), **overrides) -> Measurement:
    probe = overrides.pop("probe", run((math.nan,), ended="non-finite"))
    return measurement(data=data(inputs=(input_facts(non_finite=2, first_non_finite=place),)), probe=probe, **overrides)


class TestNonFiniteInput:
    def test_finite_data_pass(self):
        assert findings(non_finite_input, measurement()) == []

    def test_nan_is_an_error_that_names_the_entry(self):
        f = only(non_finite_input, spoiled())
        assert f.severity == "error" and "2 entries" in f.message and "batch 0, sample 3, feature 5" in f.message

    def test_places_in_images_are_indices(self):
        assert "batch 1, sample 0, index (2, 4, 4)" in only(non_finite_input, spoiled((1, 0, 2, 4, 4))).message

    def test_missing_values_that_the_model_replaces_are_advice(self):
        assert severities(non_finite_input, spoiled(probe=run())) == ["info"]

    def test_a_batch_that_the_probe_never_saw_is_an_error(self):
        assert severities(non_finite_input, spoiled((200, 0, 0), probe=run())) == ["error"]

    @pytest.mark.parametrize(("mean", "expected"), [(math.nan, ["error"]), (0.3, [])])
    def test_targets_count_too(self, mean, expected):
        call = loss_call("mse_loss", target_kind="values", target_mean=mean)
        assert severities(non_finite_input, measurement(losses=(call,))) == expected

    def test_a_target_that_is_listed_as_an_input_counts_once(self):
        call = loss_call("mse_loss", target_kind="values", target_mean=math.nan, target_shape=(32, 1))
        facts = input_facts("1", shape=(32, 1), non_finite=1, first_non_finite=(0, 3, 0))
        assert severities(
            non_finite_input, measurement(losses=(call,), data=data(inputs=(facts,)), probe=run((math.nan,), ended="non-finite"))
        ) == ["error"]

    def test_made_up_data_are_not_judged(self):
        assert no_verdict(non_finite_input, measurement(data=data(given=False))) == "not-applicable"


class TestUninformativeFeatures:
    def test_varied_data_pass(self):
        assert findings(uninformative_features, measurement()) == []

    def test_constant_and_repeated_features(self):
        f = only(uninformative_features, measurement(data=data(inputs=(input_facts(constant_features=3, duplicate_features=2),))))
        assert f.severity == "info" and "3 of its 64 features never change" in f.message and "2 of its 64 features repeat" in f.message
        assert [r.name for r in f.remedies] == ["drop-features", "drop-features"]

    def test_inputs_of_one_source_are_one_finding(self):
        one, other = input_facts("0", constant_features=3), input_facts("1", constant_features=4)
        f = only(uninformative_features, measurement(data=data(inputs=(one, other))))
        assert f.message.startswith("input 0 and 1 [32, 64]: 3 of its 64 features never change")

    @pytest.mark.parametrize(("same", "count"), [(50, 0), (51, 1)])
    def test_repeated_samples_count_from_a_share_on(self, same, count):
        facts = input_facts(duplicate_samples=same, conflicting_samples=7, samples=1000)
        found = findings(uninformative_features, measurement(data=data(inputs=(facts,))))
        assert len(found) == count and all("7 of them with another label" in f.message for f in found)

    def test_made_up_data_are_not_judged(self):
        facts = data(given=False, inputs=(input_facts(constant_features=3),))
        assert no_verdict(uninformative_features, measurement(data=facts)) == "not-applicable"


class TestWhatTheModelMakesOfItsInputs:
    def entering(self, std: float = 286.0, **overrides: Any) -> Measurement:
        values: dict[str, Any] = {"mean": 500.0, "min": 0.0, "max": 993.0, "share": 0.94}
        return measurement(entering=(Entering("fc1", location(20), (64, 34), std, **values | overrides),))

    @pytest.mark.parametrize(("std", "expected"), [(9.9, []), (10.1, ["warning"])])
    def test_a_feature_that_is_loud(self, std, expected):
        assert severities(unscaled_input, self.entering(std)) == expected

    def test_it_names_the_layer(self):
        f = only(unscaled_input, self.entering())
        assert "94 % of its 34 inputs" in f.message and f.layers == ("fc1",)

    def test_counts_that_are_rare_are_no_scale(self):
        assert severities(unscaled_input, self.entering(mean=20.0)) == []


def test_data_that_each_reading_changes():
    m = measurement(loop=loop(reads=LoopReads(changed=True, changed_site=location(12))))
    f = only(unscaled_input, m)
    assert f.severity == "error" and f.location == location(12)
    assert all("keeps" not in f.message for f in findings(unscaled_input, measurement(loop=loop(reads=LoopReads(10, 100)))))
