"""What a run leaves as it goes: bounded, whole at any moment, and shown by another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gradcheck
from gradcheck.cli.watch import _attach, _share
from gradcheck.errors import ConfigError, TargetError
from gradcheck.live import attach, record_file
from gradcheck.live.record import Record
from gradcheck.live.record_file import RecordFile, board_file, born, is_alive
from gradcheck.types.gauges import Frame, LiveFinding, LiveLayer
from gradcheck.types.report import Report

FRAME = Frame(7, 0.5, (0.7, float("nan")), 1.0, layers=(LiveLayer("a"),), findings=(LiveFinding("error", "ACT002", "dead-units", "dead"),))
SCRIPT = """
import sys, torch
from torch import nn
model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
step = 0
while True:
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    step += 1
    if step % 10 == 0:
        print(step, flush=True)
"""


def million(record: Record, steps: int, every: int) -> None:
    """As a run of so many steps fills a record, without taking them: what its last measured step has left stands for all others."""
    last = {name: layer.snapshots[-1] for name, layer in record.layers.layers.items() if layer.snapshots}
    for step in range(record.steps, steps):
        record.note_loss(1.0 / (1 + step))
        if step % every == 0:
            for name, snapshot in last.items():
                record.layers.layers[name].snapshots.append(replace(snapshot, step=step))
            for w in record.watched:
                w.steps.append(replace(w.steps[-1], step=step))
            record.note_step(step, 1.234567, 1e-3 / (1 + step), False)
            record.thin()
    record.steps = steps


@pytest.mark.parametrize(("depth", "steps", "every"), [(20, 1_000_000, 1000), (600, 20_000, 200)])
def test_the_record_of_a_million_steps_is_below_20_mb(depth: int, steps: int, every: int, tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradcheck.watch(model, optimizer, every=1) as board:
        for _ in range(3):
            model(torch.randn(4, 4)).square().mean().backward()
            optimizer.step()
    million(board.record, steps, every)
    board._verdicts.fresh = False
    board._verdicts.silent().to_json(tmp_path / "run.json")
    assert (tmp_path / "run.json").stat().st_size < 20_000_000
    saved = Report.load(tmp_path / "run.json").measurement
    assert saved.steps == steps and saved.measured_steps[:3] == (0, 1, 2) and saved.measured_steps[-1] == steps - every
    assert len(saved.probe.losses) < 4000 and len(board.record.rates) == len(board.record.measured)
    assert saved.probe.lr == 1e-3


def test_the_board_is_written_now_and_then_and_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(record_file.time, "monotonic", lambda: now[0])
    file = RecordFile(tmp_path / "run.json", "train.py", 0.03)
    file.show(None)
    assert attach.look(tmp_path / "run.json") == attach.LastSeen(
        "train.py", os.getpid(), born(os.getpid()), *_said(tmp_path / "run.json"), None
    )
    file.show(FRAME)
    assert attach.look(tmp_path / "run.json").frame is None  # type: ignore[union-attr]
    now[0] += 2
    file.show(FRAME)
    seen = attach.look(tmp_path / "run.json")
    assert seen is not None and seen.alive and repr(seen.frame) == repr(FRAME)
    file.close()
    assert list(tmp_path.iterdir()) == []


def _said(run: Path) -> tuple[str, float]:
    seen = attach.look(run)
    assert seen is not None
    return seen.host, seen.at


def test_what_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "none" / "run.json", "train.py", 0.03)
    file.show(FRAME)
    assert "none" in file.why
    file.close()


def test_a_process_of_the_same_number_is_another_one() -> None:
    assert is_alive(os.getpid(), born(os.getpid()))
    if born(os.getpid()):
        assert not is_alive(os.getpid(), "1")


def test_a_run_that_nobody_writes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no run is in progress"):
        attach.attach(tmp_path / "run.json")
    board_file(tmp_path / "run.json").write_text("{}")
    with pytest.raises(TargetError, match="not written by this version"):
        attach.attach(tmp_path / "run.json")


def _watching(folder: Path) -> subprocess.Popen[str]:
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "gradcheck", "watch", "--every", "5", "--", "train.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)  # type: ignore[call-overload]


def test_kill_9_leaves_a_record_and_a_program_that_goes_on_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = _watching(tmp_path)
    assert process.stdout is not None and process.stderr is not None
    run = tmp_path / ".gradcheck" / "last.json"
    for text in process.stdout:
        if int(text) >= 30 and run.exists():
            break
    seen = attach.look(run)
    assert seen is not None and seen.title == "train.py"
    process.kill()
    if sys.platform.startswith("linux"):
        said = next(line for line in process.stderr if "gradcheck watch was killed" in line)
        assert f"process {seen.process}" in said and "--attach" in said
    before = int(next(iter(process.stdout)))
    assert int(next(iter(process.stdout))) > before  # it goes on
    os.kill(seen.process, signal.SIGKILL)
    process.wait()
    while is_alive(seen.process, seen.born) and Path(f"/proc/{seen.process}/stat").exists():
        if " Z " in Path(f"/proc/{seen.process}/stat").read_text():
            break
        time.sleep(0.05)
    assert Report.load(run).measurement.steps > 3
    if not is_alive(seen.process, seen.born):
        assert attach.attach(run, quiet=True) == 1
        assert "was killed" in capsys.readouterr().err
    process.stdout.close()
    process.stderr.close()


def test_the_board_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.json"
    file = RecordFile(run, "train.py", 0.03)
    file.show(None)
    later = iter((lambda: None, lambda: (setattr(file, "_told", 0.0), file.show(FRAME)), lambda: None, file.close))
    monkeypatch.setattr(attach.time, "sleep", lambda seconds: next(later)())
    assert attach.attach(run) == 0
    said = capsys.readouterr().err
    assert "Ctrl-C leaves it alone" in said and "step 7: loss 0.5" in said and "dead-units" in said and "the run has ended" in said


@pytest.mark.parametrize(("text", "share"), [("3%", 0.03), ("0.5 %", 0.005), ("0.03", 0.03), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert _share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "3", "0", "0%", "-1%", "101%", "nan", "3%%", "a lot"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--overhead must be a share"):
        _share(text)


def test_attach_starts_nothing() -> None:
    with pytest.raises(ConfigError, match="starts none"):
        _attach("run.json", ("train.py",), "auto", False)
