"""The command `init`: a commented configuration, and a workflow for GitHub."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gradcheck.cli.exit import exits
from gradcheck.config.toml_file import OWN_FILE
from gradcheck.errors import ConfigError
from gradcheck.files import write_text
from gradcheck.version import REPOSITORY, TAG

HINT = "is the folder yours to write to?"
WORKFLOW_PATH = Path(".github", "workflows", "gradcheck.yml")

CONFIGURATION = """\
{head}
# What fails a run: findings of this severity or above. "error", "warning", "info" or "never".
fail-on = "error"
# max-warnings = 0
# A run that could only be judged in part fails with exit code 2, unless that is allowed.
# allow-partial = true
# Rules by name, code or family; `gradcheck rules` lists them.
# ignore = ["initial-loss", "REG"]
# With several seeds a finding is what most of them show, and numbers are medians.
# seeds = 3
# Findings that are known do not fail a run; `gradcheck baseline create` writes the file.
# baseline = ".gradcheck-baseline.json"

# What `gradcheck scan` scans when it is told nothing else; a table for each target.
# [{prefix}targets.main]
# model = "src/model.py:build_model"
# data = "src/model.py:make_batch"
# loss = "cross_entropy"
# optimizer = "adamw"
# lr = 3e-4

# Limits of a rule, and its severity; `gradcheck rule vanishing-gradient` names them.
# [{prefix}rules.vanishing-gradient]
# severity = "warning"

# Limits on numbers of the run itself.
# [{prefix}assert]
# "stat:loss.final" = {{ max = 1.8 }}
# "score:gradients" = ["warning", {{ min = 90 }}]
"""

WORKFLOW = """\
# Scans the targets of [tool.gradcheck.targets] on every pull request.
name: gradcheck
on:
  pull_request:
  push:
    branches: [main]

permissions:
  contents: read
  security-events: write # to upload findings to code scanning

jobs:
  scan:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v5
      - uses: actions/setup-python@v6
        with:
          python-version: "3.12"
      # What your model needs; the first line is PyTorch without CUDA, which is much smaller.
      - run: |
          python -m pip install torch --index-url https://download.pytorch.org/whl/cpu
          python -m pip install -e .
      - uses: REPOSITORY/.github/actions/scan@TAG
        with:
          sarif: gradcheck.sarif
      # The token of a fork may not upload.
      - uses: github/codeql-action/upload-sarif@v4
        if: ${{ !cancelled() && !github.event.pull_request.head.repo.fork && hashFiles('gradcheck.sarif') != '' }}
        with:
          sarif_file: gradcheck.sarif
          category: gradcheck
"""


def start(folder: Path, *, workflow: bool = False) -> Iterator[str]:
    """Writes what is not there yet, and says so in lines. Raises SavedRunError when it cannot, ConfigError for a broken pyproject.toml."""
    yield _configuration(folder)
    if workflow:
        yield _workflow(folder)


def _configuration(folder: Path) -> str:
    own, project = folder / OWN_FILE, folder / "pyproject.toml"
    if own.exists():
        return f"{own.name} exists: left as it is"
    if not project.exists():
        write_text(own, CONFIGURATION.format(head="# Settings of gradcheck.", prefix=""), HINT)
        return f"{own.name} written"
    old = _text(project)
    if "gradcheck" in _tables(project, old).get("tool", {}):
        return f"{project.name} has a [tool.gradcheck]: left as it is"
    end = "\r\n" if "\r\n" in old else "\n"
    added = CONFIGURATION.format(head="[tool.gradcheck]", prefix="tool.gradcheck.").replace("\n", end)
    new = f"{old.rstrip()}{2 * end}{added}".lstrip()
    _tables(project, new)
    write_text(project, new, HINT)
    return f"{project.name}: [tool.gradcheck] added"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {path.name}: {e}", hint="correct it, or move it away") from e


def _tables(path: Path, text: str) -> dict[str, dict[str, object]]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        hint = f"correct it, or write the settings into {OWN_FILE}"
        raise ConfigError(f"{path.name} has no room for a [tool.gradcheck]: {e}", hint=hint) from e


def workflow() -> str:
    """With gradcheck's own repository and the tag of this version."""
    return WORKFLOW.replace("REPOSITORY", REPOSITORY).replace("TAG", TAG)


def _workflow(folder: Path) -> str:
    path = folder / WORKFLOW_PATH
    if path.exists():
        return f"{WORKFLOW_PATH.as_posix()} exists: left as it is"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"cannot make {path.parent}: {e.strerror}", hint="is there a file of that name?") from e
    write_text(path, workflow(), HINT)
    return f"{WORKFLOW_PATH.as_posix()} written; it uses {REPOSITORY} at {TAG}"


def init(workflow: Annotated[bool, typer.Option("--workflow", help="Write .github/workflows/gradcheck.yml too.")] = False) -> None:
    """Write a commented configuration: into pyproject.toml where there is one, else into gradcheck.toml. Overwrites nothing."""
    with exits():
        from pathlib import Path

        from gradcheck.cli.init import start

        for line in start(Path.cwd(), workflow=workflow):
            print(line)
