"""`gradcheck init`: what it writes is valid, and it overwrites nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from gradcheck.cli import main
from gradcheck.cli.init import WORKFLOW_PATH, start
from gradcheck.config.settings import load

COMMENTED = re.compile(r"^# (?=\[|[\w\"-]+(:[\w.]+\")? = )", re.MULTILINE)  # a setting behind a comment sign


def uncommented(text):
    assert len(COMMENTED.findall(text)) >= 12
    return COMMENTED.sub("", text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_adds_to_pyproject_and_leaves_the_rest_byte_for_byte(folder):
    old = '# mine\n[project]\nname = "x"  # a comment\n'
    (folder / "pyproject.toml").write_text(old)
    assert list(start(folder)) == ["pyproject.toml: [tool.gradcheck] added"]
    text = (folder / "pyproject.toml").read_text()
    assert text.startswith(old + "\n[tool.gradcheck]\n") and load().fail_on == "error"
    assert list(start(folder)) == ["pyproject.toml has a [tool.gradcheck]: left as it is"]
    assert (folder / "pyproject.toml").read_text() == text


def test_without_pyproject_it_writes_a_file_of_its_own(folder):
    assert list(start(folder)) == ["gradcheck.toml written"]
    text = (folder / "gradcheck.toml").read_text()
    assert list(start(folder)) == ["gradcheck.toml exists: left as it is"]
    assert (folder / "gradcheck.toml").read_text() == text and load().fail_on == "error"


@pytest.mark.parametrize("name", ["pyproject.toml", "gradcheck.toml"])
def test_every_setting_in_its_comments_is_one(folder, name):
    if name == "pyproject.toml":
        (folder / name).write_text('[project]\nname = "x"\n')
    list(start(folder))
    (folder / name).write_text(uncommented((folder / name).read_text()))
    settings = load()
    assert settings.targets["main"].target == "src/model.py:build_model" and settings.seeds == 3
    assert [a.name for a in settings.assertions] == ["stat:loss.final", "score:gradients"]
    assert settings.rules["vanishing-gradient"].severity == "warning"


@pytest.mark.parametrize("text", ["tool = {}\n", "[project\n"])
def test_a_file_with_no_room_is_left_alone(folder, text, monkeypatch, capsys):
    (folder / "pyproject.toml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["gradcheck", "init"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2 and "no room for a [tool.gradcheck]" in capsys.readouterr().err
    assert (folder / "pyproject.toml").read_text() == text


def test_windows_line_ends_stay(folder):
    (folder / "pyproject.toml").write_bytes(b'[project]\r\nname = "x"\r\n')
    list(start(folder))
    raw = (folder / "pyproject.toml").read_bytes()
    assert raw.count(b"\n") == raw.count(b"\r\n") > 10 and tomllib.loads(raw.decode())


def test_the_workflow_is_valid_and_never_overwritten(folder):
    assert list(start(folder, workflow=True))[1].startswith(f"{WORKFLOW_PATH.as_posix()} written")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW_PATH)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    WORKFLOW_PATH.write_text("mine")
    assert list(start(folder, workflow=True))[1].endswith("exists: left as it is") and WORKFLOW_PATH.read_text() == "mine"
