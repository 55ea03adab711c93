"""The commands `baseline create`, `update`, `prune` and `show`: findings that a project knows and lives with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gradcheck.cli.exit import FAILED, exits
from gradcheck.cli.help import Command, CommandGroup
from gradcheck.cli.options import BaselineFile, Config, Isolated, Quiet, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from gradcheck.config.settings import Settings
    from gradcheck.types.report import Report


baseline = typer.Typer(
    cls=CommandGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="The findings that a project knows and lives with: a run fails for new and worse ones.",
)
Runs = Annotated[
    list[str] | None, typer.Argument(metavar="TARGET|RUN.json", help="What to scan, or saved runs [the targets of the configuration].")
]


@baseline.command(cls=Command)
def create(runs: Runs = None, file: BaselineFile = None, config: Config = None, isolated: Isolated = False, quiet: Quiet = False) -> None:
    """Write a baseline of what is found now. Refuses when there is one."""
    with exits():
        from gradcheck.cli.gate import least_severity
        from gradcheck.errors import ConfigError
        from gradcheck.judge.baseline import entries
        from gradcheck.report.baseline_file import write

        settings = settings_of(config, isolated)
        path = _place(settings, file)
        if path.exists():
            raise ConfigError(f"{path} exists", hint="`gradcheck baseline update` brings it up to date")
        known = entries(_told(_reports(runs, settings, quiet)), path.parent, least_severity(settings))
        write(path, known)
        print(f"{path}: {_counted(len(known))}")


@baseline.command(cls=Command)
def update(runs: Runs = None, file: BaselineFile = None, config: Config = None, isolated: Isolated = False, quiet: Quiet = False) -> None:
    """Bring the entries of the scanned targets up to date.

    New findings are added, values renewed, stale entries removed.
    """
    with exits():
        from gradcheck.cli.gate import Known, compare_all, least_severity
        from gradcheck.judge.baseline import updated
        from gradcheck.report.baseline_file import read, write

        settings = settings_of(config, isolated)
        path = _place(settings, file)
        old = read(path)
        compared = compare_all(_told(_reports(runs, settings, quiet)), Known(path, old), settings)
        new = updated(old, compared, path.parent, least_severity(settings))
        write(path, new)
        print(f"{path}: {_counted(len(new))}, {_counted(len(old))} before")


@baseline.command(cls=Command)
def prune(runs: Runs = None, file: BaselineFile = None, config: Config = None, isolated: Isolated = False, quiet: Quiet = False) -> None:
    """Remove the entries whose findings are gone. Without TARGET also those of targets that are no longer configured."""
    with exits():
        from gradcheck.cli.gate import Known, compare_all
        from gradcheck.judge.baseline import pruned
        from gradcheck.judge.consensus import target_name
        from gradcheck.report.baseline_file import read, write

        settings = settings_of(config, isolated)
        path = _place(settings, file)
        old = read(path)
        reports = _reports(runs, settings, quiet)
        only = None if runs else {target_name(report.target, path.parent) for report in reports}
        new = pruned(old, compare_all(reports, Known(path, old), settings), only)
        if new != old:
            write(path, new)
        print(f"{path}: {len(old) - len(new)} removed, {_counted(len(new))} left")


@baseline.command(cls=Command)
def show(file: BaselineFile = None, config: Config = None, isolated: Isolated = False) -> None:
    """List the entries. Nothing is scanned."""
    with exits():
        from gradcheck.analysis.wording import number
        from gradcheck.report.baseline_file import read
        from gradcheck.report.formatting import clean

        path = _place(settings_of(config, isolated), file)
        every = read(path)
        if not every:
            print(clean(f"{path} lists no findings"))
        for entry in every:
            value = "" if entry.value is None else f"  {entry.quantity} {number(entry.value)}"
            print(clean(f"{entry.target}: {entry.severity} {entry.key}{value}"))


def _place(settings: Settings, given: str | None) -> Path:
    """The baseline's file. Raises ConfigError for a folder that does not exist, before anything is scanned."""
    from pathlib import Path

    from gradcheck.cli.gate import baseline_path
    from gradcheck.errors import ConfigError
    from gradcheck.report.baseline_file import NAME

    path = baseline_path(settings, given) or Path(NAME)
    if not path.parent.is_dir():
        raise ConfigError(f"no such folder: {path.parent}", hint="make it first, or give another path with --baseline")
    return path


def _told(reports: list[Report]) -> list[Report]:
    """The reports; on stderr what cannot be in the baseline, since it was not looked at."""
    from gradcheck.report.rows import notices

    for notice in notices(reports):
        print(f"{notice.report.target}: {notice.text}", file=sys.stderr)
    return reports


def _counted(count: int) -> str:
    return f"{count} known {'finding' if count == 1 else 'findings'}"


def _reports(runs: list[str] | None, settings: Settings, quiet: bool) -> list[Report]:
    """Reports of saved runs, judged by today's settings, and of targets, which are scanned. Exits with 2 when one cannot be."""
    from pathlib import Path

    from gradcheck.judge.judge import judge_again
    from gradcheck.saved_run import load_all

    words = runs or []
    saved = [judge_again(report, settings) for word in words if word.endswith(".json") for report in load_all(Path(word))]
    targets = [word for word in words if not word.endswith(".json")]
    if words and not targets:
        return saved
    from gradcheck.cli.jobs import scan_configured

    reports, failed = scan_configured(targets, settings, quiet)
    if failed:
        sys.exit(FAILED)
    return [*saved, *reports]
