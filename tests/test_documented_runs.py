"""What the README and the documents show is run as it stands there, in a folder like a user's; with --slow, what takes longer, too.

Commands get a small budget where they take one. What is not run has its reason in `NOT_RUN`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from gradcheck.report.baseline_file import write as write_baseline
from gradcheck.saved_run import write_text
from gradcheck.types.report import Report
from tests.literals import loop, measurement
from tests.logs.writers import csv, falling, trainer_state
from tests.test_documented_commands import PAGES, ROOT, blocks, commands

NOT_RUN = {
    "python -m pip": "needs the network",
    "gradcheck mcp": "waits for a client: tests/integrations/test_mcp.py",
    "gradcheck server": "waits for a client: tests/integrations/test_lsp.py",
    "-- tune run recipe": "a console script of torchtune",
    "accelerate launch": "needs accelerate: tests/test_programs.py",
    "--search bayes": "needs Optuna: tests/trials/test_search.py",
    "gradcheck trial sample_models": "minutes of training: the tables of docs/trial.md are made with it",
    "gradcheck trial model.py --folds": "as the other trials",
    "gradcheck trial model.py --remedy": "as the other trials",
    "gradcheck bisect": "two programs, each run several times: tests/bisect",
    "--attach": "needs a run that is going on: tests/live/test_record_file.py",
    "--replay": "needs a spike that was kept: tests/live/test_spikes.py",
}
TAKES_A_BUDGET = {"scan": 20, "fix": 10, "trial": 6}
# What a snippet may take for granted: the user's own.
OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
Encoder, device, loss_fn = Net, "cpu", nn.functional.cross_entropy
torch.manual_seed(0)
x = torch.randn(64, 8)
dataset = TensorDataset(x, x.argmax(1) % 3)
loader, model = DataLoader(dataset, batch_size=16), Net()
batches = list(loader)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
def train():
    for x, y in loader:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
"""
TRAIN = (
    OWN
    + """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
for epoch in range(parser.parse_args().epochs):
    train()
"""
)
MODEL = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)))
        self.head = nn.Linear(8, 3)
    def forward(self, x):
        return self.head(self.body(x).relu())
x = torch.randn(64, 8)
batches = [(x[i : i + 16], x[i : i + 16].argmax(1) % 3) for i in range(0, 64, 16)]
def make_batch():
    return batches[0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A project as the documents take it for granted."""
    here = tmp_path_factory.mktemp("project")
    (here / "package").mkdir()
    (here / "src").mkdir()
    (here / "output_dir").mkdir()
    for path, text in {
        "train.py": TRAIN,
        "package/__init__.py": "",
        "package/train.py": TRAIN,
        "model.py": f"{MODEL}model = Net()\n",
        "src/encoder.py": f"{MODEL}def build_encoder():\n    return Net()\n",
        "src/tiny.py": MODEL.replace("class Net", "class Tiny"),
        "pyproject.toml": next(t for t in blocks(ROOT / "docs" / "targets.md", "toml")),
    }.items():
        (here / path).write_text(text)
    (here / "sample_models").symlink_to(ROOT / "sample_models")
    for name in ("run", "before", "after"):
        write_text(here / f"{name}.json", Report("model.py", (), (), (measurement(loop=loop()),)).to_json())
    columns = {"step": list(range(200)), "objective": falling()}
    for name in ("run", "base", "head"):
        csv(here / f"{name}.csv", columns if name == "run" else {"step": columns["step"], "loss": falling(seed=len(name))})
    trainer_state(here / "output_dir" / "trainer_state.json", {"loss": falling()})
    return here


def lines() -> list[object]:
    """Each documented command once, without those that are not run."""
    every = dict.fromkeys(str(p.values[0]).partition("#")[0].strip() for p in commands())
    return [pytest.param(line, id=line) for line in every if not any(part in line for part in NOT_RUN)]


@pytest.mark.parametrize("line", lines())
def test_a_command_runs(line, folder):
    """To an answer: findings are one, and so is a run that was judged in part."""
    words = shlex.split(line)[1:]
    budget = TAKES_A_BUDGET.get(words[0]) if words else None
    if budget:
        words[1:1] = ["--budget", str(budget), *(["--allow-partial"] if words[0] != "trial" else [])]
    words = [sys.executable if word == "python" else word for word in words]
    if words[:1] == ["baseline"]:
        (folder / ".gradcheck-baseline.json").unlink(missing_ok=True)
        if words[1] != "create":
            write_baseline(folder / ".gradcheck-baseline.json", [])
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    if "torchrun" in words and shutil.which("torchrun", path=Path(sys.executable).parent) is None:
        pytest.skip("torchrun is not beside this Python")
    environment |= {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}
    run = subprocess.run(
        [sys.executable, "-m", "gradcheck", *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stderr[-2000:]
    assert "Traceback" not in run.stderr and (run.stdout or run.stderr)


def test_reasons_are_of_commands_that_are_there():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [part for part in NOT_RUN if part not in text] == []


def snippets() -> list[object]:
    found = []
    for page in PAGES:
        for i, text in enumerate(blocks(page, "python", "py")):
            if "accelerate" not in text:  # tests/integrations/test_guide.py
                found.append(pytest.param(text, id=f"{page.name} {i}"))
    return found


@pytest.mark.parametrize("text", snippets())
def test_a_snippet_runs(text, tmp_path, monkeypatch):
    """With the user's own model, data and loop, and nothing else."""
    for module in ("lightning", "transformers", "tensorboard"):
        if re.search(rf"^from (torch\.utils\.)?{module}\b", text, re.MULTILINE):
            pytest.importorskip(module)
    if "notebook" in text:
        pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "snippet"}
    exec(compile(OWN, "own", "exec"), names)
    import torch

    names |= {"module": names["model"], "data": [{"input": x, "label": y} for x, y in names["dataset"]]}
    if "DistributedDataParallel" in text or "fully_shard(" in text:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        if "transformers" in text or "lightning" in text:
            text = text.partition("\ntrainer")[0]  # the trainings are tests/integrations/test_callbacks.py
        exec(compile(text, "snippet", "exec"), names)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if "run.json" in text:
        assert json.loads((tmp_path / "run.json").read_text())


def test_the_test_of_the_ci_page_runs(tmp_path):
    """It is a user's test file, with the plugin."""
    (text,) = [t for t in blocks(ROOT / "docs" / "ci.md", "python") if "def test_" in t]
    (tmp_path / "test_model.py").write_text(OWN + text)
    installed = any(point.name == "gradcheck" for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "gradcheck.integrations.pytest_plugin"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "test_model.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "1 passed" in run.stdout, run.stdout[-2000:]
