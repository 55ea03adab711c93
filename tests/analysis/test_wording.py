"""How rules put numbers and places into words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradcheck.analysis.wording import layers_in_words, learns_clearly, number, percent, probe_failure, run_in_words
from tests.literals import diverged, falling, measurement, optimizer, run, stalled


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (0.41, "0.41"),
        (0.4142, "0.414"),
        (5.70, "5.7"),
        (64, "64"),
        (12.345, "12.3"),
        (999.6, "1000"),
        (1234, "1234"),
        (24_817.9, "24818"),
        (7.4e-7, "7.4e-07"),
        (1e-4, "1e-04"),
        (0.001, "0.001"),
        (3e18, "3e+18"),
        (-0.978, "-0.978"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_have_three_significant_digits_or_are_whole_and_are_never_zero_by_rounding(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1e308, "1e+308"),
        (0, "0 %"),
        (1, "100 %"),
        (0.614, "61 %"),
        (0.004, "0.4 %"),
        (1e-5, "under 0.1 %"),
        (0.997, "99.7 %"),
        (0.99999, "over 99.9 %"),
        (1.004, "100.4 %"),
        (2.4567, "246 %"),
        (2.5503e20, "2.55e+22 %"),
        (-0.305, "-30.5 %"),
    ],
)
def test_only_a_whole_reads_hundred_percent(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["fc"], "fc"),
        ([""], "the model"),
        (["a", "b"], "a and b"),
        (["a", "b", "c", "d"], "a, b, c and d"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
        ([f"blocks.{i}.fc" for i in range(12)], "blocks.{0..11}.fc"),
        (["fc", "blocks.3.fc", "blocks.5.fc"], "fc and blocks.{3,5}.fc"),
        ([str(i) for i in range(0, 20, 2)], "`{0,2,4,6,8,10,..}`"),
        (["layers.0:relu", "layers.1:relu"], "layers.{0..1}:relu"),
        (["a", "a"], "a"),
    ],
)
def test_names_in_a_row_are_joined(names, text):
    assert layers_in_words(names) == text


def test_a_run_is_told_by_its_loss():
    assert run_in_words(stalled(2.0, 50)).startswith("50 steps moved the loss from 2")
    assert run_in_words(diverged(steps=30)) == "the loss is not finite after 31 steps"


LEARNED = (run(falling(), "adam 0.001 on one batch", batches=1),)


@pytest.mark.parametrize(
    ("facts", "confirms"),
    [
        ({"probe": run()}, False),
        ({"probe": stalled()}, True),
        ({"probe": diverged()}, True),
        ({"probe": run((2.3, 2.3))}, False),
        ({"probe": stalled(), "experiments": LEARNED}, True),
        ({"probe": stalled(), "optimizer": optimizer(given=False)}, True),
        ({"probe": stalled(), "optimizer": optimizer(given=False), "experiments": LEARNED}, False),
    ],
)
def test_a_failing_probe_confirms_unless_its_optimizer_was_assumed_and_another_one_learns(facts: dict[str, Any], confirms: bool):
    said = probe_failure(measurement(**facts))
    assert said.startswith("by the probe: AdamW at rate 0.001: ") if confirms else said == ""


@pytest.mark.parametrize(("end", "clearly"), [(2.10, False), (2.00, True)])
def test_ten_percent_is_learning_clearly(end, clearly):
    assert learns_clearly(measurement(probe=run(falling(2.3, end)))) is clearly


def test_an_easy_first_batch_makes_no_rise() -> None:
    """Three batches in turn, each a little better at each visit."""
    losses = [level * 0.999**i for i in range(100) for level in (0.6, 2.5, 5.6)]
    assert run_in_words(run(losses, batches=3)) == "300 steps moved the loss from 2.9 to 2.63"
