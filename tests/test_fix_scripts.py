"""`gradcheck fix` of training scripts: the faulty samples are written, scan clean afterwards, and look like their healthy twins."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradcheck.capture.spec import ScriptSpec
from gradcheck.cli.app import app
from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.repair.fixed import Fixed
from gradcheck.repair.options import options_of
from gradcheck.repair.script import fix_script
from tests.measure.test_terms import AVERAGED, VAE

SCRIPTS = Path(__file__).parent.parent / "sample_models" / "scripts"
# Sample -> lines of the written code that its healthy twin does not have: where there are two ways to say the same.
OTHERWISE = {
    "gradients_not_cleared": 0,
    "accumulation_unscaled": 2,  # the twin divides where the loss is computed
    "schedule_kills_rate": 0,
    "graph_retained": 0,
}


def treated(name: str) -> list[Fixed]:
    quiet = ScriptSpec(name, quiet=True)
    return fix_script(quiet, Settings(budget=1.0, fast=True, select=("LOOP", "GRAPH006")), options_of(False, 20, 1, 3.0))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def code(path: Path) -> list[str]:
    """The code without its docstring, in one style."""
    tree = ast.parse(path.read_text())
    tree.body = tree.body[1:]
    return ast.unparse(tree).splitlines()


@pytest.mark.parametrize("sample", OTHERWISE)
def test_the_written_script_is_cured_and_like_its_healthy_twin(sample: str) -> None:
    path = Path(f"{sample}.py")
    path.write_bytes((SCRIPTS / "faulty" / path.name).read_bytes())
    (fixed,) = treated(path.name)
    assert fixed.report.proof is not None and not fixed.report.proof.left and fixed.source is not None
    (outcome,) = [o for o in fixed.outcomes if o.status == "kept"]
    assert outcome.diff == fixed.source.diff and "the edited script was run" in outcome.reason
    assert path.read_bytes() == (SCRIPTS / "faulty" / path.name).read_bytes()
    fixed.source.write()
    (again,) = treated(path.name)
    assert again.report.findings == () and again.source is None
    added = [x for x in difflib.ndiff(code(SCRIPTS / "healthy" / path.name), code(path)) if x.startswith("+ ")]
    assert len(added) == OTHERWISE[sample], added


def test_loop_and_model_are_edited_together() -> None:
    text = (SCRIPTS / "faulty" / "gradients_not_cleared.py").read_text()
    faulty = text.replace("nn.ReLU(), nn.Linear(64, 10)", "nn.ReLU(), nn.Linear(64, 10), nn.Softmax(1)")
    Path("train.py").write_text(faulty)
    spec = ScriptSpec("train.py", quiet=True)
    settings = Settings(budget=4.0, select=("GRAPH006", "LOSS001"))
    (fixed,) = fix_script(spec, settings, options_of(True, 30, 1, 10.0))
    assert {o.prescription.treatment for o in fixed.outcomes if o.status == "kept"} == {"clear-gradients", "remove-output-activation"}
    assert fixed.report.proof is not None and set(fixed.report.proof.cured) == {"GRAPH006", "LOSS001"}
    assert fixed.source is not None
    fixed.source.write()
    expected = text.replace("        loss = F.cross", "        optimizer.zero_grad()\n        loss = F.cross")
    assert Path("train.py").read_text() == expected


HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
x = torch.randn(256, 8)
y = (x @ torch.randn(8, 3)).argmax(1)
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.3)
"""
UNCLEARED = """
for _ in range(30):
    for rows in torch.randperm(256).split(32):
        loss = F.cross_entropy(net(x[rows]), y[rows])
        loss.backward()
        opt.step()
"""


def fixed_of(text: str, *, select: tuple[str, ...], unsafe: bool = True, fast: bool = True) -> list[Fixed]:
    Path("train.py").write_text(text)
    settings = Settings(budget=2.0 if fast else 20.0, fast=fast, select=select)
    return fix_script(ScriptSpec("train.py", quiet=True), settings, options_of(unsafe, 20, 1, 3.0))


