"""Small training scripts as text, and their scans."""

from __future__ import annotations

import textwrap
from pathlib import Path

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.types.report import Report

DATA = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (512,))
inputs = means[labels] + torch.randn(512, 32)
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


def net(): return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))


model = net()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
"""
LOOP = """
for epoch in range(8):
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
"""


def scan(path: Path, *arguments: str, **how: object) -> list[Report]:
    from gradcheck.pipeline import scan_script

    return scan_script(ScriptSpec(str(path), arguments, **how), Settings())  # type: ignore[arg-type]


def complaints(reports: list[Report]) -> list[str]:
    found = [f"{f.severity} {f.code}: {f.message}" for r in reports for f in r.findings if f.severity != "info"]
    return found + [f"judged in part: {r.coverage.reasons}" for r in reports if r.coverage.in_part]


def codes(reports: list[Report]) -> set[str]:
    assert not [s for r in reports for s in r.rules if s.status == "crashed"]
    return {f.code for r in reports for f in r.findings}


def written(folder: Path, text: str) -> Path:
    path = folder / "train.py"
    path.write_text(textwrap.dedent(text))
    return path
