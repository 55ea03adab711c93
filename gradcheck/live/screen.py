"""Where a watched run is shown: nowhere, as lines on stderr, or on a board below the program's own output."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.live import Live
from rich.text import Text

from gradcheck.report.console import make_console
from gradcheck.report.formatting import clean
from gradcheck.report.live import board, finding_line, plain_line
from gradcheck.types.gauges import Frame

LINE_EVERY = 1.0  # seconds between two lines, at least
REFRESH = 4.0  # a second
CHUNK = 1 << 16


class Screen:
    """Shows nothing. `opened` gives the streams that the program is started with."""

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        yield {}

    def started(self) -> None:
        """The program runs."""

    def show(self, frame: Frame) -> None:
        """A measured step."""


class Lines(Screen):
    """A line for a measured step, and one for each finding as it appears. The program's own output goes where it always goes."""

    def __init__(self) -> None:
        self._last = -LINE_EVERY
        self._known: set[tuple[str, str]] = set()
        self._told: set[str] = set()
        self._pending: Frame | None = None

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        yield {}
        if self._pending is not None:
            self._say(self._pending)

    def show(self, frame: Frame) -> None:
        self._pending = frame
        now = time.monotonic()
        if now - self._last >= LINE_EVERY:
            self._last = now
            self._say(frame)
        for spike in frame.spikes:
            if spike not in self._told:
                self._told.add(spike)
                print(f"gradcheck: spike: {clean(spike)}", file=sys.stderr, flush=True)
        for finding in frame.findings:
            key = finding.code, finding.place
            if key not in self._known and finding.severity != "info":
                self._known.add(key)
                print(f"gradcheck: {finding_line(finding)}", file=sys.stderr, flush=True)

    def _say(self, frame: Frame) -> None:
        self._pending = None
        print(f"gradcheck: {plain_line(frame)}", file=sys.stderr, flush=True)


class Terminal(Screen):
    """A board on stderr. What the program writes to the terminal goes through a pseudo-terminal, and is shown above the board.

    An output of the program that does not go to a terminal is left alone.
    """

    def __init__(self, title: str, color: str = "auto") -> None:
        self.title = title
        self.console = make_console(sys.stderr, "never" if color == "never" else "always" if color == "always" else "auto")
        self.frame: Frame | None = None
        self.partial = b""
        self._own: int | None = None
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._size: tuple[int, int] | None = None

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        import pty
        import tty

        self._own, theirs = pty.openpty()
        tty.setraw(theirs)
        self._resize()
        streams: dict[str, Any] = {"stderr": theirs}
        if sys.stdout.isatty():
            streams["stdout"] = theirs
        reader = threading.Thread(target=self._read, args=(self._own,), daemon=True)
        options: dict[str, Any] = {"refresh_per_second": REFRESH, "transient": True, "redirect_stdout": False, "redirect_stderr": False}
        try:
            with Live(get_renderable=self._board, console=self.console, **options) as self._live:
                self._theirs = theirs
                reader.start()
                yield streams
                self.started()
                reader.join(1.0)
                self._write(b"\n" if self.partial.strip() else b"")
        finally:
            self._live = None
            self.started()
            os.close(self._own)

    def started(self) -> None:
        """The program has its end of the pseudo-terminal: our copy is closed, so that reading ends when the last writer closes it."""
        if self._theirs >= 0:
            os.close(self._theirs)
            self._theirs = -1

    _theirs = -1

    def show(self, frame: Frame) -> None:
        self.frame = frame

    def _board(self) -> Any:
        self._resize()
        return board(self.frame, self.title, self.console.width, self.partial.decode(errors="replace"))

    def _resize(self) -> None:
        """The program's terminal is as wide as ours."""
        import termios

        try:
            size = termios.tcgetwinsize(sys.stderr.fileno())
            if size != self._size and self._own is not None:
                termios.tcsetwinsize(self._own, size)
                self._size = size
        except (OSError, termios.error):
            pass

    def _read(self, descriptor: int) -> None:
        while True:
            try:
                data = os.read(descriptor, CHUNK)
            except OSError:  # the last writer has closed it
                return
            if not data:
                return
            self._write(data)

    def _write(self, data: bytes) -> None:
        """Complete lines go above the board; the one that is being written stays in it. A carriage return restarts it."""
        with self._lock:
            *lines, rest = (self.partial + data).split(b"\n")
            for text in lines:
                shown = _last_version(text).decode(errors="replace")
                self.console.print(Text.from_ansi(shown), soft_wrap=True)
            self.partial = _last_version(rest) if not rest.endswith(b"\r") else rest


def _last_version(text: bytes) -> bytes:
    """What an overwritten line finally shows."""
    return text.rstrip(b"\r").rpartition(b"\r")[2]
