"""The parent of a watched program: starts it, shows what it says of itself, lets its own output through, and brings its report home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gradcheck.errors import ConfigError
from gradcheck.live.command import Program
from gradcheck.live.screen import Lines, Screen, Terminal
from gradcheck.nouns.live import Frame, LiveFinding, LiveLayer
from gradcheck.nouns.report import Report

_AFTER = 2.0  # seconds that what was said last has to arrive; processes that the program left behind may hold the pipe open


@dataclass
class Ending:
    """How a watched program ended."""

    code: int  # as the shell has it: 128 + the signal that killed it
    interrupted: bool = False
    stopped: str = ""  # code of the finding that ended it
    failure: str = ""  # of gradcheck's own code
    elsewhere: bool = False  # another machine's process reports
    report: Report | None = None


@dataclass
class Orders:
    """What the child is told."""

    every: int
    stop_on: str | None
    config: list[str] = field(default_factory=list)
    isolated: bool = False
    flags: dict[str, Any] = field(default_factory=dict)


def run(program: Program, orders: Orders, *, color: str = "auto", quiet: bool = False) -> Ending:
    """Runs the program to its end. Raises ConfigError where processes cannot be given a pipe."""
    if os.name != "posix":
        raise ConfigError("gradcheck watch -- needs Linux or macOS", hint="put `with gradcheck.watch(model, optimizer):` around the loop")
    with tempfile.TemporaryDirectory(prefix="gradcheck-") as folder:
        file = Path(folder) / "run.json"
        ending = _run(program, orders, file, _screen(program, color, quiet))
        if file.exists():
            ending.report = Report.load(file)
        return ending


def _screen(program: Program, color: str, quiet: bool) -> Screen:
    if quiet:
        return Screen()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal(program.name, color)
    return Lines()


def _run(program: Program, orders: Orders, file: Path, screen: Screen) -> Ending:
    spread = program.kind == "torchrun"
    read, write, address = _fifo(file.with_name("said")) if spread else _pipe()
    order = vars(orders) | {"kind": program.kind, "what": program.what, "arguments": program.arguments, "name": program.name}
    order |= {"pipe": address, "report": str(file)}
    environment = os.environ | {"GRADCHECK_WATCH": json.dumps(order)}
    command = [program.interpreter, *program.options, "-m", "gradcheck.live.launched" if spread else "gradcheck.live.child"]
    ending = Ending(0)
    with screen.opened() as streams, _forwarding(ending) as follow:
        process = subprocess.Popen(command, env=environment, pass_fds=() if spread else (write,), **streams)
        if not spread:
            os.close(write)
        follow.append(process)
        screen.started()
        listener = threading.Thread(target=_listen, args=(os.fdopen(read, encoding="utf-8"), screen, ending), daemon=True)
        listener.start()
        code = process.wait()
        if spread:
            os.close(write)
        listener.join(_AFTER)
    ending.code = code if code >= 0 else 128 - code
    ending.interrupted = ending.interrupted or code in (-signal.SIGINT, 130)
    return ending


def _pipe() -> tuple[int, int, int]:
    """Our end, the child's end, and how the child knows it."""
    read, write = os.pipe()
    return read, write, write


def _fifo(path: Path) -> tuple[int, int, str]:
    """The same for a child of the child, which inherits no pipe. Our own writing end keeps it open while nobody writes."""
    os.mkfifo(path, 0o600)
    read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write = os.open(path, os.O_WRONLY)
    os.set_blocking(read, True)
    return read, write, str(path)


@contextmanager
def _forwarding(ending: Ending) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Ctrl-C is the program's: on a terminal it gets it by itself; what is sent to this process alone is passed on."""
    processes: list[subprocess.Popen[bytes]] = []

    def interrupted(number: int, frame: Any) -> None:
        ending.interrupted = True
        for process in processes:
            if number != signal.SIGINT or not _in_foreground():
                process.send_signal(number)

    before = {s: signal.signal(s, interrupted) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether this process belongs to those that the terminal sends its Ctrl-C to."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _listen(pipe: IO[str], screen: Screen, ending: Ending) -> None:
    with pipe:
        for text in pipe:
            try:
                said = json.loads(text)
            except ValueError:
                continue  # cut off by the program's end
            kind = said.pop("kind")
            if kind == "frame":
                screen.show(_frame(said))
            elif kind == "end":
                ending.stopped, ending.failure = said.get("stopped", ""), said.get("failure", "")
                ending.elsewhere = said.get("elsewhere", False)
                return


def _frame(said: dict[str, Any]) -> Frame:
    said["layers"] = tuple(LiveLayer(**x) for x in said["layers"])
    said["findings"] = tuple(LiveFinding(**x) for x in said["findings"])
    return Frame(**said)
