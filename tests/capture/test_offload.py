"""A script's models are scanned with `--offload` as without: from what they held before training, which was set aside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_script

SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x, y = torch.randn(64, 6), torch.randint(3, (64,))
for _ in range(12):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""


def test_the_report_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    plain, offloaded = (scan_script(ScriptSpec(str(path)), Settings(fast=True, offload=offload))[0] for offload in (False, True))
    assert any("--offload" in a.text for a in offloaded.measurement.assumptions)
    mine, other = plain.measurement, offloaded.measurement
    assert mine.probe.losses == other.probe.losses and mine.layers == other.layers and mine.parameters == other.parameters
    assert not other.pretrained
    states = [[replace(state, reason="") for state in report.rules] for report in (plain, offloaded)]
    assert states[0] == states[1]
