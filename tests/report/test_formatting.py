"""Numbers and names as people read them."""

from __future__ import annotations

import math

import pytest

from gradcheck.analysis.wording import number
from gradcheck.report.formatting import apart, clean, collapse, measured, scaled
from gradcheck.types.finding import Evidence


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.41, "0.41"),
        (5.678, "5.68"),
        (99.96, "100"),
        (1234.5, "1234"),
        (41900, "41900"),
        (123456.0, "123456"),
        (123456.7, "1.23e+05"),
        (7.4e-7, "7.4e-07"),
        (0.00123, "0.00123"),
        (-0.5, "-0.5"),
        (1.0, "1"),
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_three_digits_and_are_never_rounded_to_nothing(value, text):
    assert number(value) == text


def test_a_number_is_told_apart_from_its_limit():
    assert apart(0.10004, 0.1) == ("0.10004", "0.1")
    assert apart(0.5, 0.1) == ("0.5", "0.1")
    assert apart(0.1, 0.1) == ("0.1", "0.1")


def test_evidence_says_what_a_healthy_value_would_be():
    assert measured(Evidence("|g|", 7.4e-7, 1e-5, "<", layer="fc1")) == "|g| = 7.4e-07 at fc1   (needs >= 1e-05)"
    assert measured(Evidence("slope", 0.41, 0.15, ">", "decades")) == "slope = 0.41 decades   (needs <= 0.15)"
    assert measured(Evidence("rate", 3.0)) == "rate = 3"
    assert measured(Evidence("zeros", 1.0, 1.0, "=")) == "zeros = 1   (faulty at exactly 1)"


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["fc"], ["fc"]),
        ([f"encoder.layers.{i}.linear1" for i in range(23)], ["encoder.layers.{0..22}.linear1"]),
        (["h.1", "h.2", "h.5", "h.7", "h.8", "h.9"], ["h.{1,2,5,7..9}"]),
        (["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"], ["layer1.{0,1}.conv{1,2}"]),
        (["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"], ["layer1.{0,1}.conv1", "layer2.0.conv1"]),
        ([f"{i}" for i in range(1, 28, 2)], ["{1,3..27}"]),
        ([f"h.{i * i}" for i in range(20)], ["h.{0,1,4,9,16,25,36,...,361}"]),
        (["b.0", "a", "b.1"], ["b.{0,1}", "a"]),
    ],
)
def test_layer_names_are_folded(names, patterns):
    assert collapse(names) == patterns


def test_counts_have_prefixes():
    assert [scaled(x) for x in (None, 12, 4160, 1_234_567, 3.2e9)] == ["-", "12", "4.16 k", "1.23 M", "3.2 G"]


def test_control_characters_cannot_steer_the_terminal():
    assert clean("a\x1b[31mb\tc\n") == "a\\x1b[31mb c\\n"
