"""Names, paths, data and exceptions of others are text in every format, on the board and in `diff`: they steer nothing."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gradcheck.judge.diff import diff
from gradcheck.report import diff as diff_text
from gradcheck.report.diff import page as diff_page
from gradcheck.report.html.page import of_frame
from gradcheck.report.live import board, finding_line, plain_line
from gradcheck.report.outputs import FORMATS, Output, View, write_outputs
from gradcheck.types.gauges import Frame, LiveFinding, LiveLayer
from gradcheck.types.report import Report
from tests.report.html.pages import Page, treated
from tests.report.html.test_page import rewritten

ROOT = Path(__file__).parents[2]
ATTACKS = {
    "a terminal": "\x1b]0;evil\x07\x1b[2J\x1b[31m\x9b1m\x08",
    "lines of a CI": "\n::error file=x::evil\r\n##vso[task.complete]\r::add-mask::x",
    "direction": "\u202e\u2066evil\u2069\u200f",
    "markup": "]]></failure><script>evil()</script><img src=x onerror=evil()>\"'",
    "markdown": "\n\n# evil\n| a | b |\n```\n<details> @someone [x](javascript:evil())",
    "nothing": "\x00\ud800\ufffe",
}
HARMLESS = "name"
KEPT = {"full": {"diff"}}  # it is shown line by line


def shown(report: Report, format: str, tmp_path: Path) -> str:
    """As the command line writes it into a file."""
    file = tmp_path / "shown"
    write_outputs([report, report], [Output(format, file)], View(profile=True, show_passed=True, show_all=True))
    return file.read_bytes().decode("utf-8")


def harmless(text: str, lines: int | None) -> None:
    """No character steers, and the text has as many lines as with plain names."""
    assert [c for c in set(text) if not c.isprintable() and c not in "\n\t\u200b"] == []  # \u200b: what makes a mention none
    assert text.startswith("<") or not [line for line in text.splitlines() if line.startswith(("##vso", "::add-mask", "# evil"))]
    assert lines is None or len(text.splitlines()) == lines


def parsed(text: str, format: str) -> None:
    """By what reads the format."""
    if format in ("json", "sarif", "gitlab", "rdjson"):
        json.loads(text)
    elif format == "json-lines":
        assert all(json.loads(line) for line in text.splitlines())
    elif format == "junit":
        xml.fromstring(text)
    elif format == "html":
        assert not [e for e in Page(text).root.all("img") if "onerror" in e.attributes]
    elif format == "markdown":
        bare = re.sub(r"(`+)[^`].*?\1", "", text)  # without code
        assert "@someone" not in bare and not re.search(r"(?<!\\)\]\(javascript", bare) and "<script>" not in bare
    elif format == "github":
        assert all(line.startswith(("::error", "::warning", "::notice")) or not line.startswith("::") for line in text.splitlines())


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plain")
    return {format: shown(rewritten(treated(), HARMLESS, folder, KEPT.get(format, ())), format, folder) for format in FORMATS}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_string_of_a_saved_run(format, attack, plain, tmp_path):
    text = shown(rewritten(treated(), ATTACKS[attack], tmp_path, KEPT.get(format, ())), format, tmp_path)
    harmless(text, None if format in ("brief", "html") else len(plain[format].splitlines()))  # brief leaves out what has no room
    parsed(text, format)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_diff_of_two_runs(attack, tmp_path):
    before, after = rewritten(treated(), HARMLESS, tmp_path), rewritten(treated(), ATTACKS[attack], tmp_path)
    plain = diff([before], [before], ROOT)
    for differences in (diff([before], [after], ROOT), diff([after], [replace(after, findings=())], ROOT)):
        for format in (diff_text.text, diff_text.markdown, diff_text.as_json, diff_page):
            harmless(format(differences, 0.1), None)
        json.loads(diff_text.as_json(differences, 0.1))
        tags = {e.tag for e in Page(diff_page(differences, 0.1)).root.all()}
        assert "img" not in tags and tags >= {e.tag for e in Page(diff_page(plain, 0.1)).root.all()} - {"h3", "p"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_board(attack):
    word = ATTACKS[attack]
    found = LiveFinding("error", "GRAD001", "vanishing-gradient", word, f"{word}.py:1:2")
    frame = Frame(3, 0.5, (1.0, 0.5), 1.0, (1.0,), 0.1, 0.1, 5.0, 0.01, (LiveLayer(word, 1.0, 0.1, 0.5),), (found,))
    drawn = io.StringIO()
    Console(file=drawn, force_terminal=False, width=100).print(board(frame, word, 100))
    Console(file=drawn, force_terminal=False, width=100).print(board(None, word, 100))
    for text in (drawn.getvalue(), finding_line(found), plain_line(frame), of_frame(frame, word), of_frame(None, word)):
        harmless(text, None)
    assert "img" not in {e.tag for e in Page(of_frame(frame, word)).root.all()}


def test_a_scan_of_a_hostile_folder(tmp_path):
    """Its path, its layers, its data file and what the model raises, through every format and stderr."""
    home = tmp_path / "a\x1b[31m\n::error::x<b>@someone"
    home.mkdir()
    (home / "model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.add_module({ATTACKS['lines of a CI'].replace('.', '')!r}, nn.Linear(8, 8))\n"
        "        self.head = nn.Linear(8, 3)\n"
        "    def forward(self, x):\n        for layer in self.children():\n            x = layer(x)\n        return x\n"
        "model = Net()\nbatches = [(torch.randn(16, 8), torch.randint(3, (16,))) for _ in range(4)]\n"
        "class Broken(Net):\n"
        f"    def forward(self, x):\n        raise ValueError({''.join(ATTACKS.values())!r})\nbroken = Broken()\n"
    )
    outputs = [word for format in FORMATS for word in ("--output", f"{format}:{tmp_path / format}")]
    done = _gradcheck(home, "scan", str(home / "model.py:model"), "--fast", "--exit-zero", "-q", *outputs)
    harmless(done.stdout + done.stderr, None)
    for format in FORMATS:
        text = (tmp_path / format).read_text(encoding="utf-8")
        harmless(text, None)
        parsed(text, format)
    for words in (["model.py:broken"], ["model.py:model", "--data", f"{home}/none\n::error::.pt"]):
        done = _gradcheck(home, "scan", *words)
        harmless(done.stdout + done.stderr, None)
        assert done.returncode == 2 and not [line for line in done.stderr.splitlines() if line.startswith("::")]


def _gradcheck(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from gradcheck.cli.main import main; main()", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
