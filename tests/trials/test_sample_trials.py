"""Samples of sample_models/trial come to the conclusions that they are made for, with few remedies and short runs.

Those that need longer runs are in `python benchmarks/trial.py --samples`: its table has what may be on top of each, and by how much.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.trial import SAMPLES as EXPECTED_ON_TOP
from gradcheck.config.settings import settings_from
from gradcheck.loading.spec import TargetSpec
from gradcheck.trials.options import Options
from gradcheck.trials.run import trial_target

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models" / "trial"

# File, remedies that enter, steps, what helps most (empty: nothing does), range of its effect on the validation loss.
EXPECTED = [
    ("deep_sigmoid.py", ("batch-normalization",), 100, "batch-normalization", (-2.4, -1.0)),
    ("well_fed.py", ("dropout",), 100, "", (0.0, 0.0)),
]


@pytest.mark.parametrize(("file", "remedies", "steps", "best", "effect"), EXPECTED)
def test_a_sample_comes_to_its_conclusion(file, remedies, steps, best, effect):
    options = Options(remedies, budget=90.0, steps=steps, seeds=3, workers=1)
    result = trial_target(TargetSpec(str(SAMPLES / file)), options, settings_from(None)).trial
    assert result is not None
    assert [e.name for e in result.helpful if "+" not in e.name] == ([best] if best else [])
    if best:
        found = result.helpful[0].effect
        assert found is not None and effect[0] <= found.difference <= effect[1]
    else:
        assert result.verdict.startswith("No difference") and not result.recommended


def test_every_sample_says_what_the_benchmark_expects_of_it():
    """The words at the top of a sample and the table of the benchmark agree."""
    files = {f.name: f.read_text() for f in SAMPLES.glob("*.py")}
    assert {name.partition(":")[0] for name in EXPECTED_ON_TOP} == set(files) and len(files) >= 8
    for name, (remedies, _) in EXPECTED_ON_TOP.items():
        said = files[name.partition(":")[0]].partition("Expected:")[2].partition('"""')[0]
        assert ("no difference" in said) == (not remedies)
        assert not remedies or any(remedy in said for remedy in remedies)
