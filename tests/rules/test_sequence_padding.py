"""SEQ004 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.sequence.padding_leak import padding_leak
from gradcheck.types.measurement import Measurement
from gradcheck.types.sequence import Padding
from tests.literals import location, measurement, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities


def padded(effect: float, failed: bool = False, **overrides: Any) -> Measurement:
    """Rows of which a third is padding, read by a model that is given their lengths."""
    values: dict[str, Any] = {"told": "lengths", "share": 0.3, "varies": True, "sequences": 4, "change": 2 * effect, "spread": 2.0}
    p = Padding(**values | {"pooled": True, "at": "gru", "operation": "lstm", "site": location(30)} | overrides)
    return measurement(padding=p, **({"probe": stalled()} if failed else {}))


class TestPaddingLeak:
    @pytest.mark.parametrize(("effect", "expected"), [(0.399, []), (0.401, ["warning"]), (3.0, ["warning"])])
    def test_the_change_against_the_spread(self, effect, expected):
        assert severities(padding_leak, padded(effect)) == expected

    @pytest.mark.parametrize(("effect", "expected"), [(0.019, []), (0.021, ["warning"])])
    @pytest.mark.parametrize("operation", ["scaled_dot_product_attention", "multi_head_attention_forward", "matmul"])
    def test_nothing_attends_to_padding_on_purpose(self, operation, effect, expected):
        assert severities(padding_leak, padded(effect, operation=operation)) == expected

    def test_an_error_where_the_training_fails_too(self):
        f = only(padding_leak, padded(0.5, failed=True))
        assert f.severity == "error" and f.confirmed.startswith("by the probe")

    @pytest.mark.parametrize(("varies", "applies"), [(True, True), (False, False), (None, False)])
    def test_a_padding_index_alone_counts_where_lengths_differ(self, varies, applies):
        m = padded(0.5, told="index", varies=varies)
        assert severities(padding_leak, m) == ["warning"] if applies else no_verdict(padding_leak, m) == "not-applicable"
        assert severities(padding_leak, padded(0.5, told="mask", varies=varies)) == ["warning"]

    @pytest.mark.parametrize(
        ("operation", "words"),
        [("lstm", "pack_padded_sequence"), ("__getitem__", "lengths - 1"), ("mean", "mask.sum(1)"), ("softmax", "mask")],
    )
    def test_it_points_at_where_padding_is_used(self, operation, words):
        f = only(padding_leak, padded(0.5, operation=operation))
        assert f.location == location(30) and operation in f.message and words in f.remedies[0].text

    def test_constant_outputs(self):
        assert findings(padding_leak, padded(0.0, change=0.0, spread=0.0)) == []
        assert severities(padding_leak, padded(0.0, change=1.0, spread=0.0)) == ["warning"]

    def test_without_padding_there_is_nothing_to_judge(self):
        assert no_verdict(padding_leak, measurement()) == "not-applicable"

    def test_an_inverted_mask_is_an_error_however_long_the_batches_are(self):
        f = only(padding_leak, padded(1.0, told="index", varies=False, inverted=True))
        assert f.severity == "error" and "the mask of padding is inverted" in f.message
