"""A script that is set up for float16, scanned where there is no GPU: what would overflow is told beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_script
from gradcheck.types.finding import Finding
from tests.scripts import written

SCRIPT = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
counts = nn.Linear(16, 32)
model = nn.Sequential(counts, nn.LayerNorm(32), nn.Linear(32, 3))
with torch.no_grad():
    counts.weight.mul_(GAIN)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler("cuda")
for step in range(40):
    x = torch.randn(64, 16)
    with torch.autocast("cuda", dtype=torch.float16):
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
"""


def findings(folder: Path, text: str) -> list[Finding]:
    reports = scan_script(ScriptSpec(str(written(folder, text)), quiet=True, steps=12), Settings(select=("NUM006",)))
    assert not [s for r in reports for s in r.rules if s.status == "crashed"]
    return [f for r in reports for f in r.findings]


@pytest.mark.filterwarnings("ignore")
def test_outputs_that_would_overflow(tmp_path):
    [found] = findings(tmp_path, SCRIPT.replace("GAIN", "1e6"))
    assert (found.code, found.severity, found.layers) == (
        "NUM006",
        "info",
        ("0",),
    ) and "of the activations of `0` would be beyond" in found.message
    assert found.location is not None and found.location.line == 7


@pytest.mark.filterwarnings("ignore")
def test_outputs_that_fit(tmp_path):
    assert findings(tmp_path, SCRIPT.replace("GAIN", "1.0")) == []
    assert findings(tmp_path, SCRIPT.replace("GAIN", "1e6").replace('GradScaler("cuda")', 'GradScaler("cuda", enabled=False)')) == []
