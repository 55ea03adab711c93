"""Runs a Python program as the interpreter would, recorded for some steps: started by `gradcheck bisect`."""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from gradcheck import interrupts
from gradcheck.live.child import run_program
from gradcheck.live.messages import deaf, received, send, speaking


class Enough(BaseException):
    """The wanted steps were taken. Not an Exception, so that loops that catch those end anyway."""


def main() -> None:
    """Exits with 0 when the wanted steps were taken, else as the program does."""
    order = received()
    from gradcheck.bisect.recorder import EventRecorder

    with speaking(order) as pipe:
        recorder = EventRecorder(order["steps"], _enough)
        if order["seed"] is not None:
            _seed(order["seed"])
        recorder.install()
        interrupts.as_usual()
        error: BaseException | None = None
        try:
            run_program(order["kind"], order["what"], order["arguments"])
        except BaseException as caught:
            error = caught
        if order.get("launched"):
            deaf()
        recorder.remove()
        code = _code(error)
        if int(os.environ.get("RANK", "0")) == 0:
            _write(recorder, order["recording"], code)
        send(pipe, "end")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # what the program does at its exit belongs to no step; its threads may wait for steps that do not come


def _enough() -> None:
    raise Enough


def _seed(seed: int) -> None:
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _write(recorder: Any, path: str, code: int) -> None:
    import torch.distributed as dist

    from gradcheck.bisect.recording import save

    recorder.run.code = code
    if dist.is_available() and dist.is_initialized():
        recorder.run.world = dist.get_world_size()
    save([recorder.run], Path(path))


def _code(error: BaseException | None) -> int:
    if error is None or isinstance(error, Enough):
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    traceback.print_exception(type(error), error, error.__traceback__)
    return 130 if isinstance(error, KeyboardInterrupt) else 1
