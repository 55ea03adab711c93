"""`gradcheck scan -- COMMAND`: the program is started as it would be without gradcheck, and scanned in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gradcheck.capture.script import captured
from gradcheck.cli import main as cli
from gradcheck.cli import program as scan_program
from gradcheck.errors import TargetError
from gradcheck.live import launched
from gradcheck.live.command import program_of
from gradcheck.live.launch import VARIABLE, Exit
from gradcheck.saved_run import load_all

TRAIN = """
import sys
import torch
from torch import nn
from .data import batch

print("start", __name__, __package__, __spec__.name, sys.argv[1:], flush=True)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(int(sys.argv[1])):
    x, y = batch()
    if "healthy" in sys.argv:
        optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    print("step", step, flush=True)
"""
DATA = """
import torch
torch.manual_seed(0)
def batch():
    x = torch.randn(64, 8)
    return x, (x.sum(1) > 0).long()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "train.py").write_text(TRAIN)
    (tmp_path / "package" / "data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_module_is_scanned_as_python_runs_it(folder: Path) -> None:
    words = ["--steps", "40", "--output", "concise", "--output", "json:run.json", "--", sys.executable, "-m", "package.train", "90"]
    done = subprocess.run([sys.executable, "-m", "gradcheck", "scan", *words], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("package/train.py:15:5: gradients-not-cleared (GRAPH006)") and "start" not in done.stdout
    assert "start __main__ package package.train ['90']" in done.stderr
    (report,) = load_all(folder / "run.json")
    assert report.target == "-m package.train" and report.measurement.loop is not None and report.measurement.loop.steps == 40
    assert report.seconds > 0 and sorted(p.name for p in folder.iterdir()) == ["package", "run.json"]


# ------------------------------------------------------------- in the program's process


@pytest.fixture
def process() -> Iterator[None]:
    """What the child changes for good, since its process ends with it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    path, words, main = list(sys.path), list(sys.argv), sys.modules["__main__"]
    yield
    sys.path[:], sys.argv[:], sys.modules["__main__"] = path, words, main
    for number, handler in handlers.items():
        signal.signal(number, handler)


def child(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0, **order: Any) -> list[dict[str, Any]]:
    """What a process that ends with an exit code says to its parent."""
    said = folder / "said"
    run = {"steps": None, "budget": None, "sandbox": False, "quiet": True}
    told = {"run": run, "config": [], "isolated": True, "flags": {"fast": True}, "pipe": str(said), "report": str(folder / "run.json")}
    told |= {"kind": "module", "what": "package.train", "arguments": ["90", "healthy"]}
    monkeypatch.setenv(VARIABLE, json.dumps(told | order))
    with pytest.raises(SystemExit) as ended:
        scan_program.main()
    assert ended.value.code == code
    return [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []


@pytest.mark.usefixtures("process")
def test_a_process_says_what_it_does_and_writes_its_reports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *ticks, end = child(folder, monkeypatch)
    phases = [tick["phase"] for tick in ticks]
    assert phases[:2] == ["importing torch", "running the script: no training step yet"] and end == {"kind": "end"}
    assert "running the script: step 8" in phases and "measuring: probe" in phases
    assert load_all(folder / "run.json")[0].exit_code() == 0


@pytest.mark.usefixtures("process")
def test_an_interrupt_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    (folder / "package" / "train.py").write_text(text)
    assert child(folder, monkeypatch, code=130)[-1] == {"kind": "end", "interrupted": True}


@pytest.mark.parametrize(
    ("end", "raised", "said"),
    [
        ({"interrupted": True}, KeyboardInterrupt, None),
        ({"error": "no training was seen", "hint": "x", "location": None}, TargetError, "no training was seen"),
        ({"failure": "ValueError: ours"}, TargetError, "gradcheck failed: ValueError: ours"),
        ({}, TargetError, "ended with exit code 3 before gradcheck could judge it"),
    ],
)
def test_what_a_process_says_is_what_the_parent_raises(end, raised, said, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched_instead(program, child, order, folder, streams, hear):
        hear({"kind": "tick", "phase": "measuring", "fraction": 0.5})
        hear({"kind": "end", **end})
        return Exit(3)

    monkeypatch.setattr(scan_program, "launch", launched_instead)
    phases = []
    with pytest.raises(raised, match=said):
        scan_program.scan_program(
            program_of([sys.executable, "-c", "1"]), scan_program.ProcessOrders({}, [], True, {}), lambda *x: phases.append(x)
        )
    assert phases == [("measuring", 0.5)]


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_speaks_and_all_take_the_same_steps(rank: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    steps = []

    @contextmanager
    def noting(*arguments: Any) -> Iterator[Any]:
        with captured(*arguments) as run:
            steps.append(max(len(w.steps) for w in run.recorder.optimizers.values()))
            yield run

    monkeypatch.setattr(import_module("gradcheck.pipeline"), "captured", noting)
    said = child(folder, monkeypatch, launched=True)
    assert bool(said) == (folder / "run.json").exists() == (rank == "0")
    assert steps == [32]


@pytest.mark.usefixtures("process")
def test_an_error_is_told_with_its_place_and_next_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "package" / "train.py").write_text("import torch\n\n\ndef main():\n    raise ValueError('mine')\n\n\nmain()\n")
    end = child(folder, monkeypatch)[-1]
    assert "ValueError: mine" in end["error"] and end["hint"]
    place = scan_program._location(end["location"])
    assert str(place) == "package/train.py:5:5" and not (folder / "run.json").exists()


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("launcher", "given"),
    [("torchrun", ["--standalone", "--nproc-per-node=2"]), ("accelerate launch", ["--cpu", "--num_processes", "1"])],
)
@pytest.mark.parametrize("module", [[], ["--module"]])
def test_a_launcher_is_given_its_options_and_our_module(launcher, given, module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if launcher.startswith("accelerate"):
        pytest.importorskip("accelerate")
    (folder / "train.py").touch()
    parse, launched_with = launched.LAUNCHERS[launcher]()[0], []
    monkeypatch.setitem(launched.LAUNCHERS, launcher, lambda: (parse, launched_with.append))
    what = "package.train" if module else "train.py"
    order = {"arguments": [*given, *module, what, "--nproc-per-node", "7"], "launcher": launcher, "start": "start.py"}
    monkeypatch.setenv(VARIABLE, json.dumps(order))
    launched.main()
    assert launched_with == [[*given, *module, "start.py"]]
    told = json.loads(os.environ[VARIABLE])
    assert (told["kind"], told["what"], told["arguments"]) == ("module" if module else "script", what, ["--nproc-per-node", "7"])


# ----------------------------------------------------------------- what does not go


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scan", "--"], "scan needs a command"),
        (["scan", "--lr", "0.1", "--", "train.py"], "--lr does not go with a command after --"),
        (["scan", "--input", "float32[2]", "--", "train.py"], "--input does not go with a command after --"),
        (["scan", "--fix", "--", "train.py"], "--fix does not go with a command after --"),
        (["scan", "--", "nowhere.py"], "there is no file nowhere.py"),
        (["scan", "--", "ls"], "ls is not a Python program"),
        (["fix", "--", "train.py"], "fix takes no command after --"),
        (["fix"], "no target"),
        (["trial", "model.py", "--", "train.py"], "trial takes nothing after --"),
    ],
)
def test_what_does_not_go_is_one_error(words, message, folder: Path, monkeypatch, capsys) -> None:
    (folder / "train.py").touch()
    monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and "help: " in said and "Traceback" not in said
