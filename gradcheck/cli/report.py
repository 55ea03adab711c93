"""The command `report`: a saved run, judged again and shown."""

import sys
from typing import Annotated

import typer

from gradcheck.cli.exit import exits
from gradcheck.cli.groups import BaselineOptions, ConfigOptions, GateOptions, OutputOptions, RuleOptions, ViewOptions, with_groups
from gradcheck.cli.options import Color, Column, columns_of, format_name


@with_groups
def report(
    *,
    run: Annotated[str, typer.Argument(metavar="RUN.json|LOG", help="A saved run (`scan --output json:RUN.json`), or a log.")],
    column: Column = None,
    clip: Annotated[float | None, typer.Option(metavar="NORM", help="Of a log: the norm that its gradients were clipped to.")] = None,
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
    """Judge a saved run again, with other rules or limits, or the log of a run that something else wrote. Nothing is run.

    Logs: trainer_state.json, metrics.csv, event files of TensorBoard, local runs of W&B and MLflow, CSV, JSON lines; or a run's folder.
    """
    with exits(color):
        from pathlib import Path

        from gradcheck.cli.gate import exit_code, without_known
        from gradcheck.judge.judge import judge_again
        from gradcheck.logs.read import is_log
        from gradcheck.logs.report import report_of
        from gradcheck.saved_run import load_all

        settings = config.settings(**rules.choice, **gate.flags, max_warnings=baseline.max_warnings)
        places = outputs.parsed(*([format] if format else []), inputs=[run])
        known = baseline.known(settings, config.isolated)
        path = Path(run)
        if is_log(path):
            judged = [report_of(path, settings, columns_of(column), clip)]
        else:
            judged = [judge_again(saved, settings) for saved in load_all(path)]
        reports = without_known(judged, settings, known)
        view.write(reports, places, settings, color)
        outputs.open(reports, places)
        sys.exit(exit_code(reports, settings, exit_zero=gate.exit_zero, allow_stale=baseline.allow_stale))
