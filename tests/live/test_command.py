"""`gradcheck watch -- ...`: the program runs as it would, is followed on pipes and terminals, and is reported on."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import runpy
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gradcheck.errors import ConfigError
from gradcheck.live.command import program_of
from gradcheck.report.live import finding_line, line, plain_line
from gradcheck.types.gauges import Frame, LiveFinding
from gradcheck.types.report import Report

SCRIPT = """
import sys, time
import torch
from torch import nn
from torch.nn import functional as F

steps, faulty, crash, pause = int(sys.argv[1]), "faulty" in sys.argv, "crash" in sys.argv, "slow" in sys.argv
torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
for layer in (net[0], net[2]):
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
if faulty:
    nn.init.constant_(net[2].bias, -50.0)
opt = torch.optim.SGD(net.parameters(), lr=0.05)
x = torch.randn(1024, 20)
y = (x @ torch.randn(20, 5)).argmax(1)
print("begin", sys.stdout.isatty(), __name__, flush=True)
try:
    for i in range(steps):
        j = torch.randint(0, 1024, (64,))
        opt.zero_grad()
        loss = F.cross_entropy(net(x[j]), y[j])
        loss.backward()
        opt.step()
        time.sleep(0.01 * pause)
        if i == 5 and crash:
            raise ValueError("mine")
        if i == 8:
            print("underway", flush=True)
finally:
    print("cleaned up", flush=True)
