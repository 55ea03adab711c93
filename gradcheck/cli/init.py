"""The command `init`: a commented configuration, and a workflow for GitHub."""

from __future__ import annotations

from typing import Annotated

import typer

from gradcheck.cli.exit import exits


def init(
    workflow: Annotated[bool, typer.Option("--workflow", help="Write .github/workflows/gradcheck.yml too.")] = False,
) -> None:
    """Write a commented configuration: into pyproject.toml where there is one, else into gradcheck.toml. Overwrites nothing."""
    with exits():
        from pathlib import Path

        from gradcheck.cli.starter import start

        for line in start(Path.cwd(), workflow=workflow):
            print(line)
