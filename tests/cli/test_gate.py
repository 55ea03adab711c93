"""The gate in a CI run that is played through with real scans: baseline, harmless change, fault, repair, prune."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest

from gradcheck.cli import main
from gradcheck.report.baseline_file import NAME
from gradcheck.saved_run import dumps
from gradcheck.types.measurement import NotMeasured
from tests.literals import measurement
from tests.report.reports import FAULTY, IN_PART, report

BLIND_TO_LOSSES = measurement(not_measured=tuple(NotMeasured(n, "could not repeat the training step") for n in ("losses", "graph")))

CONFIG = """\
[tool.gradcheck]
fast = true
select = ["LOSS001", "GRAPH002", "META"]
[tool.gradcheck.targets.net]
model = "net.py"
"""

# A softmax before cross_entropy: an error that this project lives with.
NET = """\
import torch
from torch import nn

torch.manual_seed(0)
batch = (torch.randn(64, 16), torch.randint(0, 4, (64,)))
loss_fn = nn.CrossEntropyLoss()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.hidden(x))
        return torch.softmax(self.head(x), dim=-1)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)
"""
HARMLESS = NET.replace("class Net", "# A line more.\nWIDTH = 16\n\n\nclass Net").replace("(16, 16)", "(16, WIDTH)")
FAULT = HARMLESS.replace("        self.hidden =", "        self.blocks = [nn.Linear(16, 16)]\n        self.hidden =").replace(
    "self.hidden(x))", "self.hidden(self.blocks[0](x)))"
)
REPAIRED = HARMLESS.replace("return torch.softmax(self.head(x), dim=-1)", "return self.head(x)")


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    """Runs the command in a project: `run(source, *words)` gives (exit code, stdout, stderr)."""
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(source, *words):
        (tmp_path / "net.py").write_text(source)
        monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
        code = 0
        try:
            main.main()
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_project_through_its_days(project, tmp_path):
    scan = ("scan", "--output", "github")
    code, out, _ = project(NET, *scan)
    assert code == 1 and "output-loss-mismatch (LOSS001)" in out

    code, out, _ = project(NET, "baseline", "create")
    assert code == 0 and out == f"{NAME}: 1 known finding\n"
    (entry,) = json.loads((tmp_path / NAME).read_text())["findings"]
    assert entry["finding"].startswith("output-loss-mismatch:net.py:Net.forward:") and entry["target"] == "net.py"

    code, out, err = project(HARMLESS, *scan)
    assert code == 0, out + err
    assert "::" not in out and "1 known" in out

    code, out, _ = project(FAULT, *scan)
    (annotation,) = (line for line in out.splitlines() if line.startswith("::"))
    line = 1 + FAULT.splitlines().index("        self.blocks = [nn.Linear(16, 16)]")
    assert code == 1 and re.match(rf"::error title=unregistered-modules \(GRAPH002\),file=net.py,line={line},", annotation)

    code, out, _ = project(REPAIRED, *scan)
    assert code == 1 and f"title=stale-baseline (META003),file={NAME},line=4," in out
    assert project(REPAIRED, *scan, "--allow-stale")[0] == 0
    assert project(REPAIRED, *scan, "--no-baseline")[0] == 0

    code, out, _ = project(REPAIRED, "baseline", "prune")
    assert code == 0 and out == f"{NAME}: 1 removed, 0 known findings left\n"
    assert json.loads((tmp_path / NAME).read_text())["findings"] == []
    assert project(REPAIRED, *scan)[0] == 0


def test_a_baseline_that_cannot_be_read_is_said_before_anything_is_scanned(project, tmp_path):
    code, out, err = project("raise SystemError('it was scanned')", "scan", "--baseline", "missing.json")
    assert code == 2 and not out and "cannot read the baseline missing.json" in err and "gradcheck baseline create" in err
    (tmp_path / "broken.json").write_text("[]")
    code, _, err = project("raise SystemError('it was scanned')", "scan", "--baseline", "broken.json")
    assert code == 2 and "broken.json is not a baseline of gradcheck" in err


def test_a_folder_that_does_not_exist_is_said_before_anything_is_scanned(project):
    code, out, err = project("raise SystemError('it was scanned')", "baseline", "create", "--baseline", "nowhere/b.json")
    assert code == 2 and not out and "no such folder: nowhere" in err and "--baseline" in err


def test_create_does_not_overwrite_and_a_failed_scan_writes_nothing(project, tmp_path):
    code, _, err = project("raise ValueError('no')", "baseline", "create")
    assert code == 2 and not (tmp_path / NAME).exists() and err
    (tmp_path / NAME).write_text("mine")
    code, _, err = project(NET, "baseline", "create")
    assert code == 2 and "exists" in err and (tmp_path / NAME).read_text() == "mine"


def saved(path, shown):
    path.write_text(dumps(shown))
    return str(path)


def test_a_run_in_part_exits_2_unless_it_is_allowed(project, tmp_path):
    run = saved(tmp_path / "run.json", replace(IN_PART, measurements=(BLIND_TO_LOSSES,)))
    code, out, _ = project(NET, "report", run)
    assert code == 2 and "Judged in part: 0 of 2 applicable rules looked" in out and "No findings" not in out
    assert project(NET, "report", run, "--exit-zero")[0] == 2
    assert project(NET, "report", run, "--allow-partial")[0] == 0
    assert project(NET, "report", run, "--config", "allow-partial = true")[0] == 0
    assert project(NET, "report", run, "--select", "META")[0] == 0, "what did not look was not asked for"


def test_a_head_in_part_is_no_proof_that_nothing_is_new(project, tmp_path):
    base, head = saved(tmp_path / "base.json", report(FAULTY)), saved(tmp_path / "head.json", IN_PART)
    code, out, _ = project(NET, "diff", base, head, "--fail-on-new")
    assert code == 2 and "1 unknown." in out
    assert "head was judged in part: 1 of 3 applicable rules looked; could not repeat the training step" in out
    assert project(NET, "diff", base, head, "--fail-on-new", "--allow-partial")[0] == 0 and project(NET, "diff", base, head)[0] == 0
    assert project(NET, "diff", head, base, "--fail-on-new")[0] == 0
    for shown in ("markdown", "json", "html"):
        out = project(NET, "diff", base, head, "--format", shown)[1]
        assert "in part" in out or "in_part" in out


def test_a_baseline_of_a_run_in_part_says_what_it_cannot_list(project, tmp_path):
    run = saved(tmp_path / "run.json", replace(IN_PART, measurements=(BLIND_TO_LOSSES,)))
    code, _, err = project(NET, "baseline", "create", run)
    assert code == 0 and "judged in part: 0 of 2 applicable rules looked" in err and "could not repeat" in err
