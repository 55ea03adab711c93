"""ACT006 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.activation.missing_nonlinearity import missing_nonlinearity
from gradcheck.types.measurement import Measurement
from tests.literals import layer, location, measurement, pair
from tests.rules.verdicts import findings, no_verdict, only


def net(*pairs: Any, second: dict[str, Any] | None = None, before: dict[str, Any] | None = None, kind: str = "linear") -> Measurement:
    """fc0, fc1, fc2 and a head; `second` changes fc2, `before` fc0."""
    layers = (
        layer("fc0", kind, order=0, activation="relu", site=location(20), **before or {}),
        layer("fc1", kind, order=1, site=location(21)),
        layer("fc2", kind, order=2, site=location(22), **{"activation": "relu"} | (second or {})),
        layer("head", order=3, head=True),
    )
    return measurement(layers=layers, pairs=pairs)


def test_a_pair_of_wide_layers_is_found():
    f = only(missing_nonlinearity, net(pair()))
    assert f.severity == "warning" and f.location == location(21) and f.layers == ("fc1", "fc2")
    assert "between fc1 (64 to 64) and fc2 (to 64) there is nothing nonlinear" in f.message


@pytest.mark.parametrize(("inner", "expected"), [(63, 0), (64, 1)])
def test_bottlenecks_are_exempt(inner, expected):
    assert len(findings(missing_nonlinearity, net(pair(inner=inner)))) == expected
    assert len(findings(missing_nonlinearity, net(pair(inner=inner, outputs=256)))) == expected
    assert len(findings(missing_nonlinearity, net(pair(inner=inner, inputs=256)))) == expected


@pytest.mark.parametrize(("inner", "expected"), [(63, 0), (64, 1)])
def test_before_a_head_an_embedding_is_exempt(inner, expected):
    assert len(findings(missing_nonlinearity, net(pair(inner=inner, outputs=10), second={"activation": None, "head": True}))) == expected


@pytest.mark.parametrize("changed", [{"alone": False}, {"projects": True}])
def test_what_is_used_elsewhere_and_what_projects_attention_is_exempt(changed):
    assert findings(missing_nonlinearity, net(pair(**changed))) == []


@pytest.mark.parametrize(
    ("second", "expected"),
    [({"activation": None}, 0), ({"activation": None, "normalized": True}, 1), ({"activation": "softmax"}, 0), ({"gate": True}, 0)],
)
def test_what_the_second_layer_feeds(second, expected):
    assert len(findings(missing_nonlinearity, net(pair(), second=second))) == expected


def test_a_chain_of_linear_layers_counts():
    m = net(pair("fc1", "fc2"), pair("fc2", "head", outputs=10), second={"activation": None})
    assert len(findings(missing_nonlinearity, m)) == 2


def test_linear_bottlenecks_behind_depthwise_convolutions_are_exempt():
    assert len(findings(missing_nonlinearity, net(pair(), kind="conv"))) == 1
    assert findings(missing_nonlinearity, net(pair(), kind="conv", before={"groups": 64})) == []


def test_one_layer_is_no_pair():
    assert no_verdict(missing_nonlinearity, measurement(layers=(layer(),))) == "not-applicable"
