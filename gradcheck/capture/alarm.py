"""Ends a script from within: when it has taken enough steps, or when its time is up, whatever it does with the exception.

A thread watches the clock and sends the main thread a signal that scripts do not use, so that their own alarms are left alone. The handler
raises Stop in the script. The interpreter drops what is raised in a destructor or another callback, and a script may catch everything:
so the signal is sent repeatedly, and if a Stop was lost, the next line of the script raises another.
"""

import ctypes
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gradcheck import interrupts
from gradcheck.instrument.patches import Patches
from gradcheck.workload.source_sites import origin_of

LOOKS = 0.05  # seconds between two looks at the clock
GRACE = 2.0  # seconds that a script has to clean up before it is told again
LAST = 0.5  # seconds that a thread of the script gets to notice that it is to end
_SIGNAL = getattr(signal, "SIGVTALRM", None)


class Stop(BaseException):
    """Ends the script from within. Not an Exception, so that the script does not catch it."""


class Alarm:
    """A thread keeps asking `due` whether the script should end; if so, whatever `guarded` runs is ended.

    `on_interrupt` is called at a Ctrl-C, or another signal that ends gradcheck, before the script hears of it.
    """

    def __init__(self, due: Callable[[], bool], on_interrupt: Callable[[], None] = lambda: None) -> None:
        self.due, self.on_interrupt = due, on_interrupt
        self.interrupted = False  # by a signal, whatever the script makes of it
        self._rings = 0
        self._over = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._trace: Any = None  # of a debugger, put back in the end

    def guarded(self, run: Callable[[], Any]) -> Any:
        """Runs the user's code; Stop is raised only inside it."""
        return run()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While active, the script can be ended. Threads that it leaves behind end with it."""
        self._threads, self._trace = set(threading.enumerate()), sys.gettrace()
        patches = Patches()
        patches.put(sys, "unraisablehook", self._lost(sys.unraisablehook))
        patches.put(threading, "excepthook", self._in_thread(threading.excepthook))
        try:
            with self._signals():
                yield
        finally:
            self._over.set()
            if sys.gettrace() is not self._trace:
                sys.settrace(self._trace)
            self._end_threads()
            patches.undo()

    def wait_for_threads(self) -> None:
        """As the interpreter does before it ends: threads that are not daemons go on when the main one is done."""
        for thread in self._own_threads():
            thread.join()

    # ----------------------------------------------------------------- the signal

    @contextmanager
    def _signals(self) -> Iterator[None]:
        main = threading.current_thread() is threading.main_thread()
        if _SIGNAL is None or not main or not hasattr(signal, "pthread_kill"):
            yield
            return
        before = signal.signal(_SIGNAL, self._ring)
        heeded = [number for number in interrupts.SIGNALS if signal.getsignal(number) in (signal.default_int_handler, interrupts.handle)]
        others = {number: signal.signal(number, self._interrupt) for number in heeded}
        watch = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="gradcheck alarm", daemon=True)
        watch.start()
        try:
            yield
        finally:
            self._over.set()
            watch.join()
            for number, handler in {_SIGNAL: before, **others}.items():
                signal.signal(number, handler)

    def _watch(self, main: int) -> None:
        while not self._over.wait(LOOKS if not self._rings else GRACE):
            if self.due():
                self._rings += 1
                signal.pthread_kill(main, _SIGNAL)  # type: ignore[arg-type]

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._over.is_set() or not self._holds(frame):
            return
        if self._rings > 1:  # it caught the first one, or its cleanup does not end
            self._press(frame, gently=self._rings == 2)
        raise Stop

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self.on_interrupt()
        interrupts.handle(number, frame)

    # --------------------------------------------------- a Stop that has been lost

    def _holds(self, frame: FrameType | None) -> bool:
        """Whether the script is running: gradcheck's own code is not interrupted when it ends."""
        while frame is not None:
            if frame.f_code is Alarm.guarded.__code__:
                return True
            frame = frame.f_back
        return False

    def _press(self, frame: FrameType | None, gently: bool = False) -> None:
        """Makes the next line that runs raise Stop. `gently`: the next line of the user's own code, so that libraries can clean up."""

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if self._over.is_set() or not self._holds(frame):
                return None
            if event not in ("line", "call") or (gently and origin_of(frame.f_code.co_filename) != "user"):
                return trace
            raise Stop

        while frame is not None and frame.f_code is not Alarm.guarded.__code__:
            frame.f_trace = trace
            frame = frame.f_back
        sys.settrace(trace)

    def _lost(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def unraisable(args: Any) -> None:
            if not isinstance(args.exc_value, Stop):
                original(args)
            elif threading.current_thread() is threading.main_thread() and not self._over.is_set():
                self._press(sys._getframe(1))

        return unraisable

    # -------------------------------------------------------------------- threads

    def _in_thread(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda args: None if isinstance(args.exc_value, Stop) else original(args)

    def _own_threads(self) -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t not in self._threads and not t.daemon and t is not threading.current_thread()]

    def _end_threads(self) -> None:
        logging.getLogger("concurrent.futures").addFilter(_is_no_stop)  # whose workers log what ends them
        for thread in self._own_threads():
            if thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Stop))
        end = time.monotonic() + LAST
        while self._own_threads() and time.monotonic() < end:  # join() does not wait for one whose join() was interrupted
            time.sleep(0.001)


def _is_no_stop(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], Stop))
