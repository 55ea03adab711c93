"""`--open`: shows reports in the web browser."""

import os
import sys
import tempfile
import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradcheck.report.outputs import Output
from gradcheck.types.report import Report


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
