"""What goes to stderr: errors that are not findings, and the progress bar."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.text import Text

from gradcheck.errors import GradcheckError
from gradcheck.report.console import make_console
from gradcheck.report.formatting import Color, clean

Progress = Callable[[str, float], None]  # name of the phase, fraction of it that is done

LONGEST = 600  # characters of a line of an error: eight lines of a terminal (heuristic); the user's own values have no bound
LINES = "GRADCHECK_PROGRESS_LINES"  # set in the environment by a program that reads the lines below from stderr
LINE = "gradcheck-progress "  # fraction and phase follow


def print_error(error: GradcheckError, color: Color = "auto") -> None:
    """`error: what`, `  --> where`, `help: next step`."""
    console = make_console(sys.stderr, color)
    first, *rest = error.message.splitlines() or [""]
    console.print(Text.assemble(("error:", "bold red"), " ", (clean(_cut(first)), "bold")))
    for line in filter(str.strip, rest):  # indented: someone else's text must not pass for a command to what reads stderr
        console.print(Text(f"  | {clean(_cut(line))}"))
    if error.location is not None:
        scope = f"  in {clean(error.location.scope)}" if error.location.scope else ""
        console.print(Text.assemble(("  --> ", "bold blue"), clean(str(error.location)), scope))
    if error.hint:
        console.print(Text.assemble(("help:", "bold cyan"), " ", clean(_cut(error.hint))))


def _cut(text: str) -> str:
    """Beginning and end of what is too long, as of an error that quotes a value in full."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 3 :]}"


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """A bar on stderr that names the phase; None when no one would see it. It vanishes when done. A program that asked gets lines."""
    if not quiet and os.environ.get(LINES):
        yield lambda phase, fraction: print(f"{LINE}{fraction:.3f} {phase}", file=sys.stderr, flush=True)
        return
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn())
    console = make_console(sys.stderr)
    with Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(clean(title), total=1.0)

        def report(phase: str, fraction: float) -> None:
            bar.update(task, description=clean(f"{title}: {phase}"), completed=fraction)

        yield report
