"""`--output FORMAT[:PATH]`: what a run writes, and where."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from gradcheck.errors import ConfigError
from gradcheck.nouns.report import Report
from gradcheck.report.console import Color, make_console, show

FORMATS = ("full", "concise", "json")


@dataclass(frozen=True)
class Output:
    """One format for one place; `path` None is stdout."""

    format: str
    path: Path | None = None


@dataclass(frozen=True)
class View:
    """How the `full` format shows a report."""

    color: Color = "auto"
    profile: bool = False
    show_passed: bool = False
    show_all: bool = False


def parse_outputs(texts: Iterable[str]) -> tuple[Output, ...]:
    """Outputs of a run. When none goes to stdout, `full` does too.

    Raises ConfigError for an unknown format, a folder that does not exist, or two outputs for one place.
    """
    outputs = [_output(text) for text in texts]
    if all(o.path is not None for o in outputs):
        outputs.insert(0, Output("full"))
    places = [o.path for o in outputs]
    if places.count(None) > 1:
        both = " and ".join(o.format for o in outputs if o.path is None)
        raise ConfigError(f"{both} would both be written to stdout", hint="give all but one a file: --output json:run.json")
    for path in places:
        if places.count(path) > 1:
            raise ConfigError(f"two outputs would be written to {path}", hint="give each its own file")
    return tuple(outputs)


def _output(text: str) -> Output:
    name, colon, path = text.partition(":")
    if name not in FORMATS:
        from gradcheck.judge.select import suggestion

        raise ConfigError(f"unknown output format {name!r}", hint=suggestion(name, FORMATS) + f"formats: {', '.join(FORMATS)}")
    if not colon or path == "-":
        return Output(name)
    place = Path(path).expanduser()
    if not path or place.is_dir():
        raise ConfigError(f"--output {text} names no file", hint=f"--output {name}:FILE")
    if not place.parent.is_dir():
        raise ConfigError(f"no such folder: {place.parent}", hint=f"make it first, or give another path after --output {name}:")
    return Output(name, place)


def write_outputs(reports: Sequence[Report], outputs: Iterable[Output], view: View) -> None:
    """Writes the reports, files first. Raises SavedRunError when a file cannot be written."""
    from gradcheck.report.json import write_text

    for output in sorted(outputs, key=lambda o: o.path is None):
        if output.path is not None:
            text = io.StringIO()
            _render(reports, output.format, text, View("never", view.profile, view.show_passed, view.show_all))
            write_text(output.path, text.getvalue())
        else:
            _render(reports, output.format, sys.stdout, view)
            sys.stdout.flush()


def _render(reports: Sequence[Report], format: str, file: TextIO, view: View) -> None:
    if format == "json":
        from gradcheck.report.json import dumps_all

        file.write(dumps_all(reports))
    elif format == "concise":
        from gradcheck.report.concise import lines

        file.write("".join(f"{line}\n" for report in reports for line in lines(report)))
    else:
        console = make_console(file, view.color)
        for i, report in enumerate(reports):
            if i:
                console.print()
            options = {"profile": view.profile, "show_passed": view.show_passed, "show_all": view.show_all}
            show(report, console, with_target=len(reports) > 1, **options)
