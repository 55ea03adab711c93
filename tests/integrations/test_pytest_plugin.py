"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "gradcheck.integrations.pytest_plugin"
HEAVY = ("torch", "numpy", "pydantic", "rich", "typer")

# A real scan, and scans that are replaced by literals: these cost no import of PyTorch.
REAL = """
import torch
from torch import nn

def test_faulty(gradcheck):
    batch = torch.randn(64, 8), torch.randint(0, 4, (64,))
    gradcheck(nn.Sequential(nn.Linear(8, 4), nn.Softmax(dim=-1)), batch, loss=nn.CrossEntropyLoss())
"""
LITERAL = """
import pytest
from tests.report.reports import IN_PART, FAULTY, report

def test_fine(gradcheck):
    assert gradcheck(report(), None).count("error") == 0

def test_faulty(gradcheck):
    gradcheck(report(FAULTY), None)

@pytest.mark.gradcheck(fail_on="never")
def test_tolerant(gradcheck):
    assert gradcheck(report(FAULTY), None).findings[0].code == "GRAD001"

def test_partial(gradcheck):
    gradcheck(IN_PART, None)

@pytest.mark.gradcheck(allow_partial=True)
def test_allowed(gradcheck):
    gradcheck(IN_PART, None)

def test_without(): pass
"""
STUB = """
import sys, types
sys.modules["gradcheck.api"] = module = types.ModuleType("gradcheck.api")
module.scan = lambda model, data, config: model
"""


def pytest_run(folder, *words, text=LITERAL, ini="[pytest]\n"):
    (folder / "test_models.py").write_text(text)
    (folder / "pytest.ini").write_text(ini)
    if text is not REAL:
        (folder / "conftest.py").write_text(STUB)
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", "--strict-markers", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_it_is_registered():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points["pytest11"] == {"gradcheck": PLUGIN}


def imported_by(module):
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(set(done.stdout.split()).intersection(HEAVY))


def test_loading_it_imports_nothing_heavy():
    assert imported_by(PLUGIN) == []


def test_the_check_for_heavy_imports_can_fail():
    assert "pydantic" in imported_by("pydantic")


def test_a_real_scan_fails_a_test_with_the_report(tmp_path):
    (tmp_path / "gradcheck.toml").write_text('fast = true\nselect = ["LOSS001"]\n')
    done = pytest_run(tmp_path, text=REAL)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout + done.stderr
    assert "output-loss-mismatch (LOSS001) error: softmax before cross_entropy" in done.stdout
    assert "test_models.py::test_faulty: FAILED Sequential: Found 1 error" in done.stdout.partition("= gradcheck =")[2]


def test_findings_fail_tests_and_are_summed_up(tmp_path):
    done = pytest_run(tmp_path)
    assert done.returncode == 1 and "2 failed, 4 passed" in done.stdout, done.stdout + done.stderr
    _, _, section = done.stdout.partition("= gradcheck =")
    assert "test_models.py::test_faulty: FAILED model.py: Found 1 error" in section
    assert "test_models.py::test_partial: FAILED model.py: Judged in part: 1 of 3 applicable rules looked" in section
    assert "why:  could not repeat the training step" in done.stdout and "test_allowed: passed model.py: Judged in part" in section
    assert "test_models.py::test_fine: passed model.py: No findings" in section and "test_without" not in section


def test_levels_come_from_the_command_line_the_ini_file_and_the_marker(tmp_path):
    one = ("-k", "faulty or tolerant")
    assert "2 passed" in pytest_run(tmp_path, "--gradcheck-fail-on", "never", *one).stdout
    assert "2 passed" in pytest_run(tmp_path, *one, ini="[pytest]\ngradcheck_fail_on = never\n").stdout
    bad = pytest_run(tmp_path, *one, ini="[pytest]\ngradcheck_fail_on = fatal\n")
    assert bad.returncode == pytest.ExitCode.USAGE_ERROR and "gradcheck_fail_on must be one of" in bad.stderr


def test_a_run_in_part_can_be_allowed_on_the_command_line_and_in_the_ini_file(tmp_path):
    assert "1 passed" in pytest_run(tmp_path, "--gradcheck-allow-partial", "-k", "partial").stdout
    assert "1 passed" in pytest_run(tmp_path, "-k", "partial", ini="[pytest]\ngradcheck_allow_partial = true\n").stdout


def test_scans_can_be_skipped(tmp_path):
    done = pytest_run(tmp_path, "--gradcheck-skip")
    assert "1 passed, 5 skipped" in done.stdout and "= gradcheck =" not in done.stdout


def test_a_wrong_setting_of_the_marker_is_said_with_a_hint(tmp_path):
    text = "import pytest\n\n@pytest.mark.gradcheck(fail_no='error')\ndef test_x(gradcheck): pass\n"
    done = pytest_run(tmp_path, text=text)
    assert done.returncode == 1 and "unknown key 'fail-no'" in done.stdout and 'did you mean "fail-on"' in done.stdout


def test_the_summary_reaches_the_main_process_of_xdist(tmp_path):
    pytest.importorskip("xdist")
    done = pytest_run(tmp_path, "-p", "xdist", "-n", "1", "-k", "faulty")
    assert "test_faulty: FAILED model.py" in done.stdout, done.stdout
