"""Notebooks: their code cells run in order without their magics, and findings stand at cell and line in every format."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.cli import main
from gradcheck.errors import TargetError
from gradcheck.workload.notebook import code_cells, python_of, shell
from gradcheck.workload.source_sites import location_of_traceback

TRAIN = (
    "%%time\nimport torch\nfrom torch import nn\nfrom IPython.display import HTML\n%matplotlib inline\nx = torch.randn(256, 8)",
    "%%bash\npip install nothing",
    "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(8, 2)\n"
    "    def forward(self, x):\n        return torch.softmax(self.layer(x), 1)\n"
    "model = Net()\noptimizer = torch.optim.SGD(model.parameters(), 0.1)  # gradcheck: ignore[unused-ignore]",
    "y = (x.sum(1) > 0).long()\nfor i in range(40):\n    if not i: \n        !nvidia-smi\n    optimizer.zero_grad()\n"
    "    loss = nn.functional.cross_entropy(model(x), y)\n    loss.backward()\n    optimizer.step()\ndisplay(loss)",
)


def notebook(folder: Path, *cells: str, metadata: object = None, name: str = "nb.ipynb") -> Path:
    """The first cell is a text."""
    path = folder / name
    found = [{"cell_type": "markdown", "metadata": {}, "source": ["# Title"]}]
    found += [{"cell_type": "code", "metadata": {}, "outputs": [], "source": text.splitlines(keepends=True)} for text in cells]
    path.write_text(json.dumps({"cells": found, "metadata": metadata or {}, "nbformat": 4, "nbformat_minor": 5}, indent=1))
    return path


def scan(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


def test_findings_stand_at_cell_and_line_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    notebook(tmp_path, *TRAIN)
    monkeypatch.chdir(tmp_path)
    formats = ("concise", "json", "html", "json-lines", "markdown", "sarif", "junit", "github", "gitlab", "rdjson")
    words = [w for name in formats for w in ("--output", f"{name}:out-{name}")]
    assert scan(monkeypatch, "scan", "nb.ipynb", "--select", "LOSS001", "--fast", *words) == 1
    full = capsys.readouterr().out
    assert "--> nb.ipynb:cell 4:6:16 in Net.forward" in full and "6 |         return torch.softmax(self.layer(x), 1)" in full
    said = {name: Path(f"out-{name}").read_text() for name in formats}
    assert said["concise"].startswith("nb.ipynb:cell 4:6:16: output-loss-mismatch (LOSS001)")
    assert "nb.ipynb:cell 4:6:16" in said["html"] and "nb.ipynb:cell 4:6" in said["markdown"]
    for place in (json.loads(said["json"])["findings"][0]["location"], json.loads(said["json-lines"])["location"]):
        assert (place["path"], place["cell"], place["line"], place["column"]) == ("nb.ipynb", 4, 6, 16)
    found = json.loads(said["sarif"])["runs"][0]["results"][0]
    where = found["locations"][0]["physicalLocation"]
    assert where["artifactLocation"]["uri"] == "nb.ipynb" and where["region"]["startLine"] == 1
    texts = (
        found["message"]["text"],
        json.loads(said["gitlab"])[0]["description"],
        json.loads(said["rdjson"])["diagnostics"][0]["message"],
    )
    assert all("cell 4, line 6: softmax" in text for text in (*texts, said["github"], xml.fromstring(said["junit"])[0][0][0].text))
    assert "file=nb.ipynb,line=1," in said["github"]


def test_a_comment_in_a_cell_silences_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    cells = list(TRAIN)
    cells[2] = cells[2].replace("self.layer(x), 1)", "self.layer(x), 1)  # gradcheck: ignore[LOSS001]")
    notebook(tmp_path, *cells)
    monkeypatch.chdir(tmp_path)
    assert scan(monkeypatch, "scan", "nb.ipynb", "--select", "LOSS001", "--fast") == 0
    assert "1 suppressed" in capsys.readouterr().out


def ran(path: Path) -> dict[str, object]:
    with captured(ScriptSpec(str(path), kind="notebook")) as run:
        if run.error is not None:
            raise run.error
        return vars(run.module)


def test_it_runs_in_its_folder_as_in_jupyter(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "helper.py").write_text("value = 7\n")
    before = os.getcwd(), sys.modules.get("IPython")
    path = notebook(tmp_path / "inner", "import os, helper\nfolder = os.getcwd()", "x = helper.value + 1\nget_ipython().system('ls')\nx")
    names = ran(path)
    assert (names["folder"], names["x"], names["__name__"]) == (str(tmp_path / "inner"), 8, "__main__") and "__file__" not in names
    assert before == (os.getcwd(), sys.modules.get("IPython"))


@pytest.mark.parametrize("text", ["def f(:", "x = 1\n\n1 / 0"])
def test_an_error_is_told_with_its_cell_and_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    notebook(tmp_path, "a = 1", text)
    monkeypatch.chdir(tmp_path)
    assert scan(monkeypatch, "scan", "nb.ipynb") == 2
    said = capsys.readouterr().err
    assert "nb.ipynb failed before its first backward pass" in said and f"--> nb.ipynb:cell 3:{text.count(chr(10)) + 1}:" in said


def test_a_place_in_a_cell_has_its_source(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        ran(notebook(tmp_path, "def f():\n    return 1 / 0\n", "f()"))
    place = location_of_traceback(raised.value.__traceback__)
    assert place is not None and (Path(place.path).name, place.cell, place.line, place.column) == ("nb.ipynb", 2, 2, 12)


# ------------------------------------------------------------------------- magics

CELLS = {
    "%matplotlib inline\nx = 1": "pass\nx = 1",
    "!pip install a \\\n  b\nx = 1": "pass\n\nx = 1",
    "if x:\n    %load_ext a\n    y = 2": "if x:\n    pass\n    y = 2",
    "%time y = f(x)\nz = 1": "None; y = f(x)\nz = 1",
    "%%time\nx = 1": "\nx = 1",
    "%%capture out\nx = 1": "\nx = 1",
    "%%writefile a.py\nx = 1": "",
    "%%html\n<b>x</b>": "",
    "files = !ls\nx = 1": "files = []\nx = 1",
    "f?\nx = 1  # why?": "pass\nx = 1  # why?",
    "??a.b\nx = 1": "pass\nx = 1",
    'text = """\n%no magic\n!none\n"""\n%magic': 'text = """\n%no magic\n!none\n"""\npass',
    "x = (a\n     % b)\n%magic": "x = (a\n     % b)\npass",
    "x = a \\\n  % b\n!ls": "x = a \\\n  % b\npass",
    "x = a % b\nprint('!')": "x = a % b\nprint('!')",
}


@pytest.mark.parametrize("text", CELLS)
def test_magics_are_left_out_and_all_else_stays_where_it_is(text: str) -> None:
    assert python_of(text).removesuffix("\n") == CELLS[text]


# ---------------------------------------------------------------- what is not a notebook

BAD = {
    "not JSON": ("import torch\n", "it is not JSON"),
    "a list": ("[]", "it has no list of cells"),
    "format 3": ('{"worksheets": []}', "not a notebook of format 4"),
    "no code": ('{"cells": [{"cell_type": "markdown", "source": "x"}]}', "has no code cells"),
    "empty cells": ('{"cells": [{"cell_type": "code", "source": [" "]}]}', "has no code cells"),
    "another kernel": (
        '{"cells": [], "metadata": {"kernelspec": {"language": "R", "display_name": "R 4"}}}',
        "the kernel R 4, not for Python",
    ),
    "another language": ('{"cells": [], "metadata": {"language_info": {"name": "julia"}}}', "the kernel julia, not for Python"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_notebook_of_python_is_one_clear_error(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    (tmp_path / "nb.ipynb").write_text(text)
    with pytest.raises(TargetError, match=message) as raised:
        code_cells(str(tmp_path / "nb.ipynb"))
    assert raised.value.hint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scan", "nowhere.ipynb"], "there is no file nowhere.ipynb"),
        (["scan", "nb.ipynb", "--", "a"], "takes no arguments"),
        (["scan", "nb.ipynb", "--loss", "mse_loss"], "--loss does not go with a notebook"),
        (["scan", "--fix", "nb.ipynb"], "gradcheck edits none"),
        (["fix", "nb.ipynb"], "gradcheck edits none"),
        (["trial", "nb.ipynb"], "not a Python file"),
        (["scan", "--", "nb.ipynb"], "is a notebook, not a command"),
    ],
)
def test_what_does_not_go_with_a_notebook(words, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    notebook(tmp_path, "x = 1")
    monkeypatch.chdir(tmp_path)
    assert scan(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert message in said and "help:" in said


@pytest.mark.skipif(importlib.util.find_spec("IPython") is not None, reason="nothing stands in for IPython where it is")
def test_libraries_do_not_hook_into_the_stand_in_for_ipython() -> None:
    """As matplotlib does: it asks for IPython's shell, and registers its drawing there."""
    with shell():
        from IPython import get_ipython, version_info
        from IPython.display import HTML

        found = get_ipython()
        assert not found and found.events.register("post_execute", print) is None and found.getoutput("ls") == []
        assert HTML("<b>") is None and version_info[:2] >= (8, 24)
