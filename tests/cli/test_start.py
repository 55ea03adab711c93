"""The first minute: `gradcheck` alone, `gradcheck demo`, and the commands that hints name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradcheck.cli.start import samples
from tests.test_cli_light import command, heavy_among, modules_after

ROOT = Path(__file__).resolve().parents[2]
TRAINS = "import torch\nmodel = torch.nn.Linear(2, 1)\nloss = model(torch.ones(1, 2)).sum()\nloss.backward()\n"
NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def gradcheck(folder, *words):
    """(exit code, stdout, stderr) of the command in a folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-P", "-m", "gradcheck", *words], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_alone_it_says_what_it_would_scan_and_runs_nothing(tmp_path):
    (tmp_path / "train.py").write_text(TRAINS + "open('ran', 'w')\n")
    (tmp_path / "prepare.py").write_text("print('prepares')\n")
    code, out, _ = gradcheck(tmp_path)
    assert code == 0 and "gradcheck scan train.py" in out and "prepare.py" not in out and not (tmp_path / "ran").exists()


def test_alone_it_names_configured_targets_and_notebooks(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.gradcheck.targets.encoder]\nmodel = "model.py:Net"\n')
    (tmp_path / "a b.ipynb").write_text(json.dumps(NOTEBOOK | {"metadata": {"uses": "torch"}}))
    _, out, _ = gradcheck(tmp_path)
    assert "the configured targets: encoder" in out and "gradcheck scan 'a b.ipynb'" in out


def test_alone_in_an_empty_folder_it_shows_the_help_and_the_demo(tmp_path):
    code, out, _ = gradcheck(tmp_path)
    assert code == 0 and "Usage" in out and "gradcheck demo" in out
    assert heavy_among(modules_after(command(), tmp_path)) == []


def test_the_demo_writes_a_sample_and_finds_its_fault(tmp_path):
    code, out, err = gradcheck(tmp_path, "demo", "zero-gradient", "--to", "here")
    assert code == 0, err
    assert "zero-gradient (GRAD004) error" in out and "gradcheck fix here/zero_gradient.py" in out
    assert (tmp_path / "here" / "zero_gradient.py").read_text() == (ROOT / "sample_models" / "faulty" / "zero_gradient.py").read_text()


def test_a_changed_sample_is_not_overwritten(tmp_path):
    (tmp_path / "gradcheck-demo").mkdir()
    mine = tmp_path / "gradcheck-demo" / "vanishing_gradient.py"
    mine.write_text("mine\n")
    code, _, err = gradcheck(tmp_path, "demo")
    assert code == 2 and "has been changed" in err and mine.read_text() == "mine\n"


def test_every_sample_has_a_title_and_an_unknown_one_a_suggestion(tmp_path):
    _, out, _ = gradcheck(tmp_path, "demo", "--list")
    assert len(out.splitlines()) == len(samples()) > 50
    assert all(len(line.split(None, 1)) == 2 for line in out.splitlines())
    code, _, err = gradcheck(tmp_path, "demo", "vanishing-gradiant")
    assert code == 2 and "gradcheck demo vanishing-gradient" in err


HINTS = [
    ("two.py", "from torch import nn\nclass A(nn.Module): ...\nclass B(nn.Module): ...\n", "gradcheck scan two.py:A or two.py:B"),
    ("gpu.py", TRAINS.replace("2, 1)", "2, 1).to('cuda:99')"), "torch.cuda.is_available()"),
    ("arg.py", TRAINS.replace("2, 1)", "2, 1).cuda(99)") + "parser.add_argument('--device')\n", "gradcheck scan arg.py -- --device cpu"),
]


@pytest.mark.parametrize(("name", "text", "hint"), HINTS)
def test_a_hint_names_the_exact_command(tmp_path, name, text, hint):
    (tmp_path / name).write_text(text)
    code, _, err = gradcheck(tmp_path, "scan", name)
    assert code == 2 and hint in err


def test_a_folder_and_a_notebook_are_told_what_to_run(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(TRAINS)
    (tmp_path / "n.ipynb").write_text(json.dumps(NOTEBOOK))
    assert "gradcheck scan src/train.py" in gradcheck(tmp_path, "scan", "src")[2]
    assert "gradcheck scan n.ipynb" in gradcheck(tmp_path, "trial", "n.ipynb")[2]
    assert "jupyter nbconvert --to script n.ipynb" in gradcheck(tmp_path, "fix", "n.ipynb")[2]


def test_without_torch_it_says_which_python_lacks_it(tmp_path):
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['gradcheck', 'demo']; from gradcheck.cli.main import main; main()"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and f"there is no PyTorch in {sys.executable}" in done.stderr and "bug" not in done.stderr
