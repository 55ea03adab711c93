from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.workload.workload import Workload

HEAD = """
import torch
import torch.nn.functional as F
from torch import nn
"""

# A small classifier, without data, loss or optimizer.
NET = (
    HEAD
    + """
class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.hidden = nn.Linear(4, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))
"""
)

Loader = Callable[..., Workload]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory of the user's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    def write(source: str, name: str = "model.py") -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    return write


@pytest.fixture
def loaded(write: Callable[..., Path]) -> Loader:
    """Writes model.py and loads it."""

    def loaded(source: str, target: str = "model.py", **settings: Any) -> Workload:
        write(source)
        return load(TargetSpec(target, **{"device": "cpu", **settings}))

    return loaded


def said(workload: Workload, about: str) -> str:
    return " | ".join(a.text for a in workload.assumptions if a.about == about)
