"""Clipping by convention: names, kinds, places."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.workload.workload import Clipping

MODEL = """import torch
model = torch.nn.Linear(4, 2)
batch = (torch.randn(8, 4), torch.randint(2, (8,)))
"""


def found(tmp_path: Path, line: str) -> tuple[Clipping | None, list[str]]:
    (tmp_path / "model.py").write_text(MODEL + line + "\n")
    workload = load(TargetSpec(target=str(tmp_path / "model.py")))
    return workload.clip, [a.text for a in workload.assumptions if a.about == "clipping" and a.given]


@pytest.mark.parametrize(
    ("line", "kind", "threshold"),
    [
        ("max_grad_norm = 0.5", "norm", 0.5),
        ("GRAD_CLIP: float = 1", "norm", 1.0),
        ("clip_grad_value = 0.1", "value", 0.1),
        ("gradient_clip_val, gradient_clip_algorithm = 0.5, 'value'", "value", 0.5),
    ],
)
def test_a_number_with_a_customary_name(tmp_path, line, kind, threshold):
    clip, said = found(tmp_path, line)
    assert clip is not None and (clip.kind, clip.threshold) == (kind, threshold)
    assert len(said) == 1 and line.split(" ")[0].strip(":,") in said[0]


def test_its_place_is_the_assignment(tmp_path):
    clip, _ = found(tmp_path, "clip_grad_norm = 2.0")
    assert clip is not None and clip.site is not None and (clip.site.line, clip.site.column, clip.site.end_column) == (4, 1, 21)


@pytest.mark.parametrize(
    "line", ["", "max_grad_norm = None", "grad_clip = 0.0", "grad_clip = True", "from torch.nn.utils import clip_grad_norm"]
)
def test_none(tmp_path, line):
    assert found(tmp_path, line) == (None, [])
