"""What passes between a program that runs with gradcheck inside and its parent: the order, lines through a pipe, signals."""

import contextlib
import json
import os
import signal
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
