"""The command `diff`: two saved runs compared."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gradcheck.cli.exit import FAILED, FOUND, exits


def diff(
    base: Annotated[str, typer.Argument(metavar="BASE.json", help="The saved run to compare with.")],
    head: Annotated[str, typer.Argument(metavar="HEAD.json", help="The saved run that is judged.")],
    fail_on_new: Annotated[bool, typer.Option("--fail-on-new", help="Exit 1 for what is new or worse, 2 for a HEAD in part.")] = False,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Do not exit 2 for a HEAD in part.")] = False,
    output_format: Annotated[str, typer.Option("--format", metavar="text|markdown|json|html", help="How to show it.")] = "text",
    tolerance: Annotated[float, typer.Option(metavar="PART", help="Relative change that counts where there is one seed.")] = 0.1,
) -> None:
    """Say what became better and worse, and what is new or fixed, between two saved runs."""
    with exits():
        from pathlib import Path

        from gradcheck.errors import ConfigError
        from gradcheck.judge.diff import diff as compared
        from gradcheck.judge.diff import unsure, worse_off
        from gradcheck.report import diff as shown
        from gradcheck.report.diff_html import page
        from gradcheck.report.json import load_all

        renderers = {"text": shown.text, "markdown": shown.markdown, "json": shown.as_json, "html": page}
        if output_format not in renderers:
            raise ConfigError(f"unknown format {output_format!r}", hint=f"formats: {', '.join(renderers)}")
        if not tolerance >= 0:
            raise ConfigError(f"--tolerance must be 0 or more; got {tolerance}")
        differences = compared(load_all(Path(base)), load_all(Path(head)), Path.cwd(), tolerance)
        print(renderers[output_format](differences, tolerance), end="")
        if fail_on_new and worse_off(differences):
            sys.exit(FOUND)
        sys.exit(FAILED if fail_on_new and not allow_partial and unsure(differences) else 0)
