"""Samples of sample_models/trial come to the conclusions that they are made for, with few remedies and short runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.config import settings_from
from gradcheck.target.spec import TargetSpec
from gradcheck.trial.options import Options
from gradcheck.trial.story import trial_target

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models" / "trial"

# File, remedies that enter, steps, what helps most (empty: nothing does), range of its effect on the validation loss.
EXPECTED = [
    ("deep_sigmoid.py", ("batch-normalization", "l2"), 120, "batch-normalization", (-2.4, -1.0)),
    ("spiky_regression.py", ("clip-gradient-norm", "warm-up"), 200, "clip-gradient-norm", (-1.0, -0.05)),
    ("overfitting_digits.py", ("dropout", "clip-gradient-norm"), 250, "dropout", (-0.6, -0.1)),
    ("well_fed.py", ("dropout", "early-stopping"), 150, "", (0.0, 0.0)),
]


@pytest.mark.parametrize(("file", "remedies", "steps", "best", "effect"), EXPECTED)
def test_a_sample_comes_to_its_conclusion(file, remedies, steps, best, effect):
    options = Options(remedies, budget=90.0, steps=steps, seeds=5)
    result = trial_target(TargetSpec(str(SAMPLES / file)), options, settings_from(None)).trial
    assert result is not None
    assert [e.name for e in result.helpful if "+" not in e.name] == ([best] if best else [])
    if best:
        found = result.helpful[0].effect
        assert found is not None and effect[0] <= found.difference <= effect[1]
    else:
        assert result.verdict.startswith("No difference") and not result.recommended


def test_every_sample_says_what_is_expected_of_it():
    files = sorted(SAMPLES.glob("*.py"))
    assert len(files) >= 8 and all("Expected:" in f.read_text() for f in files)
