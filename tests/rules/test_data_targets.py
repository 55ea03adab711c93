"""DATA rules of targets and labels on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.data.degenerate_labels import degenerate_labels
from gradcheck.rules.data.unscaled_target import unscaled_target
from gradcheck.types.checks import Difference
from gradcheck.types.measurement import Measurement
from tests.literals import data, falling, labels, location, loss_call, measurement, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities


def labelled(measured: dict | None = None, **facts) -> Measurement:
    return measurement(data=data(labels=labels(**facts)), **(measured or {}))


class TestDegenerateLabels:
    def test_balanced_shuffled_labels_pass(self):
        assert findings(degenerate_labels, measurement()) == []

    def test_one_class_only_is_an_error(self):
        f = only(degenerate_labels, labelled(classes=2, counts=(0, 128), classes_per_batch=(1, 1, 1, 1), minimum=1, maximum=1))
        assert f.severity == "error" and "all 128 labels of 4 batches are class 1" in f.message

    @pytest.mark.parametrize(
        ("other", "layer", "found"), [(1.0, "fc1", ["error"]), (0.0, "fc1", []), (1.0, "frozen", []), (1.0, "another.head", [])]
    )
    def test_a_net_that_tells_apart_needs_two_targets(self, other, layer, found):
        """Real and made samples; a generator, whose opponent stands still; heads whose labels are all rare."""
        calls = [
            loss_call("binary_cross_entropy_with_logits", producer_layer=name, target_min=t, target_max=t, target_kind="probabilities")
            for t, name in ((1.0, "frozen" if layer == "frozen" else "fc1"), (other, layer))
        ]
        assert severities(degenerate_labels, measurement(losses=tuple(calls))) == found

    @pytest.mark.parametrize(("batches", "found"), [(24, []), (25, ["error"])])
    def test_pixels_of_one_class_in_all_images(self, batches, found):
        facts = data(
            batches=batches, batch_size=4, labels=labels(classes=3, counts=(6400, 0, 0), classes_per_batch=(1,) * batches, maximum=0)
        )
        m = measurement(data=facts, losses=(loss_call(target_shape=(4, 8, 8)),))
        assert (severities(degenerate_labels, m) if found else no_verdict(degenerate_labels, m)) == (found or "not-applicable")

    @pytest.mark.parametrize(
        ("weights", "found"),
        [
            ((2.4, 0.5, 0.1), ["warning"]),  # proportional to the counts
            ((0.42, 2.0, 10.0), []),
            ((1.0, 1.0, 1.0), []),
            ((2.0, 1.0, 1.0), []),  # one class that matters more
            ((2.4, 0.5), []),  # of another loss
        ],
    )
    def test_weights_that_follow_the_frequencies(self, weights, found):
        facts = data(batches=40, batch_size=40, labels=labels(classes=3, counts=(1200, 250, 50), classes_per_batch=(3,) * 40))
        assert severities(degenerate_labels, measurement(data=facts, losses=(loss_call(class_weights=weights),))) == found

    @pytest.mark.parametrize(("weight", "found"), [(0.11, ["warning"]), (9.0, []), (0.5, [])])
    def test_a_weight_of_positives_that_follows_their_frequency(self, weight, found):
        call = loss_call("binary_cross_entropy_with_logits", class_weights=(weight,), target_mean=0.1, target_kind="probabilities")
        assert severities(degenerate_labels, measurement(losses=(call,))) == found

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

    @pytest.mark.parametrize(("often", "expected"), [(1153, ["warning"]), (1151, ["info"])])
    def test_one_rare_class_of_several_is_a_matter_of_choice(self, often, expected):
        counts = (often, 1270 - often, 10)
        m = measurement(data=data(batches=40, labels=labels(classes=3, counts=counts, classes_per_batch=(2, 3) * 20)))
        assert severities(degenerate_labels, m) == expected

    def test_classes_that_do_not_occur_are_no_imbalance(self):
        assert findings(degenerate_labels, labelled(counts=(64, 64, *[0] * 8), classes_per_batch=(2, 2, 2, 2))) == []

    def test_batches_of_one_class_each_are_a_warning(self):
        f = only(degenerate_labels, labelled(classes=2, counts=(64, 64), classes_per_batch=(1, 1, 1, 1)))
        assert f.severity == "warning" and "1 classes on average" in f.message and f.remedies[0].name == "shuffle-data"

    def test_sorted_labels_on_which_the_probe_fails_are_the_cause(self):
        """Digits by class at a rate of 0.1: one epoch after the other ends at the last class, and a tenth of the rate looks better."""
        m = labelled({"probe": stalled()}, classes=2, counts=(64, 64), classes_per_batch=(1, 1, 1, 1))
        assert severities(degenerate_labels, m) == ["error"]

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
