"""Looking at a run in another process: its board, drawn from what it saves. The run does not notice. No torch here."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradcheck import files
from gradcheck.errors import TargetError
from gradcheck.live.record_file import board_file, is_alive
from gradcheck.live.screen import REFRESH, Lines, Screen
from gradcheck.saved_run import shaped
from gradcheck.types.gauges import Frame

LOOK_EVERY = 0.5  # seconds between two looks at the file
SILENT = 120.0  # seconds of silence from another machine after which that is reported


@dataclass
class LastSeen:
    """What the run has written last."""

    title: str
    process: int
    born: str
    host: str
    at: float
    frame: Frame | None

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Assumes that a process on another machine is alive."""
        return not self.here or is_alive(self.process, self.born)


def attach(run: Path, *, color: str = "auto", quiet: bool = False) -> int:
    """Shows the board until the run has ended. Returns 0 then, and 1 when its process was killed. Raises TargetError for no such run."""
    if board_file(run).exists() and not board_file(run).is_file():
        raise TargetError(f"{board_file(run)} is no file", hint="name the run that `gradcheck watch --save` writes, or its folder")
    seen = look(run)
    if seen is None:
        hint = f"gradcheck report {run}" if run.exists() else f"gradcheck watch --save {run} -- python train.py"
        raise TargetError(f"no run is in progress that is saved as {run}", hint=hint)
    where = "" if seen.here else f" on {seen.host}"
    print(f"gradcheck: {seen.title} is process {seen.process}{where}; Ctrl-C leaves it alone", file=sys.stderr)
    with _shown(seen.title, color, quiet) as show:
        ended = _follow(run, seen, show)
    print(f"gradcheck: {ended}; gradcheck report {run} shows it", file=sys.stderr)
    return 0 if ended == ENDED else 1


ENDED = "the run has ended"


def _follow(run: Path, seen: LastSeen, show: Callable[[Frame], None]) -> str:
    shown = silent = 0.0
    while True:
        if seen.frame is not None and seen.at != shown:
            shown = seen.at
            show(seen.frame)
        if not seen.alive:
            return ENDED if look(run) is None else f"process {seen.process} was killed"
        if not seen.here and time.time() - seen.at > SILENT and silent != seen.at:
            silent = seen.at
            print(f"gradcheck: no word from {seen.host} for {time.time() - seen.at:.0f} s", file=sys.stderr)
        time.sleep(LOOK_EVERY)
        last = look(run)
        if last is None:
            return ENDED
        seen = last


def look(run: Path) -> LastSeen | None:
    """None if no run writes there."""
    try:
        return shaped(LastSeen, files.parsed(board_file(run)))
    except OSError:
        return None
    except ValueError as error:
        raise TargetError(f"{board_file(run)} is not written by this version of gradcheck", hint="update gradcheck") from error


@contextmanager
def _shown(title: str, color: str, quiet: bool) -> Iterator[Callable[[Frame], None]]:
    """On a terminal a board, elsewhere lines."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        screen = Screen() if quiet else Lines()
        with screen.opened():
            yield screen.show
        return
    from rich.live import Live

    from gradcheck.report.console import make_console
    from gradcheck.report.live import board

    console = make_console(sys.stderr, "never" if color == "never" else "always" if color == "always" else "auto")
    with Live(board(None, title, console.width), console=console, refresh_per_second=REFRESH, transient=True) as live:
        yield lambda frame: live.update(board(frame, title, console.width))


def run_at(name: str) -> Path:
    """The saved run that a user names: a file, or the folder where `gradcheck watch` was started."""
    from gradcheck.files import is_folder, place

    path = place(name)
    with contextlib.suppress(OSError):
        if is_folder(path):
            return path / ".gradcheck" / "last.json"
    return path
