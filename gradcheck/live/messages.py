"""What passes between a program that runs with gradcheck inside and its parent: the order, lines through a pipe, signals.

And what a program does when the `gradcheck watch` that started it is killed: it goes on, on the terminal itself, and says so.
A training of days must not end with its watcher, which the system may kill when memory is short. On Linux a signal tells the program
(programs ignore it unless they ask for it); elsewhere, and behind a launcher, it notices when it reports a measured step.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from typing import IO, Any

from gradcheck.live.launch import VARIABLE


def received() -> dict[str, Any]:
    """The order for this process. The program finds no trace of it."""
    order: dict[str, Any] = json.loads(os.environ.pop(VARIABLE))
    if isinstance(order["pipe"], int):
        os.set_inheritable(order["pipe"], False)
    return order


def speaking(order: dict[str, Any]) -> IO[str]:
    """The pipe to the parent: of several processes on a machine, one speaks."""
    leads = int(os.environ.get("LOCAL_RANK", "0")) == 0 or not order.get("launched")
    return open(order["pipe"] if leads else os.devnull, "w", encoding="utf-8", buffering=1)


def deaf() -> None:
    """The launcher passes on a Ctrl-C that this process has got by itself, and ends all processes when one fails."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def send(pipe: IO[str], kind: str, **values: Any) -> bool:
    """Sends a line to the parent. False when the parent is gone, which is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        pipe.write(json.dumps({"kind": kind, **values}) + "\n")
        return True
    return False


_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
SIGNAL = getattr(signal, "SIGURG", None)
TERMINAL = "/dev/tty"
_SHOW_CURSOR = b"\x1b[?25h"  # the board has hidden it


class Orphan:
    """`prepare` before the program runs. `tell` says it once."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.told = False
        self.borrowed = [fd for fd in (1, 2) if _borrowed(fd)]  # what the board has put in the terminal's place

    def prepare(self) -> None:
        """Asks the system to tell when the parent dies."""
        if not sys.platform.startswith("linux") or self.order.get("launched") or SIGNAL is None:
            return
        with contextlib.suppress(OSError, AttributeError, ValueError):
            signal.signal(SIGNAL, lambda number, frame: self._signalled())
            ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(SIGNAL), 0, 0, 0)
            self._signalled()  # it may have been too quick

    def _signalled(self) -> None:
        if os.getppid() != self.order["parent"]:
            self.tell()

    def tell(self) -> None:
        if self.told:
            return
        self.told = True
        self._reconnect()
        saved = self.order["report"]
        look = f"; gradcheck watch --attach {saved} shows it" if self.order["shown"] else ""
        text = f"gradcheck: gradcheck watch was killed; the program goes on as process {os.getpid()}{look}, kill {os.getpid()} ends it\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())

    def _reconnect(self) -> None:
        """The board's terminal is gone with it, and writing to it would fail."""
        for place in (TERMINAL, os.devnull) if self.borrowed else ():
            with contextlib.suppress(OSError):
                real = os.open(place, os.O_WRONLY | os.O_NOCTTY)
                os.write(real, _SHOW_CURSOR)
                for fd in self.borrowed:
                    os.dup2(real, fd)
                os.close(real)
                return


def _borrowed(fd: int) -> bool:
    """A terminal, but not the one that this process belongs to."""
    try:
        if not os.isatty(fd):
            return False
        os.tcgetpgrp(fd)
    except OSError:
        return True
    return False
