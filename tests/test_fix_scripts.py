"""`gradcheck fix` of training scripts: the sick samples are written, scan clean afterwards, and look like their healthy twins."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
from pathlib import Path

import pytest

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config import Settings
from gradcheck.errors import TargetError
from gradcheck.fix import Fixed, terms_of
from gradcheck.fix_script import fix_script

SCRIPTS = Path(__file__).parent.parent / "sample_models" / "scripts"
# Sample -> lines of the written code that its healthy twin does not have: where there are two ways to say the same.
OTHERWISE = {
    "gradients_not_cleared": 0,
    "accumulation_unscaled": 2,  # the twin divides where the loss is computed
    "schedule_kills_rate": 0,
}


def treated(name: str) -> list[Fixed]:
    quiet = ScriptSpec(name, quiet=True)
    return fix_script(quiet, Settings(budget=1.0, fast=True, select=("LOOP", "GRAPH006")), terms_of(False, 20, 1, 3.0))


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
    path.write_bytes((SCRIPTS / "sick" / path.name).read_bytes())
    (fixed,) = treated(path.name)
    assert fixed.report.proof is not None and not fixed.report.proof.left and fixed.source is not None
    (outcome,) = [o for o in fixed.outcomes if o.status == "kept"]
    assert outcome.diff == fixed.source.diff and "the edited script was run" in outcome.reason
    assert path.read_bytes() == (SCRIPTS / "sick" / path.name).read_bytes()
    fixed.source.write()
    (again,) = treated(path.name)
    assert again.report.findings == () and again.source is None
    added = [x for x in difflib.ndiff(code(SCRIPTS / "healthy" / path.name), code(path)) if x.startswith("+ ")]
    assert len(added) == OTHERWISE[sample], added


def test_loop_and_model_are_edited_together() -> None:
    text = (SCRIPTS / "sick" / "gradients_not_cleared.py").read_text()
    sick = text.replace("nn.ReLU(), nn.Linear(64, 10)", "nn.ReLU(), nn.Linear(64, 10), nn.Softmax(1)")
    Path("train.py").write_text(sick)
    spec = ScriptSpec("train.py", quiet=True)
    settings = Settings(budget=4.0, select=("GRAPH006", "LOSS001"))
    (fixed,) = fix_script(spec, settings, terms_of(True, 30, 1, 10.0))
    assert {o.prescription.treatment for o in fixed.outcomes if o.status == "kept"} == {"clear-gradients", "remove-output-activation"}
    assert fixed.report.proof is not None and set(fixed.report.proof.cured) == {"GRAPH006", "LOSS001"}
    assert fixed.source is not None
    fixed.source.write()
    expected = text.replace("        loss = F.cross", "        optimizer.zero_grad()\n        loss = F.cross")
    assert Path("train.py").read_text() == expected


def test_a_script_that_cannot_be_repeated_and_has_a_healthy_loop_is_one_error() -> None:
    Path("train.py").write_text("print('nothing to train')\n")
    with pytest.raises(TargetError, match="no training was seen"):
        treated("train.py")


def test_the_command_writes_the_script_and_scans_it_again() -> None:
    sick = SCRIPTS / "sick" / "gradients_not_cleared.py"
    Path("train.py").write_bytes(sick.read_bytes())
    words = ["fix", "train.py", "--write", "--quiet-script", "--select", "GRAPH006", "--budget", "120", "--seeds", "1"]
    done = subprocess.run([sys.executable, "-m", "gradcheck", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "wrote train.py" in done.stderr and "Applied 1 remedy: cures GRAPH006; nothing is left" in done.stdout
    assert code(Path("train.py")) == code(SCRIPTS / "healthy" / sick.name)
