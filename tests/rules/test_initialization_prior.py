"""INIT008 on literal measurements."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradcheck.rules.initialization.output_bias_off_prior import output_bias_off_prior
from gradcheck.types.measurement import Measurement
from tests.literals import data, labels, loss_call, measurement
from tests.rules.verdicts import findings, no_verdict, only


def two_classes(positive: int, value: float = math.log(2), negative: int = 100, **overrides: Any) -> Measurement:
    counts = labels(classes=2, counts=(negative, positive), classes_per_batch=(2,) * 8)
    facts = data(labels=counts, batches=8, batch_size=128)
    return measurement(**{"data": facts, "losses": (loss_call(classes=2, value=value, uniform=math.log(2)),)} | overrides)


def binary(share: float, **overrides: Any) -> Measurement:
    values: dict[str, Any] = {
        "target_kind": "probabilities",
        "target_shape": (128, 1),
        "target_mean": share,
        "target_min": 0.0,
        "target_max": 1.0,
    }
    values |= {"value": math.log(2), "classes": None}
    return measurement(losses=(loss_call("binary_cross_entropy_with_logits", **values | overrides),))


@pytest.mark.parametrize(("positive", "count"), [(39, 1), (49, 0)])  # entropies of 28 % and 33 % positives: 0.593 and 0.633 nats
def test_the_gain_decides(positive, count):
    assert len(findings(output_bias_off_prior, two_classes(positive))) == count


def test_an_output_that_knows_the_frequencies_passes():
    assert len(findings(output_bias_off_prior, two_classes(5, 0.6))) == 1
    assert findings(output_bias_off_prior, two_classes(5, 0.4)) == []


def test_the_weights_of_the_classes_count():
    call = loss_call(classes=2, value=math.log(2), uniform=math.log(2), class_weights=(0.1, 2.0))
    assert findings(output_bias_off_prior, two_classes(5, losses=(call,))) == []
    f = only(output_bias_off_prior, two_classes(100, losses=(call,)))
    assert "the heaviest has 95 % of the weight" in f.message
    assert no_verdict(output_bias_off_prior, binary(0.05, class_weights=(19.0,))) == "not-applicable"


def test_the_remedy_writes_the_bias_out():
    f = only(output_bias_off_prior, two_classes(25, negative=75))
    assert f.severity == "info" and f.remedies[0].text.endswith("-0.288, -1.39") and f.layers == ("fc2",)


def test_balanced_classes_pass():
    assert findings(output_bias_off_prior, measurement()) == []


@pytest.mark.parametrize(("share", "count"), [(0.02, 1), (0.4, 0)])
def test_binary_targets(share, count):
    assert len(findings(output_bias_off_prior, binary(share))) == count


def test_the_bias_of_a_binary_output_is_the_log_odds():
    assert only(output_bias_off_prior, binary(0.02)).remedies[0].text.endswith("-3.89")


@pytest.mark.parametrize(
    "m",
    [
        two_classes(3, data=data(given=False)),
        two_classes(3, pretrained=True),
        two_classes(2, negative=40),
        binary(0.02, target_max=0.7),
        binary(0.02, target_shape=(128, 20)),
        measurement(losses=(loss_call("mse_loss", target_kind="values"),)),
    ],
    ids=["made up", "pretrained", "few labels", "soft targets", "many labels a sample", "regression"],
)
def test_what_has_no_class_frequencies(m):
    assert no_verdict(output_bias_off_prior, m) == "not-applicable"
