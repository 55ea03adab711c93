"""`gradcheck fix`: what it prints where, what it writes, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gradcheck.cli import main
from gradcheck.config.settings import Settings
from gradcheck.loading.spec import TargetSpec
from gradcheck.repair import edits
from gradcheck.repair.options import options_of
from gradcheck.repair.story import fix_target

FAULTY = Path(__file__).parent.parent / "sample_models" / "faulty" / "learning_rate_too_high.py"
HEALTHY = FAULTY.parent.parent / "healthy" / FAULTY.name


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in the folder, in this process; an edited copy is scanned in another one, as for users."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def gradcheck(*words):
        monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            main.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return Done(int(ending.value.code or 0), out, err)

    return gradcheck


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_bytes(FAULTY.read_bytes())
    return tmp_path


def test_by_default_the_edits_are_shown_and_nothing_is_written(folder, run):
    before = (folder / "model.py").read_bytes()
    done = run("fix", "model.py", "--output", "json:run.json")
    assert done.returncode == 1
    assert "remedy 1: lower-learning-rate for OPT001  safe" in done.stdout
    assert "-    return torch.optim.SGD(model.parameters(), lr=10.0)" in done.stdout
    assert "measured:" in done.stdout and "training: training loss" in done.stdout and "nothing is left" in done.stdout
    assert (folder / "model.py").read_bytes() == before
    assert {p.name for p in folder.iterdir()} <= {"model.py", "run.json"}
    saved = json.loads((folder / "run.json").read_text())
    assert saved["outcomes"][0]["status"] == "kept" and "OPT001" in saved["proof"]["cured"]
    again = run("report", "run.json", "--exit-zero")
    assert "remedy 1: lower-learning-rate" in again.stdout


def test_diff_is_a_patch_that_applies(folder, run):
    done = run("fix", "model.py", "--diff")
    assert done.returncode == 1 and done.stdout.startswith("--- a/model.py\n+++ b/model.py\n")
    assert "Would apply 1 remedy" in done.stderr
    subprocess.run(["git", "apply", "-"], cwd=folder, input=done.stdout, text=True, check=True)
    assert "lr=10.0" not in (folder / "model.py").read_text()


def test_write_cures_the_file_and_the_second_time_there_is_nothing_to_do(folder, run):
    first = run("fix", "model.py", "--write")
    assert first.returncode == 0 and "wrote model.py" in first.stderr
    written = (folder / "model.py").read_bytes()
    assert written != FAULTY.read_bytes()
    second = run("fix", "model.py", "--write")
    assert second.returncode == 0 and "remedy" not in second.stdout and "wrote" not in second.stderr
    assert (folder / "model.py").read_bytes() == written


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=folder, check=True, capture_output=True)


def test_a_dirty_tree_is_not_written_to(folder, run):
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    (folder / "model.py").write_text(FAULTY.read_text() + "\n# a line that is not committed\n")
    before = (folder / "model.py").read_bytes()
    done = run("fix", "model.py", "--write")
    assert done.returncode == 2 and "--allow-dirty" in done.stderr
    assert (folder / "model.py").read_bytes() == before
    assert run("fix", "model.py", "--write", "--allow-dirty").returncode == 0


def test_a_file_whose_scan_still_finds_it_is_not_written(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = (folder / "model.py").read_bytes()
    fixed = fix_target(TargetSpec("model.py"), Settings(), options_of(False, 50, 3, None))
    monkeypatch.setattr(edits, "_scanned", lambda source, words: [fixed.report])
    with pytest.raises(edits.WriteError, match="OPT001 would still be found"):
        edits.scan_and_write(fixed.source, [(fixed.report, ["OPT001"])], ["model.py"], False)
    assert (folder / "model.py").read_bytes() == before


def test_a_file_whose_scan_cannot_look_for_it_is_not_written(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = (folder / "model.py").read_bytes()
    fixed = fix_target(TargetSpec("model.py"), Settings(), options_of(False, 50, 3, None))
    states = tuple(replace(s, status="not-measured") if s.code == "OPT001" else s for s in fixed.report.rules)
    monkeypatch.setattr(edits, "_scanned", lambda source, words: [replace(fixed.report, findings=(), rules=states)])
    with pytest.raises(edits.WriteError, match="OPT001 could not be looked for"):
        edits.scan_and_write(fixed.source, [(fixed.report, ["OPT001"])], ["model.py"], False)
    assert (folder / "model.py").read_bytes() == before


def test_a_file_that_cannot_be_scanned_is_not_written(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = (folder / "model.py").read_bytes()
    fixed = fix_target(TargetSpec("model.py"), Settings(), options_of(False, 50, 3, None))
    with pytest.raises(edits.WriteError, match="cannot be scanned: error: there is no file"):
        edits.scan_and_write(fixed.source, [(fixed.report, ["OPT001"])], ["missing.py"], False)
    assert (folder / "model.py").read_bytes() == before


def test_a_healthy_file_exits_0(tmp_path, run):
    (tmp_path / "model.py").write_bytes(HEALTHY.read_bytes())
    done = run("fix", "model.py")
    assert done.returncode == 0 and "No findings" in done.stdout


def test_scan_with_fix_shows_the_remedies_too(folder, run):
    done = run("scan", "--fix", "model.py")
    assert done.returncode == 1 and "remedy 1: lower-learning-rate" in done.stdout
    assert (folder / "model.py").read_bytes() == FAULTY.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.py"], "there is no file missing.py"),
        (["model.py", "--write", "--diff"], "--write and --diff exclude each other"),
        (["model.py", "--steps", "1"], "steps must be"),
        (["model.py", "--seeds", "0"], "seeds must be"),
        (["model.py", "--output", "pdf"], "unknown output format"),
    ],
)
def test_bad_input_is_one_error_and_exit_2(folder, run, words, message):
    done = run("fix", *words)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("error:") == 1
