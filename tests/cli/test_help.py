"""The help, and a new user's first guesses: each leads on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gradcheck.cli import main
from gradcheck.cli.help import EXAMPLES, GROUPS


@pytest.fixture
def gradcheck(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("model.py", "train.py", "train.ipynb", "run.json"):
        Path(name).touch()
    Path("folder").mkdir()

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.mark.parametrize(
    ("words", "next_step"),
    [
        ("model.py", "gradcheck scan model.py"),
        ("model.py:build --lr 1", "gradcheck scan model.py:build --lr 1"),
        ("check model.py", "gradcheck scan model.py"),
        ("explain GRAD001", "gradcheck rule GRAD001"),
        ("--explain GRAD001", "gradcheck rule NAME"),
        ("GRAD001", "gradcheck rule GRAD001"),
        ("vanishing-gradient", "gradcheck rule vanishing-gradient"),
        ("train train.py", "gradcheck scan train.py"),
        ("scan model.py --gpu", "--device cuda"),
        ("train.ipynb", "gradcheck scan train.ipynb"),
        ("folder", "gradcheck scan folder"),
        (".", "gradcheck scan ."),
        ("run.json", "gradcheck report run.json"),
        ("python train.py", "gradcheck scan -- python train.py"),
        ("scan model.py --html", "--output html:report.html"),
        ("scan model.py --json", "--output json:run.json"),
        ("scan model.py --seed 3", "did you mean --seeds?"),
        ("scan model.py --ouput x", "did you mean --output?"),
        ("scan train.py --epochs 3", "the arguments of the script come after --"),
        ("watch python train.py --epochs 3", "gradcheck watch -- python train.py --epochs 3"),
        ("watch --every 100 train.py", "gradcheck watch --every 100 -- train.py"),
        ("scna model.py", "did you mean gradcheck scan?"),
        ("quux", "gradcheck --help"),
        ("--fix model.py", "gradcheck scan --fix model.py"),
        ("scan -m pkg.train", "-- python -m PACKAGE.MODULE"),
        ("report run.json --output page.html", "--output html:page.html"),
        ("rule", "gradcheck rule --help"),
        ("explain", "gradcheck rule NAME"),
        ("diff run.json", "gradcheck diff --help"),
        ("rules vanishing", "gradcheck rule vanishing"),
        ("rules a b", "gradcheck rules --help"),
        ("doctor train.py", "gradcheck scan train.py"),
        ("run", "gradcheck scan TARGET"),
        ("ui run.json", "gradcheck report run.json --open"),
        ("board", "gradcheck watch -- python train.py"),
        ("list", "gradcheck rules"),
        ("--list-rules", "gradcheck rules"),
        ("rules --list", "gradcheck rules"),
        ("settings", "gradcheck init"),
        ("train.py --gpu", "gradcheck scan train.py -- --gpu"),
        ("train.py --fast --lr=1 --epochs 3 --html", "gradcheck scan train.py --fast --lr=1 -- --epochs 3 --html"),
        ("model.py:Net --gpu --strict", "gradcheck scan model.py:Net --device cuda --fail-on warning"),
        ("scan model.py --only GRAD", "--select RULE"),
        ("scan model.py --no-color", "--color never"),
        ("fix model.py --dry-run", "--diff"),
        ("diff a.json b.json --output html", "--format html"),
        ("scan model.py --dry-run", "gradcheck scan --help"),
        ("trial model.py -v", "gradcheck scan TARGET --show-passed"),
        ("scan train.py --script --device cuda", "-- --device cuda"),
        ("fix train.py --script --dtype float16", "-- --dtype float16"),
        ("scan --steps x model.py", "gradcheck scan --help"),
        ("baseline creat", "did you mean gradcheck baseline create?"),
        ("baseline show x", "gradcheck baseline show --help"),
    ],
)
def test_a_wrong_word_is_answered_with_the_command_that_does_it(words, next_step, gradcheck):
    code, out, err = gradcheck(*words.split())
    assert code == 2 and not out and err.count("error:") == 1, err
    assert f"help: {next_step}" in err or next_step in err.partition("help:")[2], err


@pytest.mark.parametrize("words", ["version", "--version"])
def test_the_version(words, gradcheck):
    assert gradcheck(words)[1].startswith("gradcheck ")


@pytest.mark.parametrize("words", ["help", "-h", "--help"])
def test_the_help_lists_the_commands_in_order_of_use(words, gradcheck):
    code, out, _ = gradcheck(words)
    listed = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert code == 0 and listed[:9] == ["scan", "fix", "watch", "trial", "report", "diff", "bisect", "rule", "rules"]
    assert "..." not in out.partition("Commands:")[2]


@pytest.mark.parametrize("name", EXAMPLES)
def test_options_stand_in_groups_before_three_examples(name, gradcheck, monkeypatch):
    code, out, _ = gradcheck(name, "-h")
    assert code == 0 and gradcheck("help", name)[1] == out
    headings = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    inside = [h for h in headings if h in GROUPS]
    assert len(inside) >= 2 and inside == [h for h in GROUPS if h in inside] and headings[-1] == "Examples"
    assert all(f"  {example}\n" in out for example in EXAMPLES[name]) and len(EXAMPLES[name]) == 3
    assert "<" not in out.replace("FILE|'KEY = VALUE'", "") or "<=" in out, "types of Python are no words for users"


def test_every_option_has_its_place():
    from gradcheck.cli.app import app

    grouped = {name for names in GROUPS.values() for name in names.split()}
    named = {i.callback for i in app.registered_commands if i.callback.__name__ in EXAMPLES}
    options = {name for function in named for name in function.__annotations__} - {
        "ctx",
        "return",
        "targets",
        "target",
        "run",
        "base",
        "head",
        "a",
        "b",
    }
    assert options <= grouped
