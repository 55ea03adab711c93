"""The command `report`: a saved run, judged again and shown."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gradcheck.cli.completion import format_name
from gradcheck.cli.exit import exits
from gradcheck.cli.groups import BaselineOptions, ConfigOptions, GateOptions, OutputOptions, RuleOptions, ViewOptions, with_groups
from gradcheck.cli.options import Color


@with_groups
def report(
    *,
    run: Annotated[str, typer.Argument(metavar="RUN.json", help="A saved run: what `scan --output json:RUN.json` wrote.")],
    format: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="Short for --output FORMAT.", autocompletion=format_name)
    ] = None,
    rules: RuleOptions,
    gate: GateOptions,
    baseline: BaselineOptions,
    outputs: OutputOptions,
    view: ViewOptions,
    config: ConfigOptions,
    color: Color = "auto",
) -> None:
    """Judge a saved run again, with other rules or limits, and show it. Nothing is run."""
    with exits(color):
        from pathlib import Path

        from gradcheck.cli.gate import exit_code, without_known
        from gradcheck.judge.judge import judge_again
        from gradcheck.report.json import load_all

        settings = config.settings(**rules.choice, **gate.flags, max_warnings=baseline.max_warnings)
        places = outputs.parsed(*([format] if format else []), inputs=[run])
        known = baseline.known(settings, config.isolated)
        reports = without_known([judge_again(saved, settings) for saved in load_all(Path(run))], settings, known)
        view.write(reports, places, settings, color)
        outputs.open(reports, places)
        sys.exit(exit_code(reports, settings, exit_zero=gate.exit_zero, allow_stale=baseline.allow_stale))
