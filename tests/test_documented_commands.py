"""Every command of the README and the documents is one that gradcheck takes, and every piece of Python is Python."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from gradcheck.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, *languages):
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands():
    for page in PAGES:
        for text in blocks(page, "", "bash", "sh", "shell", "console"):
            for line in text.replace("\\\n", "").splitlines():
                line = line.removeprefix("$ ").strip()
                if line.startswith("gradcheck "):
                    yield pytest.param(line, id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_is_taken(line):
    """It is parsed as the command line would, and not run."""
    words = shlex.split(re.split(r" (?:&&|\||>|;) ", line)[0], comments=True)[1:]
    if not words:
        return
    group = get_command(app)
    context = group.make_context("gradcheck", list(words), resilient_parsing=words[0].startswith("--"))
    while words and not words[0].startswith("-") and hasattr(group, "commands"):
        name, command, rest = group.resolve_command(context, words)
        if hasattr(command, "commands"):
            group, words, context = command, rest, command.make_context(name, list(rest), parent=context)
            continue
        command.make_context(name, list(rest), parent=context)
        return


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_snippet_is_python(page):
    for text in blocks(page, "python", "py"):
        ast.parse(text)
