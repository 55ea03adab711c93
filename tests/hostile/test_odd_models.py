"""Models that are made late, traced, or called in unusual ways: programs run as they do alone, and what is refused is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradcheck import interpreter, watch
from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.capture.unseen import nothing_seen
from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.live.record_file import RecordFile
from gradcheck.loading.spec import TargetSpec
from gradcheck.pipeline import scan_script, scan_target
from gradcheck.types.report import Report

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


SCRIPTED = "torch.jit.script(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))"
ODD = """
class Odd(nn.Sequential):
    def __eq__(self, other):
        raise TypeError
    __hash__ = nn.Module.__hash__
unused = nn.LazyLinear(2)
"""


@pytest.mark.parametrize("model", [LAZY, SCRIPTED, "Odd(nn.Linear(8, 4))"])
def test_the_training_of_a_model_that_is_made_late_or_scripted_can_be_repeated(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAINING.replace("X = ", ODD + "X = ", 1).replace("MODEL", model))
    spec = ScriptSpec("train.py")
    with captured(spec) as run:
        (training,) = trainings_of(run, spec)
        assert run.error is None and training.workload is not None


def test_what_a_script_catches_at_every_step_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = TRAINING.replace("MODEL", "nn.Linear(3, 4)").replace("    loss =", "    try: loss =")
    Path("train.py").write_text(text.replace("    optimizer.zero", "    except Exception: continue\n    optimizer.zero"))
    with pytest.raises(TargetError, match="caught what its forward pass raised: RuntimeError: mat1") as refused:
        scan_script(ScriptSpec("train.py"), Settings(fast=True))
    assert refused.value.location is not None and refused.value.location.line == 9


@pytest.mark.parametrize("given", [b"", b"3\n"])
def test_a_script_reads_what_is_redirected_to_the_command(given, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("n = int(input())\n" + TRAINING.replace("MODEL", "nn.Linear(8, 4)"))
    Path("answers").write_bytes(given)
    with Path("answers").open() as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        monkeypatch.setattr(sys, "__stdin__", answers)
        with captured(ScriptSpec("train.py")) as run:
            assert (run.error is None) == bool(given)
            if not given:
                assert "scan train.py < ANSWERS.txt" in nothing_seen(run, ScriptSpec("train.py")).hint


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
    record = RecordFile(tmp_path / "file" / ".gradcheck" / "last.json", "train.py", 0.03, spare=tmp_path / "spare.json")
    record.show(None)
    assert "last.live.json" in record.why
    record.save(Report("train.py", (), (), (), (), 0.1, "0"), always=True)
    assert "last.live.json" in record.why and (tmp_path / "spare.json").exists(), "the verdict is not lost with the file"
