"""Models that are made late, traced, or called in unusual ways: programs run as they do alone, and what is refused is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradcheck import interpreter, watch
from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.live.record_file import RecordFile
from gradcheck.loading.spec import TargetSpec
from gradcheck.pipeline import scan_script, scan_target

TRAINING = """
import torch
from torch import nn
X = torch.randn(64, 8)
Y = X @ torch.randn(8, 4)
model = MODEL
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for x, y in zip(X.split(8), Y.split(8)):
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
"""
LAZY = "nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 4))"
TRACED = "torch.jit.trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), X[:4])"


@pytest.mark.parametrize("model", [LAZY, TRACED])
def test_models_that_are_made_late_or_traced_are_followed(model: str) -> None:
    text = TRAINING.replace("MODEL", model)
    text = text.replace("for x, y in", "board = watch(model, optimizer).start()\nfor x, y in")
    names = {"watch": watch}
    try:
        exec(text, names)
    finally:
        names["board"].close()  # type: ignore[attr-defined]
    assert names["board"].failure is None and names["board"].steps == 8  # type: ignore[attr-defined]


def test_a_script_that_traces_its_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAINING.replace("MODEL", TRACED))
    assert all(report.measurements for report in scan_script(ScriptSpec("train.py"), Settings(fast=True)))


def test_a_program_with_a_lazy_model_is_watched_as_it_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING.replace("MODEL", LAZY))
    command = interpreter.command("gradcheck.cli.main", ["watch", "-q", "--no-save", "--exit-zero", "--", sys.executable, "train.py"])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "7 steps" in done.stdout, (done.stdout, done.stderr)


BY_NAME = """
class M(nn.Linear):
    def forward(self, *, x):
        return super().forward(x)
def build_model():
    return M(8, 4)
"""


@pytest.mark.parametrize(
    ("text", "said"), [(BY_NAME, "--input 'x=float32[4,8]'"), ("\ndef build_model():\n    return nn.ReLU\n", "returns the class ReLU")]
)
def test_a_model_that_cannot_be_called_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import torch\nfrom torch import nn\n" + text)
    with pytest.raises(TargetError) as refused:
        scan_target(TargetSpec(str(tmp_path / "model.py"), inputs=("float32[4,8]",)), Settings(fast=True))
    assert said in f"{refused.value.message} {refused.value.hint}"


def test_a_folder_that_cannot_be_written_to_does_not_end_a_watched_program(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record = RecordFile(tmp_path / "file" / ".gradcheck" / "last.json", "train.py", 0.03)
    record.show(None)
    assert "last.live.json" in record.why
