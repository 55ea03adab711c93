"""`gradcheck trial` as a user runs it: results on stdout, errors in words, files written, an interrupt that keeps what was found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradcheck.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
LINEAR = "sample_models/trial/sparse_regression.py:build_linear"
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    path = tmp_path_factory.mktemp("trial") / "run.json"
    words = ["--remedy", "l1,l2", "--steps", "100", "--seeds", "3", "--budget", "600", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        done = CliRunner().invoke(app, ["trial", LINEAR, *words, "--output", "full", "--output", f"json:{path}"])
    assert done.exit_code == 0, done.stderr
    return done.stdout, json.loads(path.read_text())["trial"]


def test_verdict_table_curves_words_and_diff_are_shown(shown):
    text, trial = shown
    assert f"trial: {trial['verdict']}" in text.replace("\n       ", " ")
    assert "training" in text and "validation" in text and "untreated" in text and "▁" in text
    assert "+ l1 " in text and "of the weights are exactly zero" in text
    assert "--- a/sample_models/trial/sparse_regression.py" in text and "3 seeds in the final" in text


def test_the_saved_run_holds_the_trial(shown):
    _, trial = shown
    assert trial["entries"][0]["name"].startswith("l1") and trial["recommended"].startswith("l1")
    assert trial["base"]["validation"]["steps"][-1] == 100 and "diff" in trial


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((LINEAR, "--remedy", "l7"), "unknown remedy 'l7'"),
        ((LINEAR, "--seeds", "1"), "seeds must be at least 3"),
        ((LINEAR, "--trials", "3"), "--trials is for a search"),
        (("sample_models/scripts/faulty/gradients_not_cleared.py",), "trains when it is run"),
        (("nowhere.py",), "nowhere.py"),
    ],
)
def test_bad_input_is_one_clear_error(words, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["trial", *words])
    assert done.exit_code == 2 and not done.stdout
    assert said in done.stderr and "help:" in done.stderr and "Traceback" not in done.stderr


# The command, whose third run and all after it do not end by themselves: an interrupt always comes before the end.
ENDLESS = """
import os, sys, time
from pathlib import Path
from gradcheck.cli.main import main
from gradcheck.training import pool
from gradcheck.trials import lab

begin, work, folder = pool._begin, lab.work, Path(sys.argv.pop(1))

def begins(held):
    begin(held)
    (folder / f"worker {os.getpid()}").touch()

def works(held, job):
    if len(list(folder.glob("run *"))) > 1:
        time.sleep(600)
    answer = work(held, job)
    (folder / f"run {job.seed} {[p.treatment for p in job.fixes]}").touch()
    return answer

pool._begin, lab.work = begins, works
main()
"""


def test_an_interrupt_shows_what_was_found_and_exits_130(tmp_path):
    words = ["trial", LINEAR, "--remedy", "l1,l2", "--steps", "40", "--budget", "500", "--workers", "2"]
    command = [sys.executable, "-c", ENDLESS, str(tmp_path), *words]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and (len(list(tmp_path.glob("run *"))) < 2 or len(list(tmp_path.glob("worker *"))) < 2):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "It was interrupted" in out and "Traceback" not in err
    assert not children(process.pid)


def children(pid: int) -> list[str]:
    """Worker processes of a trial."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return listed.stdout.split()


@pytest.mark.parametrize("command", ["trial", "fix"])
def test_a_page_is_opened_on_request(command, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr("gradcheck.report.outputs.open_reports", lambda reports, outputs: opened.append((reports, outputs)))
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.html"
    more = ["--remedy", "l2", "--seeds", "3", "--workers", "1"] if command == "trial" else []
    words = [command, LINEAR, *more, "--steps", "10", "--budget", "5", "--open", "-q", "--output", f"html:{page}"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, 1), done.stderr
    ((reports, outputs),) = opened
    assert len(reports) == 1 and page in [o.path for o in outputs] and "<html" in page.read_text()
