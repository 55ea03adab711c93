"""How training scripts are run, in the process and from the shell, and what is said of those that cannot be judged."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.optim import optimizer

from gradcheck.capture.detect import is_script
from gradcheck.errors import TargetError
from gradcheck.loading.importing import TrainsWhenImported
from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.types.report import Report
from sample_models.catalogue import README, read
from tests.scripts import DATA, LOOP, complaints, scan, written

SCRIPTS = README.parent / "scripts"
FAULTY = [read(path) for path in sorted((SCRIPTS / "faulty").glob("*.py"))]
faulty = pytest.mark.parametrize("sample", FAULTY, ids=lambda s: s.path.stem)


RUN = """
import atexit, helper, sys, os
assert __name__ == "__main__" and __file__.endswith("train.py") and sys.modules["__main__"].__dict__ is globals()
assert sys.argv[1:] == ["--lr", "0.5"] and helper.here
assert sys.stdin.read() == ""
print("cwd", os.path.basename(os.getcwd()))
atexit.register(print, "at exit")
try:
    while True:
        try:
BODY
        except Exception:
            print("not to be caught")
finally:
    print("finally")
"""


def test_the_script_runs_as_python_would_run_it(tmp_path, monkeypatch, capsys):
    before, after = RUN.split("BODY")
    body = textwrap.indent((DATA + LOOP).replace("def net(): return", "net = lambda:"), " " * 12)
    path = written(tmp_path, before + body + after)
    (tmp_path / "helper.py").write_text("here = True\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = list(sys.argv), list(sys.path), sys.modules["__main__"], sys.stdin, dict(os.environ)
    (report,) = scan(path, "--lr", "0.5", steps=5)
    assert (list(sys.argv), list(sys.path), sys.modules["__main__"], sys.stdin, dict(os.environ)) == before
    loop = report.measurement.loop
    assert loop is not None and loop.steps == 5 and loop.ended == "stopped"
    out = capsys.readouterr().err
    assert "cwd elsewhere" in out and "not to be caught" not in out
    assert out.index("finally") < out.index("at exit")


def test_nothing_is_left_in_the_folder_and_checkpoints_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = DATA + LOOP + "    torch.save(model.state_dict(), 'last.pt')\n    model.load_state_dict(torch.load('last.pt'))\n"
    path = written(tmp_path, text)
    assert complaints(scan(path)) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.py"]


def test_a_sandbox_is_a_copy_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rate.txt").write_text("0.5")
    text = "open('log.txt', 'w').write(open('rate.txt').read())\n" + DATA + LOOP.replace("        optimizer.zero_grad()\n", "")
    (report,) = scan(written(tmp_path, text), sandbox=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rate.txt", "train.py"]
    finding = next(f for f in report.findings if f.code == "GRAPH006")
    assert finding.location is not None and finding.location.path == "train.py"


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("import sys\nsys.exit('no data')\nloss.backward()\n", "ended itself before its first backward pass", 2),
        ("x = 1\nraise KeyError('path')\nloss.backward()\n", "failed before its first backward pass: KeyError: 'path'", 2),
        ("x = 1\n", "ended after", None),
        (DATA + LOOP + "    1 / 0\n", "failed after 8 steps: ZeroDivisionError", 26),
        (
            "import torch\nw = torch.ones(3, requires_grad=True)\nfor _ in range(20):\n    (w ** 2).sum().backward()\n"
            "    w -= 0.1 * w.grad\n",
            "a leaf Variable that requires grad",
            5,
        ),
        (
            "import torch\nw = torch.ones(3, requires_grad=True)\nfor _ in range(20):\n    (w ** 2).sum().backward()\n"
            "    w = w - 0.1 * w.grad\n",
            "failed after 0 steps: TypeError",
            5,
        ),
    ],
)
def test_what_cannot_be_judged_is_one_clear_error(text, message, line, tmp_path):
    with pytest.raises(TargetError) as caught:
        scan(written(tmp_path, text))
    assert message in caught.value.message and caught.value.hint
    assert line is None or (caught.value.location is not None and caught.value.location.line == line)


def test_a_script_that_trains_nothing_in_time_is_stopped(tmp_path):
    with pytest.raises(TargetError, match="no training was seen in"):
        scan(written(tmp_path, "import time\ntime.sleep(30)\n"), budget=0.3)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "import multiprocessing as mp\ndef train(): pass\np = mp.get_context('fork').Process(target=train)\np.start(); p.join()",
            "(train)",
        ),
        ("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'pass'])", "(python -c pass)"),
        ("from .data import batch\n", "gradcheck scan -- python -m PACKAGE.MODULE"),  # `-m train` would not know a parent, either
        ("import sys\nsys.exit('usage: train.py DATA')\n", "gradcheck scan train.py -- ARGUMENTS"),
        ("print('done')\n", "does it need arguments"),
    ],
)
def test_the_next_step_fits_what_kept_the_training_from_being_seen(text, hint, tmp_path, monkeypatch):
    written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError) as raised:
        scan(Path("train.py"))
    assert hint in raised.value.hint


def test_ctrl_c_goes_through(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        scan(written(tmp_path, "raise KeyboardInterrupt\n"))


# ---------------------------------------------------------------- from the shell


def gradcheck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    from gradcheck.cli import main

    monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_command_takes_a_script_and_its_arguments(tmp_path, monkeypatch, capsys):
    text = "import sys\nprint('arguments', sys.argv[1:])\n" + DATA + LOOP.replace("        optimizer.zero_grad()\n", "")
    path = written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    code, out, err = gradcheck(monkeypatch, capsys, "scan", path.name, "--steps", "20", "--", "--fail-on", "never")
    assert code == 1 and "gradients-not-cleared (GRAPH006) error" in out and "arguments" not in out
    assert "arguments ['--fail-on', 'never']" in err
    code, out, err = gradcheck(monkeypatch, capsys, "scan", path.name, "--steps", "20", "--quiet-script", "--exit-zero")
    assert code == 0 and "arguments" not in err


def test_a_file_that_trains_while_it_is_imported_is_run_as_a_script(tmp_path, monkeypatch, capsys):
    """Its text does not tell: it might be a library's training, of which only the import shows anything."""
    hidden = LOOP.replace("loss.backward()", "getattr(loss, 'back' + 'ward')()")
    hidden = hidden.replace("optimizer.step()", "getattr(optimizer, 'st' + 'ep')()")
    path = written(tmp_path, DATA + hidden)
    assert not is_script(str(path)) and "backward()" not in hidden and ".step()" not in hidden
    code, out, _ = gradcheck(monkeypatch, capsys, "scan", str(path))
    assert code == 0 and "No findings" in out and "synthetic" not in out
    code, _, err = gradcheck(monkeypatch, capsys, "scan", str(path), "--loss", "mse_loss")
    assert code == 2 and "--loss does not go with a training script" in err
    backward, hooks = torch.autograd.backward, dict(optimizer._global_optimizer_pre_hooks)
    with pytest.raises(TrainsWhenImported):
        load(TargetSpec(str(path)))
    assert torch.autograd.backward is backward and dict(optimizer._global_optimizer_pre_hooks) == hooks


