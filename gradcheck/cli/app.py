"""All commands, registered. Each stands in the file of its name: parse, one call, render, exit code. Heavy imports stand inside them."""

from __future__ import annotations

from typing import Annotated

import typer

from gradcheck.cli import baseline, diff, fix, init, report, rules, scan, servers, start, trial, watch
from gradcheck.cli.exit import version
from gradcheck.cli.options import TakesArguments

app = typer.Typer(
    rich_markup_mode=None,  # rich help would double the time that --help takes
    pretty_exceptions_enable=False,
    help="A linter and profiler for the training health of PyTorch models.",
)


@app.callback(invoke_without_command=True)
def gradcheck(context: typer.Context, show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if show_version:
        version()
    elif context.invoked_subcommand is None:
        start.alone(context)


app.command(cls=TakesArguments, epilog=scan.EPILOG)(scan.scan)
app.command()(report.report)
app.command()(rules.rule)
app.command("rules")(rules.list_rules)
app.add_typer(baseline.baseline, name="baseline")
app.command()(diff.diff)
app.command()(init.init)
app.command(cls=TakesArguments, epilog=watch.EPILOG)(watch.watch)
app.command(cls=TakesArguments, epilog=fix.EPILOG)(fix.fix)
app.command(cls=TakesArguments, epilog=trial.EPILOG)(trial.trial)
app.command()(start.demo)
app.command()(servers.mcp)
app.command()(servers.server)
