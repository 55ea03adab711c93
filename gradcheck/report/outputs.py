"""`--output FORMAT[:PATH]` and `--open`: what a run writes, and where."""

import importlib
import io
import os
import sys
import tempfile
import webbrowser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from gradcheck import files
from gradcheck.errors import ConfigError, SavedRunError
from gradcheck.report.console import make_console, show
from gradcheck.report.formatting import View
from gradcheck.types.report import Report

# Format -> the module whose `render(reports, view) -> str`, or the function after a colon, renders it; `full` is drawn on a console, below.
FORMATS: Mapping[str, str] = {
    "full": "gradcheck.report.console",
    "concise": "gradcheck.report.listings:concise",
    "brief": "gradcheck.report.brief",
    "json": "gradcheck.saved_run",
    "html": "gradcheck.report.html",
    "json-lines": "gradcheck.report.listings:json_lines",
    "markdown": "gradcheck.report.markdown",
    "sarif": "gradcheck.report.sarif",
    "junit": "gradcheck.report.listings:junit",
    "github": "gradcheck.report.listings:github",
    "gitlab": "gradcheck.report.listings:gitlab",
    "rdjson": "gradcheck.report.listings:rdjson",
}


@dataclass(frozen=True)
class Output:
    """One format for one place; `path` None is stdout."""

    format: str
    path: Path | None = None


def parse_outputs(texts: Iterable[str], *, opened: bool = False, inputs: Iterable[str] = ()) -> tuple[Output, ...]:
    """Outputs of a run. When none goes to stdout, `full` does too. `opened`: a browser will show the page. `inputs`: files that
    the run reads, which no output may replace.

    Raises ConfigError for an unknown format, a folder that does not exist, two outputs for one place, or a page in a terminal.
    """
    outputs = [_output(text) for text in texts]
    if sys.stdout.isatty() and Output("html") in outputs:
        if not opened:
            raise ConfigError("html is not for a terminal", hint="--output html:report.html, or --open, or pipe it")
        outputs = [o for o in outputs if o != Output("html")]
    if all(o.path is not None for o in outputs):
        outputs.insert(0, Output("full"))
    places = [o.path and os.path.realpath(o.path) for o in outputs]
    if places.count(None) > 1:
        both = " and ".join(o.format for o in outputs if o.path is None)
        raise ConfigError(f"{both} would both be written to stdout", hint="give all but one a file: --output json:run.json")
    for output, place in zip(outputs, places, strict=True):
        if places.count(place) > 1 and place != os.devnull:
            raise ConfigError(f"two outputs would be written to {output.path}", hint="give each its own file")
        if place in {os.path.realpath(name) for name in inputs}:
            raise ConfigError(f"--output {output.format}:{output.path} would replace what is read", hint="give it another file")
    return tuple(outputs)


def _output(text: str) -> Output:
    name, colon, path = text.partition(":")
    if name not in FORMATS:
        from gradcheck.judge.select import suggestion

        ending = Path(name).suffix[1:]
        hint = f"--output {ending}:{name}" if ending in FORMATS else suggestion(name, FORMATS) + f"formats: {', '.join(FORMATS)}"
        raise ConfigError(f"unknown output format {name!r}", hint=hint)
    if not colon or path == "-":
        return Output(name)
    place = files.place(path)
    if not path or files.is_folder(place):
        raise ConfigError(f"--output {text} names no file", hint=f"--output {name}:FILE")
    if not files.is_folder(place.parent):
        raise ConfigError(f"no such folder: {place.parent}", hint=f"make it first, or give another path after --output {name}:")
    return Output(name, place)


def write_outputs(reports: Sequence[Report], outputs: Iterable[Output], view: View) -> None:
    """Writes the reports, files first. Raises SavedRunError when a file cannot be written."""
    from gradcheck.files import write_text

    outputs = sorted(outputs, key=lambda o: o.path is None)
    for output in outputs:
        if output.path is not None:
            text = io.StringIO()
            _render(reports, output.format, text, replace(view, color="never"))
            write_text(output.path, text.getvalue())
        else:
            _to_stdout(reports, output.format, view)
    if any(o.format == "github" for o in outputs):
        from gradcheck.report.listings import append_summary

        append_summary(reports)


def _to_stdout(reports: Sequence[Report], format: str, view: View) -> None:
    try:
        _render(reports, format, sys.stdout, view)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SavedRunError(f"cannot write to stdout: {error.strerror}", hint=f"give it a file: --output {format}:FILE") from error


def _render(reports: Sequence[Report], format: str, file: TextIO, view: View) -> None:
    if format != "full":
        module, _, name = FORMATS[format].partition(":")
        file.write(getattr(importlib.import_module(module), name or "render")(reports, view))
        return
    console = make_console(file, view.color)
    for i, report in enumerate(reports):
        if i:
            console.print()
        options = {"profile": view.profile, "show_passed": view.show_passed, "show_all": view.show_all, "written": view.written}
        show(report, console, with_target=len(reports) > 1, **options)


def open_reports(reports: Sequence[Report], outputs: Iterable[Output]) -> None:
    """Opens the HTML file among the outputs, or makes one in the temporary folder. Says where it is when no browser opens."""
    path = next((o.path for o in outputs if o.format == "html" and o.path is not None), None) or _temporary(reports)
    page = path.resolve()
    if not _has_display():
        print(f"note: no display to open a browser on: the report is {page}", file=sys.stderr)
    elif not _opened(page):
        print(f"note: no web browser was found: the report is {page}", file=sys.stderr)


def _temporary(reports: Sequence[Report]) -> Path:
    from gradcheck.report.html import render

    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="gradcheck-", suffix=".html", delete=False) as file:
        file.write(render(reports))
    return Path(file.name)


def _has_display() -> bool:
    """Without one, `webbrowser` would start a text browser in this terminal, and wait for it."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _opened(page: Path) -> bool:
    try:
        return webbrowser.open(page.as_uri())
    except (webbrowser.Error, OSError):
        return False
