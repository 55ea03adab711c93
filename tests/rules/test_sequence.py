"""SEQ001 to SEQ003 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.sequence.future_leak import future_leak
from gradcheck.rules.sequence.labels_misaligned import labels_misaligned
from gradcheck.rules.sequence.nothing_supervised import nothing_supervised
from gradcheck.types.measurement import Measurement
from gradcheck.types.sequence import SequenceFacts, Supervision, TokenStream
from tests.literals import location, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def stream(**overrides: Any) -> TokenStream:
    """Tokens whose next ones are the targets, read by a model in which no place sees later ones."""
    values: dict[str, Any] = {"layer": "embed", "loss": 0, "ahead": 1, "agreement": 1.0, "places": 960, "later": 2.0, "next": 1.5}
    return TokenStream(**values | {"before": 0.0, "loss_site": location(40), "read_site": location(30)} | overrides)


def reading(*streams: TokenStream) -> Measurement:
    return measurement(sequence=SequenceFacts(streams))


def supervised(**overrides: Any) -> Measurement:
    values: dict[str, Any] = {"function": "cross_entropy", "batches": 4, "empty": 0, "ignore_index": -100, "finite": True, "targets": 640}
    return measurement(sequence=SequenceFacts((), (Supervision(**values | {"site": location(40)} | overrides),)))


class TestFutureLeak:
    @pytest.mark.parametrize(("before", "expected"), [(0.019, []), (0.021, ["error"]), (3.0, ["error"])])
    def test_the_change_before_against_that_after(self, before, expected):
        assert severities(future_leak, reading(stream(before=before))) == expected

    @pytest.mark.parametrize(("agreement", "applies"), [(0.989, False), (0.991, True)])
    def test_the_target_must_be_the_next_token(self, agreement, applies):
        m = reading(stream(before=2.0, agreement=agreement))
        assert severities(future_leak, m) == ["error"] if applies else no_verdict(future_leak, m) == "not-applicable"

    @pytest.mark.parametrize("ahead", [0, 2])
    def test_other_targets_are_none_of_its_business(self, ahead):
        assert no_verdict(future_leak, reading(stream(before=2.0, ahead=ahead))) == "not-applicable"

    def test_one_of_two_inputs_that_does_not_leak_is_enough(self):
        source = stream(layer="source", before=2.0)
        assert findings(future_leak, reading(source, stream())) == []
        assert severities(future_leak, reading(source, stream(before=1.0))) == ["error"]
        assert severities(future_leak, reading(source, stream(loss=1))) == ["error"]  # it is the answer to another question

    @pytest.mark.parametrize(
        ("operation", "words"),
        [
            ("scaled_dot_product_attention", "is_causal=True"),
            ("multi_head_attention_forward", "before the softmax"),
            ("matmul", "before the softmax"),
            ("reshape", "y.transpose(1, 2)"),
            ("conv1d", "pad on the left only"),
            ("lstm", "bidirectional=False"),
            ("layer_norm", "features of each place"),
            ("expand_as", "let mixer use the place itself"),
        ],
    )
    def test_it_points_at_where_later_tokens_are_first_seen(self, operation, words):
        f = only(future_leak, reading(stream(before=2.0, at="mixer", operation=operation, site=location(20))))
        assert (f.location, f.layers) == (location(20), ("mixer",)) and operation in f.message
        assert words in f.remedies[0].text

    def test_a_summary_of_the_sequence_may_be_meant(self):
        assert severities(future_leak, reading(stream(before=2.0, pooled=True))) == ["warning"]

    def test_nothing_is_said_of_what_was_not_measured(self):
        assert no_verdict(future_leak, measurement()) == "not-applicable"
        assert no_verdict(future_leak, reading(stream(later=None, next=None, before=None))) == "not-measured"


class TestLabelsMisaligned:
    @pytest.mark.parametrize(("own", "expected"), [(0.019, []), (0.021, ["error"])])
    def test_a_token_that_is_given_and_asked_for(self, own, expected):
        assert severities(labels_misaligned, reading(stream(ahead=0, next=own))) == expected

    @pytest.mark.parametrize(("before", "expected"), [(0.019, ["error"]), (0.021, [])])
    def test_a_model_that_sees_everything_may_repeat(self, before, expected):
        assert severities(labels_misaligned, reading(stream(ahead=0, before=before))) == expected
        assert severities(labels_misaligned, reading(stream(ahead=2, before=before))) == expected

    @pytest.mark.parametrize(("agreement", "applies"), [(0.989, False), (0.991, True)])
    def test_shifted_twice(self, agreement, applies):
        m = reading(stream(ahead=2, agreement=agreement))
        assert severities(labels_misaligned, m) == ["error"] if applies else no_verdict(labels_misaligned, m) == "not-applicable"

    def test_next_tokens_excuse_all_other_targets(self):
        assert findings(labels_misaligned, reading(stream(ahead=2, loss=1), stream())) == []

    def test_heads_that_look_further_ahead_are_meant(self):
        assert findings(labels_misaligned, reading(stream(ahead=2), stream(ahead=3, loss=1))) == []

    def test_it_points_at_the_loss(self):
        f = only(labels_misaligned, reading(stream(ahead=2)))
        assert f.location == location(40) and "2 tokens ahead" in f.message


class TestNothingSupervised:
    @pytest.mark.parametrize(
        ("facts", "expected"),
        [
            ({}, []),
            ({"empty": 1}, ["warning"]),
            ({"empty": 1, "finite": False}, ["error"]),
            ({"empty": 4}, ["error"]),
            ({"rows": 100, "empty_rows": 30}, []),
            ({"rows": 100, "empty_rows": 31}, ["warning"]),
        ],
    )
    def test_batches_and_sequences_without_a_target(self, facts, expected):
        assert severities(nothing_supervised, supervised(**facts)) == expected

    def test_another_loss_may_train_on_the_batch(self):
        one = Supervision("cross_entropy", 4, 1, -100, True, targets=640)
        other = Supervision("cross_entropy", 4, 0, -100, True, targets=640)
        assert findings(nothing_supervised, measurement(sequence=SequenceFacts((), (one, other)))) == []
        assert severities(nothing_supervised, measurement(sequence=SequenceFacts((), (one,)))) == ["warning"]

    def test_without_such_a_loss_there_is_nothing_to_judge(self):
        assert no_verdict(nothing_supervised, measurement(sequence=SequenceFacts())) == "not-applicable"
