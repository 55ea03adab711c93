"""Shell completion, asked as bash asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def completed(*words):
    """What bash offers for the last word."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COMP_WORDS": " ".join(("gradcheck", *words)), "COMP_CWORD": str(len(words))}
    command = [sys.executable, "-c", "import sys; sys.argv = ['gradcheck']; from gradcheck.cli.main import main; main()"]
    done = subprocess.run(command, env=env | {"_GRADCHECK_COMPLETE": "complete_bash"}, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sc",), ["scan"]),
        (("scan", "--fail"), ["--fail-on"]),
        (("baseline", "pr"), ["prune"]),
        (("rule", "vanish"), ["vanishing-gradient"]),
        (("rule", "GRAD00"), ["GRAD001", "GRAD002", "GRAD003", "GRAD004", "GRAD005"]),
        (("scan", "--select", "INIT,vanish"), ["INIT,vanishing-gradient"]),
        (("scan", "--output", "gi"), ["github", "gitlab"]),
    ],
)
def test_what_is_offered(words, offered):
    assert completed(*words) == offered


def test_the_script_for_the_shell_is_shown():
    env = os.environ | {"PYTHONPATH": str(ROOT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv = ['gradcheck', '--show-completion', 'bash']; from gradcheck.cli.main import main; main()",
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "complete -o default -F _gradcheck_completion gradcheck" in done.stdout
