"""Runs the tests of the pretend accelerator, which is installed for the life of a process, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("on_*.py"))
LONG = "on_commands.py"


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this torch takes no device written in Python"
)
@pytest.mark.parametrize("files", [[LONG], [f for f in FILES if f != LONG]], ids=[LONG, "others"])
def test_on_the_pretend_accelerator(files: list[str]) -> None:
    paths = [f"tests/device/{file}" for file in files]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *paths]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