def test_a_saved_run_holds_the_loop(tmp_path, monkeypatch, capsys):
    path = written(
        tmp_path, DATA + LOOP.replace("optimizer.step()", "nn.utils.clip_grad_norm_(model.parameters(), float('inf')); optimizer.step()")
    )
    gradcheck(monkeypatch, capsys, "scan", str(path), "--output", f"json:{tmp_path / 'run.json'}")
    saved = Report.load(tmp_path / "run.json").measurement.loop
    assert saved is not None and saved.clips[0].threshold == float("inf") and saved.steps == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [(["torch.nn:Linear", "--script"], "is not a script"), (["train.py", "--script", "--loss", "mse_loss"], "--loss does not go with")],
)
def test_flags_that_do_not_fit(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, DATA + LOOP)
    code, _, err = gradcheck(monkeypatch, capsys, "scan", *words)
    assert code == 2 and message in err


LOOKED_AT = """
import torch
from torch import nn
def optimizer_of(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 100)
optimizer, schedule = optimizer_of(nn.Linear(1, 1))
rates = []
for step in range(1000):
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    schedule.step()
torch.manual_seed(0)
model = nn.Linear(8, 3)
optimizer, schedule = optimizer_of(model)
for step in range(60):
    x = torch.randn(64, 8)
    loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
"""


def test_a_schedule_that_is_only_looked_at_is_no_training(tmp_path):
    (report,) = scan(written(tmp_path, LOOKED_AT))
    assert complaints([report]) == [] and report.measurement.loop.steps == 60


def test_steps_without_any_backward_pass_are_said(tmp_path):
    with pytest.raises(TargetError, match="took 1060 steps without a backward pass"):
        scan(written(tmp_path, LOOKED_AT.replace("    loss.backward()\n", "")))
