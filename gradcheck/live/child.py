"""Runs a Python program as the interpreter would, watched: started by `gradcheck watch`.

A wrapper rather than a hook of the interpreter's start (sitecustomize, .pth): those would reach every process that the program starts, and
could hide the user's own. An environment variable says what to run and where to report; it is removed before the program runs.
"""

import os
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from gradcheck import interrupts
from gradcheck.capture.program import Kind, start
from gradcheck.live.messages import deaf, received, speaking

STOPPED = 1
_OURS = (__file__, start.__code__.co_filename)  # files whose frames a traceback need not show


def main() -> None:
    """Exits as the program does."""
    order = received()
    from gradcheck.live.finder import Finder
    from gradcheck.live.messages import Orphan

    orphan = Orphan(order)
    with speaking(order) as pipe:
        finder = Finder(order, pipe, orphan.tell)
        error: BaseException | None = None
        finder.install()
        if order.get("launched"):
            signal.signal(signal.SIGTERM, _end)
        interrupts.as_usual()
        orphan.prepare()
        try:
            run_program(order["kind"], order["what"], order["arguments"])
        except BaseException as caught:
            error = caught
        if order.get("launched"):
            deaf()
        finder.finish(error)
    _leave(error, 0 if order.get("launched") else STOPPED)


def _end(number: int, frame: Any) -> None:
    """The launcher ends the other processes when one fails: the report of what was seen is still made."""
    sys.exit(128 + number)


def run_program(kind: Kind, what: str, arguments: list[str]) -> None:
    module = types.ModuleType("__main__")  # permanently: what the program pickles, or registers for its exit, looks up names here
    home = str(Path(what).resolve().parent) if kind == "script" else os.getcwd()
    for code in start(kind, what, arguments, module, home):
        exec(code, module.__dict__)


def _leave(error: BaseException | None, stopped: int) -> None:
    from gradcheck.errors import TrainingStopped

    if error is None:
        return
    if isinstance(error, SystemExit):
        raise error.with_traceback(None)
    if isinstance(error, TrainingStopped):
        sys.exit(stopped)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OURS:
        trace = trace.tb_next
    if sys.excepthook is sys.__excepthook__:
        traceback.print_exception(type(error), error.with_traceback(trace), trace)
    else:
        sys.excepthook(type(error), error, trace)
    sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