print("sum", repr(sum(float(p.detach().double().sum()) for p in net.parameters())), flush=True)
print("to stderr", file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def gradcheck(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gradcheck", "watch", *words], cwd=cwd, capture_output=True, text=True, timeout=120)


def said_unwatched(script: Path, *words: str) -> str:
    """What the program prints by itself, here: torch is loaded already."""
    said, threads = io.StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), torch.random.fork_rng():
        patch.setattr(sys, "argv", [script.name, *words])
        runpy.run_path(str(script), run_name="__main__")
    torch.set_num_threads(threads)
    return said.getvalue()


def test_a_program_on_pipes(script: Path) -> None:
    bare = said_unwatched(script, "60")
    done = gradcheck("--every", "50", "--output", "concise", "--", sys.executable, "train.py", "60", cwd=script.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(bare)  # the same weights, to the last digit, and its own lines undamaged
    assert done.stdout.removeprefix(bare).startswith("No findings")
    assert "gradcheck: step 60: loss" in done.stderr and "to stderr\n" in done.stderr
    saved = Report.load(script.parent / ".gradcheck" / "last.json")
    assert saved.measurement.steps == 60 and saved.measurement.measured_steps == (0, 1, 2, 3, 50)
    assert saved.target == "train.py"
    assert sorted(p.name for p in script.parent.iterdir()) == [".gradcheck", "train.py"]


def test_stop_on_ends_it_from_within(script: Path) -> None:
    words = ("--stop-on", "error", "--save", "run.json", "--output", "concise", "--", "train.py", "5000", "faulty")
    done = gradcheck(*words, cwd=script.parent)
    assert done.returncode == 1
    assert "cleaned up" in done.stdout and "sum" not in done.stdout
    assert re.search(r"^train.py:10:\d+: dead-units \(ACT002\)", done.stdout, re.MULTILINE)
    assert Report.load(script.parent / "run.json").measurement.steps < 500


def test_a_crash_is_the_programs_own(script: Path) -> None:
    done = gradcheck("--no-save", "--exit-zero", "--output", "concise", "--", "train.py", "60", "crash", cwd=script.parent)
    assert done.returncode == 1
    assert done.stdout.count("cleaned up") == 1 and "No findings" in done.stdout
    trace = done.stderr[done.stderr.index("Traceback") :]
    assert 'raise ValueError("mine")' in trace and "ValueError: mine" in trace and "gradcheck/live" not in trace
    assert not (script.parent / ".gradcheck").exists()


def test_an_interrupt_is_the_programs_own(script: Path) -> None:
    command = [sys.executable, "-m", "gradcheck", "watch", "--output", "concise", "--", sys.executable, "train.py", "100000", "slow"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=script.parent, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None
    seen = ""
    while "underway" not in seen:
        text = process.stdout.readline()
        assert text, process.communicate()[1]
        seen += text
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cleaned up" in rest and "No findings" in rest
    assert errors.count("KeyboardInterrupt") == 1
    assert Report.load(script.parent / ".gradcheck" / "last.json").measurement.steps >= 8


def test_a_program_on_a_terminal(script: Path) -> None:
    own, theirs = pty.openpty()
    command = [sys.executable, "-m", "gradcheck", "watch", "--no-save", "--output", "concise", "--", "train.py", "150", "slow"]
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    process = subprocess.Popen(command, cwd=script.parent, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 100
    while time.monotonic() < deadline:
        if not select.select([own], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(own, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(own)
    assert process.wait(timeout=100) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for wanted in ("begin True __main__", "underway", "cleaned up", "to stderr", "steps/s", "loss", "gradient", "No findings"):
        assert wanted in text, text[-2000:]
    assert text.index("cleaned up") < text.index("No findings")


def test_what_trains_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("print('hello')\n")
    done = gradcheck("--", "hello.py", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "hello\n"
    assert "error: no training was seen" in done.stderr and "help:" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["hello.py"]


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").touch()
    python = sys.executable
    assert program_of(["t.py", "-x"]).arguments == ("-x",)
    found = program_of([python, "-u", "-X", "dev", "t.py", "--", "a"])
    assert (found.interpreter, found.options, found.what, found.arguments) == (python, ("-u", "-X", "dev"), "t.py", ("--", "a"))
    found = program_of([python, "-m", "pkg.train", "-m", "b"])
    assert (found.kind, found.what, found.arguments) == ("module", "pkg.train", ("-m", "b"))
    assert program_of([python, "-c", "pass"]).kind == "code"
    launchers = {
        "torchrun": ["torch.distributed.run"],
        "accelerate launch": ["accelerate.commands.launch"],
        "accelerate launch ": ["accelerate.commands.accelerate_cli", "launch"],
    }
    for name, words in launchers.items():
        found = program_of([python, "-m", *words, "--nproc-per-node=2", "t.py", "a"])
        assert (found.launcher, found.interpreter, found.arguments) == (name.strip(), python, ("--nproc-per-node=2", "t.py", "a"))


HERE = f"#!{sys.executable}\nimport tune\n"
LONG = f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\nimport tune\n"


@pytest.mark.parametrize(
    ("words", "text", "launcher", "arguments"),
    [
        (("tune", "a", "-b"), HERE, "", ("a", "-b")),
        (("tune", "a"), LONG, "", ("a",)),
        (("torchrun", "-n", "t.py"), HERE, "torchrun", ("-n", "t.py")),
        (("accelerate", "launch", "t.py", "x"), HERE, "accelerate launch", ("t.py", "x")),
        (("accelerate-launch", "t.py"), LONG, "accelerate launch", ("t.py",)),
        (("accelerate", "env"), HERE, "", ("env",)),
    ],
)
def test_commands_that_an_installer_wrote(words, text, launcher, arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / words[0]
    command.write_text(text)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = program_of(words)
    assert (found.interpreter, found.options, found.launcher, found.arguments) == (sys.executable, (), launcher, arguments)
    assert launcher or (found.kind, found.what) == ("script", str(command))


@pytest.mark.parametrize(("text", "said"), [("", "there is no command torchrun"), ("\x7fELF", "does not say which Python")])
def test_a_launcher_that_no_python_runs_is_refused(text, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text:
        (tmp_path / "torchrun").write_text(text)
        (tmp_path / "torchrun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=said):
        program_of(["torchrun", "t.py"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a command"),
        (["ls", "-l"], "ls is not a Python program"),
        (["no-such-command"], "no-such-command is not a Python program"),
        (["nb.ipynb"], "nb.ipynb is a notebook"),
        (["nowhere.py"], "there is no file nowhere.py"),
        ([sys.executable], "names no script"),
        ([sys.executable, "-m"], "needs a module"),
        (["python0.1", "t.py"], "there is no command python0.1"),
    ],
)
def test_other_commands_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        program_of(words)
    assert caught.value.hint


def test_lines() -> None:
    frame = Frame(150, 0.4519, norm=1.25, update=0.008, rate=1e-3, speed=12.34, overhead=0.014)
    assert plain_line(frame) == "step 150: loss 0.452, gradient 1.25, update 0.8 %, rate 0.001, 12.3 steps/s, overhead 1 %"
    finding = LiveFinding("error", "ACT002", "dead-units", "64 of 64", "t.py:3:4")
    assert finding_line(finding) == "t.py:3:4: error: dead-units (ACT002) 64 of 64"
    assert line([1.0, 2.0, float("nan"), 3.0]) == "▁▅!█"
