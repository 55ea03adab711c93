"""The command `diff`: two saved runs compared."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gradcheck.cli.exit import FAILED, FOUND, exits
from gradcheck.cli.options import Column, columns_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The saved run, or the log, to compare with.")],
    head: Annotated[str, typer.Argument(metavar="HEAD", help="The saved run, or the log, that is judged.")],
    fail_on_new: Annotated[bool, typer.Option("--fail-on-new", help="Exit 1 for what is new or worse, 2 for a HEAD in part.")] = False,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Do not exit 2 for a HEAD in part.")] = False,
    output_format: Annotated[str, typer.Option("--format", metavar="text|markdown|json|html", help="How to show it.")] = "text",
    column: Column = None,
    tolerance: Annotated[float, typer.Option(metavar="PART", help="Relative change that counts where there is one seed.")] = 0.1,
) -> None:
    """Say what became better and worse, and what is new or fixed, between two saved runs, or between the logs of two runs."""
    with exits():
        from pathlib import Path

        from gradcheck.errors import ConfigError
        from gradcheck.judge.diff import diff as compared
        from gradcheck.judge.diff import unsure, worse_off
        from gradcheck.logs.read import is_log
        from gradcheck.report import diff as shown
        from gradcheck.report.diff import page
        from gradcheck.saved_run import load_all

        renderers = {"text": shown.text, "markdown": shown.markdown, "json": shown.as_json, "html": page}
        if output_format not in renderers:
            raise ConfigError(f"unknown format {output_format!r}", hint=f"formats: {', '.join(renderers)}")
        if not tolerance >= 0:
            raise ConfigError(f"--tolerance must be 0 or more; got {tolerance}", hint="--tolerance 0.1")
        if is_log(Path(base)) or is_log(Path(head)):
            sys.exit(_of_logs(Path(base), Path(head), output_format, columns_of(column), fail_on_new))
        differences = compared(load_all(Path(base)), load_all(Path(head)), Path.cwd(), tolerance)
        print(renderers[output_format](differences, tolerance), end="")
        if fail_on_new and worse_off(differences):
            sys.exit(FOUND)
        sys.exit(FAILED if fail_on_new and not allow_partial and unsure(differences) else 0)


def _of_logs(base: Path, head: Path, output_format: str, columns: Mapping[str, str], fail_on_new: bool) -> int:
    """Prints it. The exit code: FOUND for new findings at warning level or above, where they count."""
    from gradcheck.config.settings import load
    from gradcheck.errors import ConfigError
    from gradcheck.logs import diff as logs
    from gradcheck.logs.read import is_log
    from gradcheck.logs.report import report_of

    for path in (base, head):
        if not is_log(path):
            raise ConfigError(f"{path} is not a log, and a log is compared with logs", hint="name two logs, or two saved runs")
    renderers = {"text": logs.text, "markdown": logs.markdown, "json": logs.as_json}
    if output_format not in renderers:
        raise ConfigError(f"logs are not compared as {output_format}", hint=f"formats: {', '.join(renderers)}")
    differences = logs.compare(*(report_of(path, load(), columns) for path in (base, head)))
    print(renderers[output_format](differences), end="")
    return FOUND if fail_on_new and any(f.severity != "info" for f in differences.new) else 0
