"""ACT005 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.activation.attention_collapse import attention_collapse
from gradcheck.types.checks import Attention
from gradcheck.types.measurement import Measurement, NotMeasured
from tests.literals import location, measurement, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities

FAINT = run(2.3 - 0.001 * i for i in range(100))  # a fall of 4 %: it learns, and not clearly


def attention(layer: str = "blocks.0.attention", **overrides: Any) -> Attention:
    """Healthy weights, spread over 64 keys."""
    values: dict[str, Any] = {"site": location(20), "heads": 4, "keys": 64, "entropy": 0.98, "logit_max": 3.0, "logit_std": 1.0}
    return Attention(layer, **values | overrides)


def with_attention(probe: Any = FAINT, pretrained: bool = False, **overrides: Any) -> Measurement:
    return measurement(attentions=(attention(**overrides),), probe=probe, pretrained=pretrained)


def test_spread_weights_pass():
    assert findings(attention_collapse, with_attention(stalled())) == []


@pytest.mark.parametrize(
    ("numbers", "failing", "faint", "clear"),
    [
        ({"entropy": 0.049}, "error", "warning", "warning"),
        ({"entropy": 0.051}, "warning", "warning", "info"),
        ({"entropy": 0.299}, "warning", "warning", "info"),
        ({"entropy": 0.301}, None, None, None),
        ({"logit_std": 3.1}, "warning", "warning", "info"),
        ({"logit_std": 2.9}, None, None, None),
        ({"logit_max": 51.0}, "info", "info", "info"),
        ({"logit_max": 49.0}, None, None, None),
        ({"logit_max": 2e4}, "info", "info", "info"),
        ({"logit_max": 1.1e4, "entropy": 0.2}, "error", "warning", "warning"),
        ({"logit_max": 0.9e4, "entropy": 0.2}, "warning", "warning", "warning"),
        ({"logit_max": 0.9e3, "entropy": 0.2}, "warning", "warning", "info"),
    ],
)
def test_limits(numbers, failing, faint, clear):
    for probe, expected in ((stalled(), failing), (FAINT, faint), (run(), clear)):
        assert severities(attention_collapse, with_attention(probe, **numbers)) == ([expected] if expected else [])


def test_a_model_that_was_trained_before_gets_advice_only():
    assert severities(attention_collapse, with_attention(stalled(), pretrained=True, entropy=0.01)) == ["info"]


def test_layers_of_one_line_are_one_finding_with_the_numbers_of_the_worst():
    blocks = tuple(attention(f"blocks.{i}.attention", entropy=0.2 - 0.01 * i, logit_std=16.0) for i in range(3))
    f = only(attention_collapse, measurement(attentions=blocks, probe=stalled()))
    assert f.evidence[0].value == pytest.approx(0.18) and len(f.layers) == 3 and f.location == location(20)
    assert "18 %" in f.message and "limit 30 %" in f.message and "blocks" in f.message
    assert "divide them by 16" in f.remedies[0].text and "4 times smaller" in f.remedies[1].text


def test_layers_of_two_lines_are_two_findings():
    pair = (attention(entropy=0.1), attention("head", entropy=0.1, site=location(30)))
    assert len(findings(attention_collapse, measurement(attentions=pair))) == 2


def test_attention_whose_logits_are_not_known_is_judged_by_its_entropy():
    assert severities(attention_collapse, with_attention(FAINT, entropy=0.1, logit_max=None, logit_std=None)) == ["warning"]


def test_no_verdict_without_attention():
    assert no_verdict(attention_collapse, measurement()) == "not-applicable"
    failed = measurement(not_measured=(NotMeasured("attention", "the forward pass raised"),))
    assert no_verdict(attention_collapse, failed) == "not-measured"
