"""The commands on an accelerator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.nn import functional as F
from typer.testing import CliRunner

import gradcheck
from gradcheck.cli.app import app
from tests.device import pretend, programs

DEVICE = pretend.NAME
MODEL = """
import torch
from torch import nn
from torch.nn import functional as F

model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(6, 6), nn.Sigmoid())], nn.Linear(6, 3))
torch.manual_seed(0)
x = torch.randn(64, 6)
data = [(x[i : i + 16], (x[i : i + 16].sum(1) > 0).long()) for i in range(0, 64, 16)]
loss = F.cross_entropy
"""


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1), done.output
    return done.stdout


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return str(path)


def test_scan(model_file: str) -> None:
    found = []
    for device in ("cpu", DEVICE):
        said = json.loads(run("scan", model_file, "--device", device, "--output", "json", "--steps", "10", "--budget", "600"))
        assert said["measurements"][0]["environment"]["device"].startswith(device)
        found.append(sorted((f["code"], f["severity"]) for f in said["findings"]))
    assert found[0] == found[1] != []


@pytest.mark.parametrize("command", ["scan", "fix", "trial"])
def test_an_absent_device(command: str, model_file: str) -> None:
    done = CliRunner().invoke(app, [command, model_file, "--device", "xpu"])
    assert done.exit_code == 2
    assert "there is no device xpu" in done.output and "--device cpu or auto" in done.output


def test_fix() -> None:
    kept = []
    for device in ("cpu", DEVICE):
        model, batches, optimizer = programs.training("doubled", device)
        fixed = gradcheck.fix(model, batches, loss=F.cross_entropy, optimizer=optimizer, steps=20, budget=600)
        kept.append([(o.prescription.treatment, o.status) for o in fixed.outcomes])
        assert {p.device.type for p in fixed.model.parameters()} == {device}
    assert kept[0] == kept[1]
    assert any(status == "kept" for _, status in kept[1])


def test_trial() -> None:
    """With dropout: both arms of a pair draw the same numbers on the device, too."""
    found = []
    for device in ("cpu", DEVICE):
        model, batches, optimizer = programs.training("mlp", device, rate=1e-4)
        result = gradcheck.trial(
            model, batches, loss=F.cross_entropy, optimizer=optimizer, remedies=["l2"], steps=10, seeds=3, budget=600, workers=1
        )
        found.append(result)
    here, there = found
    assert there.recommended == here.recommended
    assert [e.name for e in there.entries] == [e.name for e in here.entries]


def test_fix_of_a_file(model_file: str) -> None:
    found = []
    for device in ("cpu", DEVICE):
        said = json.loads(run("fix", model_file, "--device", device, "--output", "json", "--steps", "20", "--budget", "600"))
        assert said["measurements"][0]["environment"]["device"].startswith(device)
        outcomes = [(o["prescription"]["treatment"], o["status"]) for o in said["outcomes"]]
        found.append((sorted((f["code"], f["severity"]) for f in said["findings"]), outcomes))
    assert found[0] == found[1] != ([], [])


def test_trial_of_a_file(model_file: str) -> None:
    found = []
    for device in ("cpu", DEVICE):
        words = ["--remedy", "l2", "--steps", "10", "--seeds", "3", "--budget", "600", "--workers", "1", "--output", "json"]
        said = json.loads(run("trial", model_file, "--device", device, *words))
        found.append((said["trial"]["recommended"], [e["name"] for e in said["trial"]["entries"]]))
    assert found[0] == found[1]


def test_watch() -> None:
    """A program chooses its device itself: `watch` takes it as it is."""
    found = []
    for device in ("cpu", DEVICE):
        model, batches, optimizer = programs.training("doubled", device)
        with gradcheck.watch(model, optimizer, every=5) as board:
            for x, y in batches * 4:
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        report = board.report()
        found.append(sorted((f.code, f.severity) for f in report.findings))
        assert report.measurements[0].environment.device.startswith(device)
    assert found[0] == found[1] and ("GRAPH006", "error") in found[0]
