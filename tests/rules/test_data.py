"""DATA rules on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.nouns.checks import Difference
from gradcheck.nouns.measurement import Measurement
from gradcheck.rules.data import degenerate_labels, non_finite_input, uninformative_features, unscaled_input, unscaled_target
from tests.literals import data, falling, input_facts, labels, layer, location, loss_call, measurement, parameter, run, snapshots, stalled
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


PIXELS = {"used_by": "conv", "shape": (32, 3, 32, 32), "feature_std_ratio": None, "largest_feature_mean": None}


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

    @pytest.mark.parametrize(("std", "expected"), [(1.1e-3, []), (0.9e-3, ["warning"])])
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


def labelled(measured: dict | None = None, **facts) -> Measurement:
    return measurement(data=data(labels=labels(**facts)), **(measured or {}))


class TestDegenerateLabels:
    def test_balanced_shuffled_labels_pass(self):
        assert findings(degenerate_labels, measurement()) == []

    def test_one_class_only_is_an_error(self):
        f = only(degenerate_labels, labelled(classes=2, counts=(0, 128), classes_per_batch=(1, 1, 1, 1), minimum=1, maximum=1))
        assert f.severity == "error" and "all 128 labels of 4 batches are class 1" in f.message

    def test_one_class_of_one_is_a_single_class_head(self):
        assert findings(degenerate_labels, labelled(classes=1, counts=(128,), classes_per_batch=(1, 1, 1, 1), maximum=0)) == []

    @pytest.mark.parametrize("total", [15, 16])
    def test_few_labels_of_one_class_say_nothing(self, total):
        m = labelled(classes=2, counts=(total, 0), classes_per_batch=(1, 1, 1, 1), maximum=0)
        if total < 16:
            assert no_verdict(degenerate_labels, m) == "not-applicable"
        else:
            assert severities(degenerate_labels, m) == ["error"]

    @pytest.mark.parametrize(("rare", "expected"), [(10, []), (9, ["warning"])])
    def test_vanishing_classes_are_a_warning(self, rare, expected):
        m = measurement(data=data(batches=40, labels=labels(classes=2, counts=(1000, rare), classes_per_batch=(1, 2) * 20)))
        assert severities(degenerate_labels, m) == expected

    def test_classes_that_do_not_occur_are_no_imbalance(self):
        assert findings(degenerate_labels, labelled(counts=(64, 64, *[0] * 8), classes_per_batch=(2, 2, 2, 2))) == []

    def test_batches_of_one_class_each_are_a_warning(self):
        f = only(degenerate_labels, labelled(classes=2, counts=(64, 64), classes_per_batch=(1, 1, 1, 1)))
        assert f.severity == "warning" and "1 classes on average" in f.message and f.remedies[0].name == "shuffle-data"

    def test_sorted_labels_are_a_warning(self):
        assert severities(degenerate_labels, labelled(sorted=True, classes=4, counts=(32,) * 4, classes_per_batch=(3, 3, 3, 3))) == [
            "warning"
        ]

    @pytest.mark.parametrize(("seen", "expected"), [((6, 6, 6, 6), []), ((5, 5, 6, 5), ["warning"])])
    def test_a_little_less_variety_is_chance(self, seen, expected):
        """32 labels of 10 balanced classes show 9.7 classes on average; the limit is 60 % of that, 5.8."""
        assert severities(degenerate_labels, labelled(classes_per_batch=seen)) == expected

    @pytest.mark.parametrize("classes", [100, 101])
    def test_how_many_classes_are_judged(self, classes):
        m = labelled(classes=classes, counts=(128, *[0] * (classes - 1)), classes_per_batch=(1, 1, 1, 1))
        if classes > 100:
            assert no_verdict(degenerate_labels, m) == "not-applicable"
        else:
            assert severities(degenerate_labels, m) == ["error"]

    @pytest.mark.parametrize(
        "m",
        [
            labelled(classes=30000, counts=()),
            labelled(counts=(4000, 1, *[0] * 8)),
            labelled({"losses": (loss_call(target_shape=(32, 20)),)}, counts=(120, 1, *[0] * 8)),
        ],
        ids=["vocabulary", "a label for each token", "2-D targets"],
    )
    def test_tokens_and_pixels_are_not_judged(self, m):
        assert no_verdict(degenerate_labels, m) == "not-applicable"

    def test_no_labels_and_made_up_data_are_not_judged(self):
        assert no_verdict(degenerate_labels, measurement(data=data(labels=None))) == "not-applicable"
        assert no_verdict(degenerate_labels, measurement(data=data(given=False))) == "not-applicable"


def regression(mean: float = 0.0, std: float = 1.0, *, output: tuple[float, float] = (0.0, 0.3), **overrides: Any) -> Measurement:
    """Squared error against targets of this mean and standard deviation; `output`: mean and standard deviation at the start."""
    call = loss_call("mse_loss", target_kind="values", target_shape=(64, 1), target_mean=mean, target_std=std)
    call = replace(call, input_mean=output[0], input_std=output[1])
    return measurement(**{"losses": (call,), "probe": stalled()} | overrides)


class TestUnscaledTarget:
    @pytest.mark.parametrize(
        ("mean", "std", "expected"),
        [
            (0.0, 10.1, ["warning"]),
            (0.0, 9.9, []),
            (0.0, 0.009, ["warning"]),
            (0.0, 0.011, []),
            (3.1, 1.0, ["warning"]),
            (-3.1, 1.0, ["warning"]),
            (2.9, 1.0, []),
            (2.9, 0.5, ["info"]),
            (152.0, 77.0, ["warning"]),
            (5.0, 0.0, []),
        ],
    )
    def test_limits(self, mean, std, expected):
        if std:
            assert severities(unscaled_target, regression(mean, std)) == expected
        else:
            assert no_verdict(unscaled_target, regression(mean, std)) == "not-applicable"

    def test_it_is_advice_when_the_probe_learns_clearly(self):
        assert severities(unscaled_target, regression(152.0, 77.0, probe=run(), chance=3.0)) == ["info"]

    @pytest.mark.parametrize(("end", "expected"), [(4000.0, "info"), (6000.0, "warning")])
    @pytest.mark.parametrize("power", [1.0, 0.5])
    def test_without_a_known_chance_level_the_targets_spread_says_what_a_constant_reaches(self, end, expected, power):
        start = 150.0**2 + 0.3**2 + 77.0**2  # a constant comes down to 77^2 = 5929, and 0.9 of that is 5336
        losses = falling(start**power, end**power, 1000)
        assert severities(unscaled_target, regression(150.0, 77.0, probe=run((*losses, *losses[-1:] * 200)), chance=None)) == [expected]

    @pytest.mark.parametrize(("output", "count"), [((140.0, 20.0), 0), ((140.0, 7.0), 1), ((60.0, 20.0), 1), ((140.0, 800.0), 1)])
    def test_an_output_that_starts_at_the_targets_is_scaled_by_the_model(self, output, count):
        assert len(findings(unscaled_target, regression(152.0, 77.0, output=output))) == count

    def test_losses_by_hand_count_as_well(self):
        by_hand = Difference(location(31), (64, 1), 0.0, 0.3, 152.0, 77.0)
        f = only(unscaled_target, measurement(losses=(), differences=(by_hand,), probe=stalled()))
        assert f.severity == "warning" and f.location == location(31) and "152" in f.remedies[0].text

    def test_classes_are_no_targets_of_a_regression(self):
        assert no_verdict(unscaled_target, measurement()) == "not-applicable"

    def test_made_up_data_are_not_judged(self):
        assert no_verdict(unscaled_target, regression(152.0, 77.0, data=data(given=False))) == "not-applicable"


class TestUninformativeFeatures:
    def test_varied_data_pass(self):
        assert findings(uninformative_features, measurement()) == []

    def test_constant_and_repeated_features(self):
        f = only(uninformative_features, measurement(data=data(inputs=(input_facts(constant_features=3, duplicate_features=2),))))
        assert f.severity == "info" and "3 of its 64 features never change" in f.message and "2 of its 64 features repeat" in f.message
        assert [r.name for r in f.remedies] == ["drop-features", "drop-features"]

    @pytest.mark.parametrize(("same", "count"), [(50, 0), (51, 1)])
    def test_repeated_samples_count_from_a_share_on(self, same, count):
        facts = input_facts(duplicate_samples=same, conflicting_samples=7, samples=1000)
        found = findings(uninformative_features, measurement(data=data(inputs=(facts,))))
        assert len(found) == count and all("7 of them with another label" in f.message for f in found)

    def test_made_up_data_are_not_judged(self):
        facts = data(given=False, inputs=(input_facts(constant_features=3),))
        assert no_verdict(uninformative_features, measurement(data=facts)) == "not-applicable"
