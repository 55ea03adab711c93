"""All commands, registered. Each is in the file of its name: parse, one call, render, exit code. Heavy imports are inside them."""

from typing import Annotated

import typer

from gradcheck.cli import baseline, bisect, diff, fix, init, report, rules, scan, servers, start, trial, watch
from gradcheck.cli.exit import version
from gradcheck.cli.help import SETTINGS, Command, CommandGroup, TakesArguments

app = typer.Typer(
    cls=CommandGroup,
    context_settings=SETTINGS,
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


app.command(cls=TakesArguments, short_help="Find what keeps a model from training")(scan.scan)
app.command(cls=TakesArguments, short_help="Try remedies, prove them, show or write the edits", epilog=fix.EPILOG)(fix.fix)
app.command(cls=TakesArguments, short_help="Follow a training program to its end")(watch.watch)
app.command(cls=TakesArguments, short_help="Compare remedies in paired trainings", epilog=trial.EPILOG)(trial.trial)
app.command(cls=Command, short_help="Show a saved run again, in any format")(report.report)
app.command(cls=Command, short_help="Compare two saved runs")(diff.diff)
app.command(cls=Command, short_help="Find where two runs of one training part", epilog=bisect.EPILOG)(bisect.bisect)
app.command(cls=Command, short_help="Explain a rule")(rules.rule)
app.command("rules", cls=Command, short_help="List the rules")(rules.list_rules)
app.add_typer(baseline.baseline, name="baseline", short_help="Keep findings that are known")
app.command(cls=Command, short_help="Write a configuration, and a workflow for CI")(init.init)
app.command(cls=Command, short_help="Write a faulty sample and scan it")(start.demo)
app.command(cls=Command, short_help="Serve agents over stdio (MCP)")(servers.mcp)
app.command(cls=Command, short_help="Serve editors over stdio (LSP)")(servers.server)
