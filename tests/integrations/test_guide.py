"""What docs/integrations.md shows of Accelerate runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import gradcheck
from tests.integrations import trainers
from tests.integrations.trainers import Plan

ROOT = Path(__file__).resolve().parents[2]


def test_the_loop_with_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    (code,) = re.findall(r"```python accelerate\n(.*?)```", (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8"), re.DOTALL)
    plan = Plan(trainers.vanishing, steps=6, accumulate=2)
    model = plan.model()
    monkeypatch.chdir(tmp_path)
    names = {"model": model, "optimizer": plan.optimizer(model), "loader": plan.loader(), "loss_fn": F.cross_entropy, "torch": torch}
    exec(compile(code, "docs/integrations.md", "exec"), names)
    report = gradcheck.Report.load("run.json")
    assert report.measurement.steps == 6
    assert "GRAD001" in {finding.code for finding in report.findings}
