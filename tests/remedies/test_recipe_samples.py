"""Faulty samples whose illness is in the recipe: the remedy that their finding names cures it, and the net trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.training.paired import training_loss
from gradcheck.workload.treated import treated_copy
from tests.remedies.recipes import measured
from tests.trained import train

FAULTY = Path(__file__).resolve().parents[2] / "sample_models" / "faulty"

CURES = {  # sample, finding, remedy: highest share of the loss at the start that is left after a hundred steps
    ("adam_epsilon", "OPT003", "adam-epsilon"): 0.1,
    ("decay_too_strong", "REG001", "weaker-weight-decay"): 0.2,
    ("dropout_too_strong", "REG003", "lower-dropout"): 0.2,
    ("softmax_before_cross_entropy", "LOSS001", "replace-loss"): 0.1,
    ("unscaled_input", "DATA001", "standardize-input"): 0.1,
}


@pytest.mark.parametrize(("name", "code", "remedy"), CURES)
def test_the_finding_goes_and_the_net_trains(name: str, code: str, remedy: str) -> None:
    w = load(TargetSpec(str(FAULTY / f"{name}.py")))
    report = measured(w)
    finding = next(f for f in report.findings if f.code == code)
    assert remedy in {r.name for r in finding.remedies}
    p = CATALOGUE[remedy].propose(finding, report.measurement)[0]
    treated = treated_copy(w)
    apply(treated, p)
    assert code not in {f.code for f in measured(treated.copy().workload).findings}
    run = train(treated, steps=100, seed=5)
    assert training_loss(run) < CURES[name, code, remedy] * run.losses[0]
