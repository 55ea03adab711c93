"""Runs a Python program as the interpreter would, watched: `python -m gradcheck.live.child`, started by `gradcheck watch`.

A wrapper rather than a hook of the interpreter's start (sitecustomize, .pth): those would reach every process that the program
starts, and could hide the user's own. What to run, and where to say what was seen, stands in the environment variable GRADCHECK_WATCH,
which is taken out before the program runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import IO, Any

VARIABLE = "GRADCHECK_WATCH"
STOPPED = 1
_OURS = (__file__, runpy.run_module.__code__.co_filename)  # files whose frames a traceback need not show


def main() -> None:
    """Exits as the program does."""
    order = json.loads(os.environ.pop(VARIABLE))
    if isinstance(order["pipe"], int):
        os.set_inheritable(order["pipe"], False)
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, for `-m`: the program has a first entry of its own
    from gradcheck.live.finder import Finder

    with open(_speaks_into(order), "w", encoding="utf-8", buffering=1) as pipe:
        finder = Finder(order, pipe)
        error: BaseException | None = None
        finder.install()
        if order.get("launched"):
            signal.signal(signal.SIGTERM, _end)
        try:
            _run(order["kind"], order["what"], order["arguments"])
        except BaseException as caught:
            error = caught
        if order.get("launched"):  # the launcher passes on a Ctrl-C that this process has got by itself, and ends all when one fails
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        finder.finish(error)
    _leave(error, 0 if order.get("launched") else STOPPED)


def _speaks_into(order: dict[str, Any]) -> Any:
    """Of several processes of a machine one speaks to the parent."""
    return order["pipe"] if int(os.environ.get("LOCAL_RANK", "0")) == 0 or not order.get("launched") else os.devnull


def _end(number: int, frame: Any) -> None:
    """The launcher ends the others when one process fails: the report of what was seen is made."""
    sys.exit(128 + number)


def _run(kind: str, what: str, arguments: list[str]) -> None:
    if kind == "module":
        sys.argv[:] = [what, *arguments]
        _first_on_path(os.getcwd())
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=__builtins__, __spec__=None, __cached__=None)
    if kind == "script":
        sys.argv[:] = [what, *arguments]
        _first_on_path(str(Path(what).resolve().parent))
        module.__dict__["__file__"] = what
        code = compile(Path(what).read_bytes(), what, "exec", dont_inherit=True)
    else:
        sys.argv[:] = ["-c", *arguments]
        _first_on_path("")
        code = compile(what, "<string>", "exec", dont_inherit=True)
    sys.modules["__main__"] = module  # for good: what the program pickles, or registers for its exit, looks for its names here
    exec(code, module.__dict__)


def _first_on_path(folder: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, folder)


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


def send(pipe: IO[str], kind: str, **values: Any) -> None:
    """A line to the parent; a parent that has gone is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        pipe.write(json.dumps({"kind": kind, **values}) + "\n")


if __name__ == "__main__":
    main()
