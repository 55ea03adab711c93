"""Faulty samples whose remedy is written into a copy of the file: the next scan no longer finds the illness, and has nothing to write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gradcheck.config.settings import Settings
from gradcheck.loading.spec import TargetSpec
from gradcheck.pipeline import scan_target
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.writers import plan_edits
from gradcheck.types.report import Report

FAULTY = Path(__file__).resolve().parents[3] / "sample_models" / "faulty"


def scanned(path: str, code: str) -> Report:
    return scan_target(TargetSpec(path), Settings(steps=30, select=(code,)))


@pytest.mark.parametrize(
    ("sample", "code", "treatment"),
    [
        ("adam_epsilon", "OPT003", "adam-epsilon"),
        ("batchnorm_in_eval", "NORM005", "training-mode"),
        ("clipping_by_value", "CLIP003", "clip-gradient-norm"),
        ("degenerate_initialization", "INIT005", "break-symmetry"),
        ("disconnected_parameters", "GRAPH001", "remove-detach"),
        ("frozen_residual_scale", "GRAD004", "trainable-scale"),
        ("half_overflow", "NUM003", "bfloat16"),
        ("half_underflow", "NUM004", "bfloat16"),
        ("input_ignored", "GRAPH008", "use-input"),
        ("parameters_not_in_optimizer", "GRAPH003", "add-to-optimizer"),
        ("softmax_before_cross_entropy", "LOSS001", "remove-output-activation"),
        ("unregistered_modules", "GRAPH002", "register-modules"),
        ("unscaled_input", "DATA001", "standardize-input"),
        ("zero_gradient", "GRAD004", "straight-through"),
        ("vanishing_gradient", "GRAD001", "he-init"),
    ],
)
def test_the_written_file_is_cured(sample: str, code: str, treatment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(FAULTY / f"{sample}.py", "model.py")
    report = scanned("model.py", code)
    finding = next(f for f in report.findings if f.code == code)
    plan = plan_edits(CATALOGUE[treatment].propose(finding, report.measurement), report.measurement, ["model.py"])
    assert not plan.unwritten, plan.unwritten[0][1]
    plan.write()
    after = scanned("model.py", code)
    assert code not in {f.code for f in after.findings}
