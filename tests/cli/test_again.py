"""`gradcheck scan --watch`: a change of a source file is a new scan; `--statistics` and `--add-ignore` from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gradcheck.cli.scan import without_watch

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]), "NO_COLOR": "1"}


def test_the_option_is_not_passed_on():
    assert without_watch(["scan", "--watch", "t.py", "--", "--watch"]) == ["scan", "t.py", "--", "--watch"]


def model(folder, loss):
    text = "import torch\nfrom torch import nn\nmodel = nn.Linear(4, 3)\nbatch = torch.randn(8, 4), torch.randint(3, (8,))\n"
    (folder / "model.py").write_text(f"{text}loss_fn = {loss}\n")


def test_a_change_is_scanned_and_what_a_scan_writes_is_not(tmp_path):
    pytest.importorskip("watchfiles")
    model(tmp_path, "nn.CrossEntropyLoss()")
    words = [sys.executable, "-m", "gradcheck", "scan", "--watch", "model.py", "--fast", "--output", "concise", "--output", "json:run.json"]
    process = subprocess.Popen(words, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(iter(process.stderr.readline, "")), daemon=True)
    reader.start()

    def wait(times):
        end = time.monotonic() + 60
        while sum("waiting for changes" in line for line in seen) < times:
            assert time.monotonic() < end and process.poll() is None, seen
            time.sleep(0.05)

    try:
        wait(1)
        time.sleep(1.0)  # the first events of the watcher
        (tmp_path / "notes.txt").write_text("x")
        model(tmp_path, "lambda output, target: -nn.functional.cross_entropy(output, target)")
        wait(2)
        time.sleep(0.5)
        assert sum("changed" in line for line in seen) == 1
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert "gradient-ascent" in out and process.returncode in (1, 130)


def test_statistics_and_ignore_comments(tmp_path):
    model(tmp_path, "lambda output, target: -nn.functional.cross_entropy(output, target)")
    words = [sys.executable, "-m", "gradcheck", "scan", "model.py", "--fast", "--statistics", "--add-ignore", "--output", "json:run.json"]
    done = subprocess.run(words, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert "1  error    gradient-ascent" in done.stdout and "1 finding in 1 of 1 target" in done.stdout and done.returncode == 1
    assert "wrote 1 comment" in done.stderr and "# gradcheck: ignore[gradient-ascent]" in (tmp_path / "model.py").read_text()
    again = subprocess.run([*words[:5], "--fast", "--output", "concise"], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert again.returncode == 0 and "1 suppressed" in again.stdout
