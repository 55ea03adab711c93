"""The command `report`: a saved run, judged again and shown."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gradcheck.cli.completion import format_name
from gradcheck.cli.exit import exits
from gradcheck.cli.options import (
    AllowPartial,
    AllowStale,
    BaselineFile,
    Color,
    Column,
    Config,
    ExitZero,
    ExtendSelect,
    FailOn,
    Ignore,
    Isolated,
    MaxWarnings,
    NoBaseline,
    OpenPage,
    Output,
    Profile,
    RulePaths,
    Select,
    ShowPassed,
    columns_of,
    rule_choice,
    settings_of,
    view_of,
)
from gradcheck.cli.scan import AddIgnore, ShowAll, Statistics, write


def report(
    run: Annotated[str, typer.Argument(metavar="RUN.json|LOG", help="A saved run (`scan --output json:RUN.json`), or a log.")],
    column: Column = None,
    clip: Annotated[float | None, typer.Option(metavar="NORM", help="Of a log: the norm that its gradients were clipped to.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="Short for --output FORMAT.", autocompletion=format_name)
    ] = None,
    select: Select = None,
    ignore: Ignore = None,
    extend_select: ExtendSelect = None,
    rules: RulePaths = None,
    fail_on: FailOn = None,
    exit_zero: ExitZero = False,
    allow_partial: AllowPartial = False,
    max_warnings: MaxWarnings = None,
    baseline: BaselineFile = None,
    no_baseline: NoBaseline = False,
    allow_stale: AllowStale = False,
    output: Output = None,
    open_page: OpenPage = False,
    profile: Profile = False,
    show_passed: ShowPassed = False,
    show_all: ShowAll = False,
    statistics: Statistics = False,
    add_ignore: AddIgnore = False,
    config: Config = None,
    isolated: Isolated = False,
    color: Color = "auto",
) -> None:
    """Judge a saved run again, with other rules or limits, or the log of a run that something else wrote. Nothing is run.

    Logs: trainer_state.json, metrics.csv, event files of TensorBoard, local runs of W&B and MLflow, CSV, JSON lines; or a run's folder.
    """
    with exits(color):
        from pathlib import Path

        from gradcheck.cli.gate import baseline_path, exit_code, load_known, without_known
        from gradcheck.judge.judge import judge_again
        from gradcheck.logs.read import is_log
        from gradcheck.logs.report import report_of
        from gradcheck.report.json import load_all
        from gradcheck.report.outputs import parse_outputs

        chosen = rule_choice(select, ignore, extend_select, rules)
        gates = {"fail_on": fail_on, "max_warnings": max_warnings, "allow_partial": allow_partial or None}
        settings = settings_of(config, isolated, **chosen, **gates)
        outputs = parse_outputs([*([format] if format else []), *(output or ())], opened=open_page, inputs=[run])
        known = load_known(None if no_baseline else baseline_path(settings, baseline, isolated=isolated))
        path = Path(run)
        if is_log(path):
            judged = [report_of(path, settings, columns_of(column), clip)]
        else:
            judged = [judge_again(saved, settings) for saved in load_all(path)]
        reports = without_known(judged, settings, known)
        write(reports, outputs, view_of(settings, color, profile, show_passed, show_all), statistics=statistics, add_ignore=add_ignore)
        if open_page:
            from gradcheck.report.browser import open_reports

            open_reports(reports, outputs)
        sys.exit(exit_code(reports, settings, exit_zero=exit_zero, allow_stale=allow_stale))