def kept(results: list[Fixed]) -> dict[str, str]:
    """By treatment, the lines that its edit adds."""
    return {
        o.prescription.treatment: "".join(x[1:] for x in o.diff.splitlines(keepends=True) if x.startswith("+") and not x.startswith("+++"))
        for fixed in results
        for o in fixed.outcomes
        if o.status == "kept"
    }


def test_the_edited_script_runs_where_its_data_are_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is run from its project: data outside, a module beside it, files that are written, a folder that must be new."""
    project = tmp_path / "project"
    (project / "package").mkdir(parents=True)
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "rate.txt").write_text("0.3")
    (project / "log.csv").write_text("precious")
    (project / "package" / "steps.py").write_text("def update(opt, loss):\n    loss.backward()\n    opt.step()\n")
    outside = 'import os, steps\nrate = float(open("../rates/rate.txt").read())\nos.makedirs("new")\nlog = open("log.csv", "w")\n'
    loop = UNCLEARED.replace("        loss.backward()\n        opt.step()\n", '        steps.update(opt, loss)\n        log.write("x")\n')
    (project / "package" / "train.py").write_text(outside + HEAD.replace("lr=0.3", "lr=rate") + loop)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.chdir(project)
    results = fix_script(
        ScriptSpec("package/train.py", quiet=True),
        Settings(budget=1.0, fast=True, select=("LOOP", "GRAPH006")),
        options_of(False, 20, 1, 3.0),
    )
    assert kept(results) == {"clear-gradients": "    opt.zero_grad()\n"}
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before and not (project / "new").exists()
    assert results[0].source is not None and list(results[0].source.diffs) == ["package/steps.py"]


def test_an_activation_in_the_loop_is_tried_in_the_script() -> None:
    loop = UNCLEARED.replace("        loss =", "        opt.zero_grad()\n        p = F.softmax(net(x[rows]), dim=1)\n        loss =")
    results = fixed_of(HEAD + loop.replace("F.cross_entropy(net(x[rows])", "F.nll_loss(p"), select=("LOSS001",))
    assert kept(results) == {"replace-loss": "        p = net(x[rows])\n        loss = F.cross_entropy(p, y[rows])\n"}
    assert results[0].report.proof is not None and results[0].report.proof.cured == ("LOSS001",)


def test_a_divergence_gets_log_probabilities() -> None:
    loop = UNCLEARED.replace("        loss =", "        opt.zero_grad()\n        p = net(x[rows]).softmax(1)\n        loss =")
    loss = "F.kl_div(p, F.one_hot(y[rows], 3).float(), reduction='batchmean')"
    text = HEAD + loop.replace("F.cross_entropy(net(x[rows]), y[rows])", loss)
    assert kept(fixed_of(text, select=("LOSS001",))) == {"replace-loss": "        p = net(x[rows]).log_softmax(1)\n"}


LANGUAGE_MODEL = """import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(12, 16), nn.Embedding(10, 16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 12)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = ATTENTION
        return self.head(x + MERGED)


net = Net()
opt = torch.optim.Adam(net.parameters(), lr=0.01)
text = torch.randint(12, (64, 1)) + torch.arange(11)
for step in range(60):
    rows = text[torch.randint(64, (16,))] % 12
    loss = F.cross_entropy(net(rows[:, :-1]).transpose(1, 2), rows[:, 1:])
    opt.zero_grad()
    loss.backward()
    opt.step()
