"""What ends a command from outside: Ctrl-C, and what `kill`, `timeout` and a closing terminal send, which end it as Ctrl-C does."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds in which a second signal is the first one, come another way: from the terminal to all processes, and through a parent. (heuristic)
AGAIN = 0.5

_received: list[int] = []
_heeded: list[bool] = []  # `ending` is active
_last = 0.0
_listeners: list[Callable[[int], None]] = []


def received() -> int:
    """Number of the first signal that came while `ending` is active, whatever became of what it raised; 0 for none."""
    return _received[0] if _received else 0


def exit_code() -> int:
    """As the shell has it: 128 + the signal."""
    return 128 + int(received() or signal.SIGINT)


def handle(number: int, frame: FrameType | None) -> None:
    """The handler of all of them. Raises KeyboardInterrupt."""
    if note(number):
        raise KeyboardInterrupt


def note(number: int) -> bool:
    """A signal has come. Whether it is another one than the last."""
    global _last
    now = time.monotonic()
    again, _last = now - _last < AGAIN, now
    if _heeded:
        _received.append(int(number))
    for listener in _listeners:
        listener(int(number))
    return not again


def quietly() -> None:
    """While a process of gradcheck's imports what it needs, a Ctrl-C ends it at once: there is nothing to clean up, and nothing to say."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def at_once() -> None:
    """The same for all of them, from here on."""
    for number in filter(is_plain, SIGNALS):
        signal.signal(number, _leave)


def as_usual() -> None:
    """From here on a Ctrl-C is what it is in Python."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def is_plain(number: int) -> bool:
    """Whether nobody but Python or gradcheck handles the signal."""
    return signal.getsignal(number) in (handle, _leave, signal.SIG_DFL, signal.default_int_handler)


@contextmanager
def ending(listener: Callable[[int], None] | None = None) -> Iterator[None]:
    """While active, each of the signals raises KeyboardInterrupt, unless it is ignored, as under nohup. `listener` hears of it first."""
    global _last
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _last = 0.0
    before = {number: signal.signal(number, handle) for number in SIGNALS if is_plain(number)}
    heard = [listener] if listener is not None else []
    told, sys.unraisablehook = sys.unraisablehook, _told
    _heeded.append(True)
    _listeners.extend(heard)
    try:
        yield
    finally:
        sys.unraisablehook = told
        _heeded.pop()
        _received.clear()
        for listener in heard:
            _listeners.remove(listener)
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)


def _told(what: Any) -> None:
    """An interrupt that comes while Python calls back, as when an object goes, ends nothing there: that is no error to show."""
    if not (received() and isinstance(what.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(what)


def no_more() -> None:
    """From here on the process ends by itself: another signal, or the same one come late, would only disturb what Python cleans up."""
    for number in SIGNALS:
        if signal.getsignal(number) is handle:
            signal.signal(number, signal.SIG_IGN)


def _plain_again() -> None:
    """In a process that was forked: its parent ends it as it likes."""
    for number in SIGNALS:
        if signal.getsignal(number) is handle:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _listeners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_plain_again)
