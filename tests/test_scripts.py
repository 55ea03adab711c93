"""Training scripts, run and judged: the samples, other spellings of the same faults, and healthy scripts of many kinds."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.optim import optimizer

from gradcheck.capture.detect import is_script
from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.loading.load import load
from gradcheck.loading.no_training import TrainsWhenImported
from gradcheck.loading.spec import TargetSpec
from gradcheck.types.report import Report
from sample_models.catalogue import README, Sample, read
from tests.test_sample_models import changed_lines

SCRIPTS = README.parent / "scripts"
FAULTY = [read(path) for path in sorted((SCRIPTS / "faulty").glob("*.py"))]
faulty = pytest.mark.parametrize("sample", FAULTY, ids=lambda s: s.path.stem)

DATA = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (512,))
inputs = means[labels] + torch.randn(512, 32)
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


def net(): return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))


model = net()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
"""
LOOP = """
for epoch in range(8):
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small tensors gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def twin(sample: Sample) -> Path:
    return SCRIPTS / "healthy" / sample.path.name


def scan(path: Path, *arguments: str, **how: object) -> list[Report]:
    from gradcheck.pipeline import scan_script

    return scan_script(ScriptSpec(str(path), arguments, **how), Settings())  # type: ignore[arg-type]


def complaints(reports: list[Report]) -> list[str]:
    found = [f"{f.severity} {f.code}: {f.message}" for r in reports for f in r.findings if f.severity != "info"]
    return found + [f"judged in part: {r.coverage.reasons}" for r in reports if r.coverage.in_part]


def codes(reports: list[Report]) -> set[str]:
    assert not [s for r in reports for s in r.rules if s.status == "crashed"]
    return {f.code for r in reports for f in r.findings}


def written(folder: Path, text: str) -> Path:
    path = folder / "train.py"
    path.write_text(textwrap.dedent(text))
    return path


# ----------------------------------------------------------------- the samples


@faulty
def test_twins_differ_by_one_line(sample):
    removed, added = changed_lines(sample.path.read_text(encoding="utf-8"), twin(sample).read_text(encoding="utf-8"))
    assert removed <= 1 and added <= 1 and removed + added >= 1


@faulty
def test_a_scan_finds_what_is_wrong_with_the_loop(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports = scan(sample.path)
    found = {(f.name, f.code, f.severity) for r in reports for f in r.findings}
    assert {(e.name, e.code, e.severity) for e in sample.expected} <= found
    headline = next(f for r in reports for f in r.headlines if f.code == sample.expected[0].code)
    assert headline.location is not None and Path(headline.location.path).name == sample.path.name


@faulty
def test_a_scan_leaves_the_healthy_twin_in_peace(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaints(scan(twin(sample))) == []
    assert list(tmp_path.iterdir()) == []


def test_every_script_has_its_twin_and_stands_in_the_readme():
    assert {p.name for p in (SCRIPTS / "healthy").glob("*.py")} == {s.path.name for s in FAULTY}
    text = README.read_text(encoding="utf-8")
    assert all(f"scripts/faulty/{s.path.name}" in text for s in FAULTY) and len(FAULTY) >= 8


# ------------------------------------------------------------ what cannot be repeated

COUNTING = """
calls = []
class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, x):
        calls.append(1)
        return self.inner(x) * (1 + STEP * len(calls))