"""
CAUSAL, TURNED = "F.scaled_dot_product_attention(q, k, v, is_causal=True)", "y.transpose(1, 2).reshape(b, t, d)"


@pytest.mark.parametrize(
    ("attention", "merged", "cure"),
    [
        (CAUSAL.replace(", is_causal=True", ""), TURNED, {"causal-attention": f"        y = {CAUSAL}\n"}),
        (CAUSAL, "y.reshape(b, t, d)", {"merge-heads": f"        return self.head(x + {TURNED})\n"}),
    ],
)
def test_a_model_that_sees_the_answer_no_longer_does(attention: str, merged: str, cure: dict[str, str]) -> None:
    """Its loss is higher without the answer, which is no reason to keep it."""
    text = LANGUAGE_MODEL.replace("ATTENTION", attention).replace("MERGED", merged)
    assert kept(fixed_of(text, select=("SEQ001",), unsafe=False)) == cure


def test_a_summed_term_is_averaged_as_the_other_one_is() -> None:
    text = VAE.replace("RECONSTRUCTION", AVERAGED)
    edits = kept(fixed_of(text, select=("LOSS010",), fast=False))
    assert edits == {"average-term": "    divergence = -0.5 * torch.mean(1 + logvar - mu.pow(2) - logvar.exp())\n"}


def test_a_finding_of_a_training_that_cannot_be_repeated_is_told() -> None:
    """Of two trainings one is healthy, and the other one's gradient never arrives."""
    text = (
        HEAD
        + "head = nn.Linear(3, 3)\nother = torch.optim.SGD(head.parameters(), lr=0.1)\n"
        + UNCLEARED.replace("        loss =", "        opt.zero_grad()\n        other.zero_grad()\n        loss =")
        + "        F.cross_entropy(head(net(x[rows])).detach(), y[rows]).requires_grad_().backward()\n        other.step()\n"
    )
    results = fixed_of(text, select=("GRAPH001",), unsafe=False)
    assert [f.code for r in results for f in r.report.findings] == ["GRAPH001"]
    assert "keep-tensor" in kept(results) and "detach" not in kept(results)["keep-tensor"]


def test_a_healthy_script_has_nothing_to_fix_and_a_failing_one_says_so() -> None:
    (fixed,) = fixed_of(HEAD + UNCLEARED.replace("        loss =", "        opt.zero_grad()\n        loss ="), select=("LOOP", "GRAPH006"))
    assert fixed.outcomes == () and fixed.source is None
    with pytest.raises(TargetError, match="failed after 8 steps: ZeroDivisionError"):
        fixed_of(HEAD + UNCLEARED.replace("        loss =", "        opt.zero_grad()\n        loss =") + "    1 / 0\n", select=("LOOP",))


def test_a_script_that_cannot_be_repeated_and_has_a_healthy_loop_is_one_error() -> None:
    Path("train.py").write_text("print('nothing to train')\n")
    with pytest.raises(TargetError, match="no training was seen"):
        treated("train.py")


def test_the_command_writes_the_script_and_scans_it_again() -> None:
    faulty = SCRIPTS / "faulty" / "gradients_not_cleared.py"
    Path("train.py").write_bytes(faulty.read_bytes())
    words = ["fix", "train.py", "--write", "--quiet-script", "--select", "GRAPH006", "--budget", "120", "--seeds", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "wrote train.py" in done.stderr and "Applied 1 remedy: cures GRAPH006; nothing is left" in done.stdout
    assert code(Path("train.py")) == code(SCRIPTS / "healthy" / faulty.name)


MOMENTUM = "opt = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)\n"
FOLLOWER = """
import copy
average = copy.deepcopy(net)
for _ in range(6):
    for rows in torch.randperm(256).split(32):
        loss = F.cross_entropy(net(x[rows]), y[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), net.parameters()):
                slow.mul_(0.9).add_(fast, alpha=0.1)
    average.eval()(x)
"""


def test_an_optimizer_is_made_once() -> None:
    made = UNCLEARED.replace("        loss =", f"        {MOMENTUM}        opt.zero_grad()\n        loss =")
    assert kept(fixed_of(HEAD + made, select=("LOOP009",), unsafe=False)) == {"keep-optimizer": MOMENTUM}


def test_an_average_follows_buffers_too() -> None:
    text = HEAD.replace("nn.ReLU()", "nn.BatchNorm1d(16), nn.ReLU()") + FOLLOWER
    cure = "            for followed, leading in zip(average.buffers(), net.buffers()):\n                followed.copy_(leading)\n"
    assert kept(fixed_of(text, select=("LOOP012",), unsafe=False)) == {"follow-buffers": cure}


def test_elements_of_micro_batches_weigh_alike() -> None:
    text = (SCRIPTS / "faulty" / "accumulation_unweighted.py").read_text()
    cure = (
        "    elements = sum((y.flatten() != -100).sum() for x, y in group)\n"
        '        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / elements\n'
    )
    assert kept(fixed_of(text, select=("LOOP011",), unsafe=False)) == {"weigh-micro-batches": cure}
