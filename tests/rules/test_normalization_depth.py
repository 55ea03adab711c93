"""NORM rules about deep networks on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.normalization.deep_batchnorm_without_skips import deep_batchnorm_without_skips
from gradcheck.rules.normalization.missing_normalization import missing_normalization
from gradcheck.rules.normalization.post_norm_without_warmup import post_norm_without_warmup
from gradcheck.types.measurement import Measurement
from tests.literals import location, measurement, norm, optimizer, run, snapshots, stack, stalled, stream
from tests.rules.verdicts import findings, no_verdict, only, severities


def plain(count: int, total: float, **overrides: Any) -> Measurement:
    """`count` layers whose gradient grows by `total` decades from the first to the last: negative, it grows towards the input."""
    slope = total / count
    layers = stack(count, lambda i: {"snapshots": snapshots(gradient=1e-3 * 10 ** (slope * i)), "activation": "relu"})
    return measurement(**{"layers": layers, "probe": stalled()} | overrides)


class TestMissing:
    @pytest.mark.parametrize(
        ("count", "total", "expected"),
        [(20, 2.1, ["warning"]), (20, -2.1, ["warning"]), (20, 1.9, []), (40, 2.8, []), (40, 3.1, ["warning"])],
    )
    def test_depth_and_trend(self, count, total, expected):
        assert severities(missing_normalization, plain(count, total)) == expected

    def test_fewer_layers_are_not_judged(self):
        assert no_verdict(missing_normalization, plain(19, 4.0)) == "not-applicable"

    def test_a_network_that_learns_is_left_in_peace(self):
        assert findings(missing_normalization, plain(20, 4.0, probe=run())) == []

    def test_normalised_and_residual_networks_are_not_judged(self):
        m = plain(20, 4.0)
        assert no_verdict(missing_normalization, replace(m, norms=(norm(batch=False),))) == "not-applicable"
        assert (
            no_verdict(missing_normalization, replace(m, layers=(replace(m.layers[0], residual=True), *m.layers[1:]))) == "not-applicable"
        )

    def test_the_message(self):
        f = only(missing_normalization, plain(24, 4.8))
        assert "24 layers in a row" in f.message and "shrinks towards the input by 4.8 decades (limit 2)" in f.message
        assert f.location == location(12)


def deep(count: int, total: float, **overrides: Any) -> Measurement:
    return plain(count, total, norms=tuple(norm(f"bn{i}", index=i) for i in range(count)), **overrides)


class TestDeepBatchNorm:
    @pytest.mark.parametrize(
        ("count", "total", "expected"),
        [(24, -2.1, ["warning"]), (24, -1.9, []), (24, 2.1, []), (40, -2.3, []), (40, -2.5, ["warning"])],
    )
    def test_depth_and_trend(self, count, total, expected):
        assert severities(deep_batchnorm_without_skips, deep(count, total)) == expected

    def test_what_learns_clearly_gets_advice(self):
        assert severities(deep_batchnorm_without_skips, deep(24, -2.1, probe=run())) == ["info"]

    def test_few_norms_and_bypasses_are_not_judged(self):
        assert no_verdict(deep_batchnorm_without_skips, deep(19, -3.0)) == "not-applicable"
        assert no_verdict(deep_batchnorm_without_skips, deep(24, -3.0, streams=(stream(),))) == "not-applicable"


def post_norm(count: int = 11, **overrides: Any) -> Measurement:
    return measurement(**{"norms": tuple(norm(f"ln{i}", batch=False, added=True) for i in range(count)), "probe": stalled()} | overrides)


class TestPostNorm:
    def test_depth(self):
        assert severities(post_norm_without_warmup, post_norm()) == ["warning"]
        assert no_verdict(post_norm_without_warmup, post_norm(10)) == "not-applicable"
        again = post_norm()
        assert no_verdict(post_norm_without_warmup, replace(again, norms=again.norms[:10] * 2)) == "not-applicable"  # called twice

    @pytest.mark.parametrize(
        ("facts", "expected"),
        [
            (optimizer("Adam", lr=1e-3), ["warning"]),
            (optimizer("Adam", lr=9e-4), []),
            (optimizer("SGD", lr=0.1), []),
            (optimizer("RAdam", adaptive=True), []),
            (optimizer("Adam", warming_up=True), []),
            (optimizer("Adam", given=False), ["info"]),
        ],
    )
    def test_the_optimizer(self, facts, expected):
        assert severities(post_norm_without_warmup, post_norm(optimizer=facts)) == expected

    def test_what_learns_clearly_gets_advice(self):
        assert severities(post_norm_without_warmup, post_norm(probe=run())) == ["info"]

    def test_a_short_probe_says_nothing(self):
        assert no_verdict(post_norm_without_warmup, post_norm(probe=stalled(steps=20))) == "not-measured"

    def test_models_that_were_trained_before_are_not_judged(self):
        assert no_verdict(post_norm_without_warmup, post_norm(pretrained=True)) == "not-applicable"
