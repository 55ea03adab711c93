"""What lies in the working directory is not taken for gradcheck's modules, nor for those that it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradcheck import interpreter
from gradcheck.errors import ConfigError
from gradcheck.live.command import check_interpreter, program_of
from gradcheck.workload.source_sites import failure

ROOT = Path(__file__).parent.parent.parent
SHADOWS = ("gradcheck", "random", "json", "typing", "torch", "click", "signal")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the user has a {name}.py')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_a_process_of_gradchecks_finds_its_own_modules(folder: Path) -> None:
    command = interpreter.command("gradcheck.cli.main", ["rules", "--select", "GRAD001"])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "GRAD001" in done.stdout, done.stderr


def test_so_does_the_file_that_a_launcher_starts(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "apart"
    home.mkdir()
    (home / "start.py").write_text(interpreter.code("gradcheck.cli.main"))
    done = subprocess.run([sys.executable, str(home / "start.py"), "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("gradcheck "), done.stderr


def test_another_interpreter_is_asked_in_the_same_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(torch.__file__).parent.parent)]))
    other = folder / "python"
    other.symlink_to(sys.executable)
    (folder / "train.py").touch()
    program = program_of([str(other), "train.py"])
    assert program.interpreter != sys.executable
    check_interpreter(program)


def test_another_interpreter_without_torch_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "train.py").touch()
    (folder / "python").symlink_to(Path(sys.executable).resolve())
    with pytest.raises(ConfigError, match="no PyTorch") as refused:
        check_interpreter(program_of([str(folder / "python"), "-S", "train.py"]))
    assert "-- train.py runs in gradcheck's own" in refused.value.hint


@pytest.mark.parametrize("text", ["module 'gradcheck' has no attribute 'Layer'", "No module named 'gradcheck.model'"])
def test_a_module_of_the_users_with_our_name_gets_a_hint(text: str) -> None:
    assert "rename it" in failure("model.py cannot be imported", AttributeError(text)).hint
