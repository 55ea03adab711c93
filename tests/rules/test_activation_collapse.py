"""ACT004 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.activation.collapsed_representation import collapsed_representation
from gradcheck.types.checks import Embeddings
from tests.literals import STEPS, falling, layer, location, measurement, optimizer, parameter, run, snapshots
from tests.rules.models import FAILS, SHORT
from tests.rules.verdicts import findings, no_verdict, only, severities


def similar(
    samples: float | None = None, tokens: float | None = None, later: float | None = None, first: float | None = 0.3, **overrides: Any
):
    """A stack whose first norm sees tokens of cosine `first` and whose head sees features of these cosines."""
    body = tuple(layer(f"fc.{i}", order=i) for i in range(overrides.pop("depth", 12)))

    def snaps(s: float | None, t: float | None) -> tuple:
        return tuple(
            x
            for step in STEPS
            for x in snapshots(
                steps=[step],
                sample_cosine=s if step < 3 or later is None or s is None else later,
                token_cosine=t if step < 3 or later is None or t is None else later,
            )
        )

    norm = layer("norm", "norm", order=-1, snapshots=snaps(None, first if tokens is not None else None))
    head = layer("head", order=999, head=True, site=location(40), snapshots=snaps(samples, tokens))
    return measurement(**{"layers": (norm, *body, head)} | overrides)


class TestCollapsedRepresentation:
    @pytest.mark.parametrize(("cosine", "expected"), [(0.99985, []), (0.99995, ["error"])])
    def test_samples_at_one_point(self, cosine, expected):
        assert severities(collapsed_representation, similar(cosine, **FAILS)) == expected

    def test_samples_are_a_warning_unless_the_probe_fails_and_advice_when_it_learns(self):
        f = only(collapsed_representation, similar(0.99999, **SHORT))
        assert f.severity == "warning" and "all samples reach head as the same vector: 1 - cosine is 1e-05 (limit 1e-04)" in f.message
        assert f.location == location(40)
        assert severities(collapsed_representation, similar(0.99999)) == ["info"]

    def test_what_another_net_sees_is_not_judged(self):
        weights = (parameter("head.weight", layer="head", trainable=False),)
        assert no_verdict(collapsed_representation, similar(0.99999, parameters=weights, **FAILS)) == "not-applicable"

    def test_class_tokens_that_mix_later_are_healthy(self):
        assert findings(collapsed_representation, similar(1.0, later=0.97, **FAILS)) == []

    def test_nothing_is_said_before_step_three(self):
        assert no_verdict(collapsed_representation, similar(1.0, measured_steps=(0, 1))) == "not-measured"

    @pytest.mark.parametrize(("cosine", "expected"), [(0.985, []), (0.995, ["info"]), (0.9985, ["info"]), (0.9995, ["error"])])
    def test_tokens(self, cosine, expected):
        assert severities(collapsed_representation, similar(tokens=cosine, **SHORT)) == expected

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({"depth": 12}, "error"),
            ({"depth": 11}, "warning"),
            ({"depth": 11, **FAILS}, "error"),
            ({"first": 0.999}, "warning"),
            ({"first": None}, "warning"),
            ({"probe": run()}, "warning"),
            ({"optimizer": optimizer(given=False), "experiments": (run(falling(), "adam", batches=1),), **FAILS}, "warning"),
        ],
    )
    def test_equal_tokens_are_an_error_only_in_deep_models_that_make_them_so(self, overrides, expected):
        assert severities(collapsed_representation, similar(tokens=1.0, **SHORT | overrides)) == [expected]

    def test_tokens_come_first_and_one_collapse_is_one_finding(self):
        f = only(collapsed_representation, similar(1.0, 1.0, **SHORT))
        assert "mean cosine 1.0000 (limit 0.999)" in f.message
        assert f.remedies[0].name == "add-residual"

    def test_models_without_such_features_are_not_applicable(self):
        assert no_verdict(collapsed_representation, measurement()) == "not-applicable"


def embedded(**overrides):
    values = {"start": 0.6, "end": 0.1, "start_loss": 1.0, "loss": 0.1, "constant_loss": 0.0, "stopped": True, "site": location(40)}
    return measurement(embeddings=Embeddings(**values | overrides))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["error"]),
        ({"end": 0.19}, ["error"]),
        ({"end": 0.21}, []),
        ({"constant_loss": 0.105}, ["error"]),
        ({"constant_loss": 0.12}, []),
        ({"loss": 1.1}, []),
    ],
    ids=["collapsed", "just", "spread", "as good", "one point does not do", "nothing learned"],
)
def test_embeddings_that_nothing_holds_apart(change, expected):
    assert severities(collapsed_representation, embedded(**change)) == expected


def test_what_embeddings_lack():
    assert "no predictor" in only(collapsed_representation, embedded()).message
    assert "both sides" in only(collapsed_representation, embedded(stopped=False)).message