model = Counting(model)
"""
UNREPEATABLE = {
    "a gradient is given": LOOP.replace("loss.backward()", "loss.expand(2).backward(torch.full((2,), 0.5))"),
    "the loss depends on how often it was computed": COUNTING.replace("STEP", "0.1") + LOOP,
}


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_a_training_that_cannot_be_repeated_is_judged_in_part(tmp_path, name):
    (report,) = scan(written(tmp_path, DATA + UNREPEATABLE[name]))
    part = report.coverage
    assert part.in_part and report.exit_code() == 2 and part.looked < 10 < part.applicable
    (reason,) = part.reasons
    assert reason.startswith("could not repeat the training step: ") and "Error" not in reason
    (remedy,) = part.remedies
    assert "gradcheck watch -- python " in remedy and str(tmp_path) in remedy
    assert {s.code for s in report.rules if s.status == "passed"} >= {"GRAPH001", "GRAPH003", "GRAPH006", "LOOP003", "LOOP005"}
    assert {s.code: s.status for s in report.rules}["GRAPH002"] == "not-measured", "only what the steps showed is passed"


def test_the_same_script_that_can_be_repeated_is_judged_in_full(tmp_path):
    (report,) = scan(written(tmp_path, DATA + COUNTING.replace("STEP", "0") + LOOP))
    assert not report.coverage.in_part and report.exit_code() == 0


# --------------------------------------------------------------- other spellings

FAULTS = {
    "gradients cleared before the step": (
        "GRAPH006",
        LOOP.replace("        optimizer.step", "        model.zero_grad()\n        optimizer.step"),
    ),
    "optimizer before the model was changed": ("GRAPH003", "model[3] = nn.Linear(64, 10)" + LOOP),
    "optimizer of a model that was copied": ("GRAPH003", "import copy\nmodel = copy.deepcopy(model)" + LOOP),
    "forward pass without gradient": (
        "GRAPH001",
        LOOP.replace(
            "loss = F.cross_entropy(model(x), y)", "with torch.no_grad(): o = model(x)\n        loss = F.cross_entropy(o, y)"
        ).replace("loss.backward()", "loss.requires_grad_().backward()"),
    ),
    "clipping of an iterator that is used up": (
        "LOOP002",
        "weights = model.parameters(); optimizer = torch.optim.Adam(weights, 2e-3)"
        + LOOP.replace("        optimizer.step", "        nn.utils.clip_grad_norm_(weights, 1.0); optimizer.step"),
    ),
    "clipping before the backward pass": (
        "LOOP002",
        LOOP.replace("        loss.backward()", "        nn.utils.clip_grad_norm_(model.parameters(), 1.0); loss.backward()"),
    ),
    "clipping of another model": (
        "LOOP002",
        "other = net()"
        + LOOP.replace("        optimizer.step", "        nn.utils.clip_grad_norm_(other.parameters(), 1.0); optimizer.step"),
    ),
    "evaluation mode from the start": ("LOOP003", "model.insert(1, nn.BatchNorm1d(64)); model.eval()" + LOOP),
    "a rate that explodes": (
        "LOOP004",
        "schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1.5)"
        + LOOP.replace("optimizer.step()", "optimizer.step(); schedule.step()"),
    ),
    "a batch from before the loop": ("LOOP005", "x, y = next(iter(loader))" + LOOP.replace("for x, y in loader:", "for _ in range(8):")),
    "a slice that does not move": (
        "LOOP005",
        "x, y = inputs[:32], labels[:32]" + LOOP.replace("for x, y in loader:", "for _ in range(8):"),
    ),
    "accumulation divided by another number": (
        "LOOP006",
        LOOP.replace("for x, y in loader:", "for i, (x, y) in enumerate(loader, 1):")
        .replace("        optimizer.zero_grad()\n", "")
        .replace("loss = F.cross_entropy(model(x), y)", "loss = F.cross_entropy(model(x), y) / 8")
        .replace("        optimizer.step()", "        if i % 2 == 0:\n            optimizer.step(); optimizer.zero_grad()"),
    ),
    "a scaled loss and a plain step": (
        "LOOP007",
        "scaler = torch.amp.GradScaler('cpu')" + LOOP.replace("loss.backward()", "scaler.scale(loss).backward()"),
    ),
    "a scaler without update": (
        "LOOP007",
        "scaler = torch.amp.GradScaler('cpu')"
        + LOOP.replace("loss.backward()", "scaler.scale(loss).backward()").replace("optimizer.step()", "scaler.step(optimizer)"),
    ),
    "targets that broadcast": (
        "LOSS002",
        "model[3] = nn.Linear(64, 1); optimizer = torch.optim.Adam(model.parameters(), 2e-3)"
        + LOOP.replace("F.cross_entropy(model(x), y)", "F.mse_loss(model(x), y.float())"),
    ),
    "labels beyond the last class": (
        "LOSS002",
        "model[3] = nn.Linear(64, 9); optimizer = torch.optim.Adam(model.parameters(), 2e-3)" + LOOP,
    ),
    "an update by hand at a rate of two hundred": (
        "OPT001",
        LOOP.replace("optimizer.zero_grad()", "model.zero_grad()").replace(
            "optimizer.step()", "for p in model.parameters(): p.data.add_(p.grad, alpha=-200.0)"
        ),
    ),
    "an update by hand with the wrong sign": (
        "GRAPH004",
        LOOP.replace("optimizer.zero_grad()", "model.zero_grad()").replace(
            "optimizer.step()", "for p in model.parameters(): p.data += 0.1 * p.grad"
        ),
    ),
    "an update by hand of gradients that are never cleared": (
        "GRAPH006",
        LOOP.replace("        optimizer.zero_grad()\n", "").replace(
            "optimizer.step()", "for p in model.parameters(): p.data.add_(p.grad, alpha=-0.05)"
        ),
    ),
    "an optimizer made in the loop": (
        "LOOP009",
        LOOP.replace("optimizer.zero_grad()", "optimizer = torch.optim.Adam(model.parameters(), 2e-3); optimizer.zero_grad()"),
    ),
    "a rate of a hundred": ("OPT001", "optimizer = torch.optim.SGD(model.parameters(), 100.0)" + LOOP),
}

HEALTHY = {
    "plain": LOOP,
    "a warm-up from zero": "schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / 20))"
    + LOOP.replace("optimizer.step()", "optimizer.step(); schedule.step()"),
    "one cycle": "schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=64)"
    + LOOP.replace("optimizer.step()", "optimizer.step(); schedule.step()"),
    "frozen body in evaluation mode": """
        body, head = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2)), nn.Linear(64, 10)
        body.requires_grad_(False)
        body.eval()
        optimizer = torch.optim.Adam(head.parameters(), 1e-2)
        for epoch in range(8):
            for x, y in loader:
                loss = F.cross_entropy(head(body(x)), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        """,
    "all data in each step": LOOP.replace("for x, y in loader:", "for x, y in [(inputs, labels)] * 5:"),
    "gradients set to None by hand": LOOP.replace("        optimizer.zero_grad()", "        for p in model.parameters(): p.grad = None"),
    "clearing at the end": LOOP.replace("        optimizer.zero_grad()\n", "").replace(
        "optimizer.step()", "optimizer.step(); optimizer.zero_grad()"
    ),
    "half precision": LOOP.replace(
        "loss = F.cross_entropy(model(x), y)", "with torch.autocast('cpu', torch.bfloat16): loss = F.cross_entropy(model(x), y)"
    ),
    "validation": LOOP + "    model.eval()\n    with torch.no_grad(): print(F.cross_entropy(model(inputs), labels))\n    model.train()\n",
    "two losses of one step": LOOP.replace(
        "loss.backward()", "loss.backward(retain_graph=True)\n        (1e-3 * sum(p.abs().sum() for p in model.parameters())).backward()"
    ),
    "actor and critic": """
        actor, critic = nn.Linear(32, 2), nn.Linear(32, 1)
        of_actor, of_critic = torch.optim.Adam(actor.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-2)
        for step in range(60):
            states = torch.randn(64, 32)
            choice = torch.distributions.Categorical(logits=actor(states))
            action = choice.sample()
            reward = ((states[:, 0] > 0) == (action == 1)).float()
            value = critic(states).squeeze(1)
            policy_loss = -(choice.log_prob(action) * (reward - value).detach()).mean()
            of_actor.zero_grad(); policy_loss.backward(); of_actor.step()
            of_critic.zero_grad(); F.mse_loss(value, reward).backward(); of_critic.step()
        """,
    "LBFGS": """
        model = nn.Linear(32, 10)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        def closure():
            optimizer.zero_grad(); loss = F.cross_entropy(model(inputs), labels); loss.backward(); return loss
        for step in range(10): optimizer.step(closure)
        """,
    "an update by hand": LOOP.replace("        optimizer.zero_grad()", "        model.zero_grad()").replace(
        "optimizer.step()", "for p in model.parameters(): p.data.add_(p.grad, alpha=-0.2)"
    ),
    "tensors of no module": """
        w = torch.zeros(32, 10, requires_grad=True)
        for step in range(200):
            loss = F.cross_entropy(inputs @ w, labels)
            loss.backward()
            with torch.no_grad():
                w -= 0.5 * w.grad
                w.grad.zero_()
        """,
    "compiled, with workers": "model = torch.compile(model)\nloader = DataLoader(TensorDataset(inputs, labels), 64, True, num_workers=1)"
    + LOOP,
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own words about the faults
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_script_gets_its_code(name, tmp_path):
    code, text = FAULTS[name]
    assert code in codes(scan(written(tmp_path, DATA + textwrap.dedent(text))))


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_script_gets_neither_error_nor_warning(name, tmp_path):
    assert complaints(scan(written(tmp_path, DATA + textwrap.dedent(HEALTHY[name])))) == []


def test_all_that_a_script_trains_is_replayed(tmp_path):
    """None of the healthy scripts is judged by what it showed alone."""
    (report,) = scan(written(tmp_path, DATA + LOOP))
    assert len(report.layers) == 5 and report.measurement.loop is not None and report.measurement.loop.steps == 64
    assert report.measurement.probe.losses[0] == pytest.approx(report.measurement.loop.losses[0], rel=0.1)  # but for the dropout


# ------------------------------------------------------------------ how it is run

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
        ("from .data import batch\n", "gradcheck scan -- python -m train"),
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
