"""Starts a program in processes of its own, with gradcheck inside; receives their messages and passes on signals. No torch here."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gradcheck import interpreter, interrupts
from gradcheck.errors import ConfigError
from gradcheck.live.command import UserProgram

LAUNCHED = "gradcheck.live.launched"
START = "start.py"
VARIABLE = "GRADCHECK_ORDER"  # of the environment: what the processes are told
_AFTER = 2.0  # seconds that the last message has to arrive; processes that the program left behind may hold the pipe open

Hear = Callable[[dict[str, Any]], bool]  # message -> whether it was the last one


@dataclass
class Exit:
    """How a program ended."""

    code: int = 0  # as the shell has it: 128 + the signal that killed it
    interrupted: bool = False


def launch(
    program: UserProgram,
    child: str,
    order: dict[str, Any],
    folder: Path,
    streams: AbstractContextManager[dict[str, Any]],
    hear: Hear,
    started: Callable[[], None] = lambda: None,
) -> Exit:
    """Runs the program to its end. `child`: the module that each of its processes runs; it gets `order` and the program.

    `folder`: for a pipe with a name. `streams`: what the processes write to. Raises ConfigError where processes cannot be given a pipe.
    """
    if os.name != "posix":
        raise ConfigError("a command after -- needs Linux or macOS", hint="gradcheck scan train.py, or gradcheck.watch() in the program")
    spread = bool(program.launcher)
    read, write, address = _fifo(folder / "said") if spread else _pipe()
    told = order | {"kind": program.kind, "what": program.what, "arguments": program.arguments, "name": program.name}
    told |= {"pipe": address, "start": str(folder / START), "launcher": program.launcher}
    environment = os.environ | {VARIABLE: json.dumps(told)}
    if spread:  # what the launcher starts, in place of the program
        (folder / START).write_text(interpreter.code(child, program.interpreter), encoding="utf-8")
    command = interpreter.command(LAUNCHED if spread else child, (), program.interpreter, program.options)
    ended = Exit()
    with streams as given, _forwarding(ended) as follow:
        process = subprocess.Popen(command, env=environment, pass_fds=() if spread else (write,), **given)
        if not spread:
            os.close(write)
        follow.append(process)
        started()
        listener = threading.Thread(target=_listen, args=(os.fdopen(read, encoding="utf-8"), hear), daemon=True)
        listener.start()
        code = process.wait()
        if spread:
            os.close(write)
        listener.join(_AFTER)
    ended.code = code if code >= 0 else 128 - code
    ended.interrupted = ended.interrupted or code in (-signal.SIGINT, 130)
    return ended


def _pipe() -> tuple[int, int, int]:
    """Our end, the child's end, and how the child knows it."""
    read, write = os.pipe()
    return read, write, write


def _fifo(path: Path) -> tuple[int, int, str]:
    """The same for a child of the child, which inherits no pipe. Our own writing end keeps it open while no one writes."""
    os.mkfifo(path, 0o600)
    read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write = os.open(path, os.O_WRONLY)
    os.set_blocking(read, True)
    return read, write, str(path)


@contextmanager
def _forwarding(ended: Exit) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Signals are for the program: it gets the terminal's directly; those sent to this process alone are passed on."""
    processes: list[subprocess.Popen[bytes]] = []

    def interrupted(number: int, frame: Any) -> None:
        ended.interrupted = True
        interrupts.note(number)
        for process in processes:
            if number == signal.SIGTERM or not _in_foreground():
                process.send_signal(number)

    before = {s: signal.signal(s, interrupted) for s in interrupts.SIGNALS if interrupts.is_plain(s)}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether this process is among those to which the terminal sends Ctrl-C."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _listen(pipe: IO[str], hear: Hear) -> None:
    with pipe:
        for text in pipe:
            try:
                said = json.loads(text)
            except ValueError:
                continue  # cut off by the program's end
            if hear(said):
                return
