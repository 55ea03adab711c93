"""Commands that run the user's code do it in a process of their own, whose parent waits for their exit code.

The code may end its process (os._exit, a crash of native code), never return, or close its streams: nothing of that is a verdict. The
parent takes no exit code but the one that it is told, ends what goes on beyond the limit and says where, and passes on the signals.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from json import dumps, loads  # by name: the code that runs may put others in their places
from typing import Any, NoReturn

from gradcheck import interrupts
from gradcheck.cli.exit import FAILED, complain
from gradcheck.cli.processes import deepen_stack, die_with_parent, end_tree, leave_forks, place_in, place_of
from gradcheck.files import remove_folders_of

COMMANDS = ("scan", "fix", "trial", "baseline")
# What a command may take beyond its budget, before it is ended: seconds, and times the budget. Loading and the least that is measured
# are not bounded by it: of the healthy samples none takes more than 12 s under a budget of 1 s. (heuristic)
SLACK, TIMES = 30.0, 3.0
REMARK = 120.0  # seconds without a budget, after which it is said where the code is
ANSWER = 0.3  # seconds in which the process shows that a signal has reached it: else it is passed on
AGAIN = 5.0  # seconds after which a signal is passed on again: the code that is run may have caught what it raised
LAST = 20.0  # seconds for cleaning up after a signal, and for ending when the exit code is told
_LOOK = 0.25  # seconds between two looks
_WHERE = getattr(signal, "SIGRTMIN", 0) + 9 if hasattr(signal, "SIGRTMIN") else 0  # asks where the process is; scripts have no use for it

_telling: tuple[int, int] | None = None  # the pipe to the parent, and its inode: the user's code may close it, and open another file


def wanted(words: list[str]) -> bool:
    """Whether a process of its own is to run the command: where that costs no copy of torch, and the streams are the process's own."""
    runs_code = bool(words) and words[0] in COMMANDS and not {"--help", "-h", "--watch"} & set(words[1:])
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return runs_code and alone and hasattr(os, "fork") and sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__


def budget(seconds: float | None, times: int = 1) -> None:
    """Tells the parent what the user allows for the command; None: no limit is set."""
    if seconds is not None:
        _tell(budget=seconds * times)


def run(command: Callable[[], None]) -> int:
    """Runs the command in a process of its own, and gives its exit code."""
    said, telling = os.pipe()
    seen, showing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    parent, signals = os.getpid(), _Signals()
    pid = os.fork()
    if pid == 0:
        signals.undo()
        os.close(said)
        os.close(seen)
        _run(command, parent, telling, showing)
    os.close(telling)
    os.close(showing)
    try:
        return _Watch(pid, said, seen, signals.woken).until_it_ends()
    finally:
        signals.undo()


def _run(command: Callable[[], None], parent: int, telling: int, showing: int) -> NoReturn:
    """In the process of the command."""
    global _telling
    _telling = telling, os.fstat(telling).st_ino
    die_with_parent(parent)
    deepen_stack()
    leave_forks(_forget)
    if _WHERE:
        import faulthandler

        faulthandler.register(_WHERE, file=showing, all_threads=False)
    leave = os._exit
    os._exit = _exit_that_tells(leave)  # type: ignore[assignment]
    code: Any = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code
    if isinstance(code, str):
        complain(code)
        code = 1
    _tell(code=int(code or 0))
    try:  # as the interpreter ends, but for the modules, which it would take apart: half a second with torch (measured, 2.13)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        leave(int(code or 0))


def _exit_that_tells(original: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
    """os._exit, whose caller the parent is told."""

    def _exit(status: int) -> NoReturn:
        caller = sys._getframe(1)
        _tell(left=place_of(caller.f_code.co_filename, caller.f_lineno, caller.f_code.co_name))
        original(status)

    return _exit


def heard(number: int) -> None:
    """A signal has reached this process: the parent need not pass it on."""
    _tell(heard=number)


def _forget() -> None:
    global _telling
    _telling = None


def _tell(**what: Any) -> None:
    if _telling is None:
        return
    descriptor, inode = _telling
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_ino == inode:
            os.write(descriptor, dumps(what).encode() + b"\n")


class _Signals:
    """The parent's: they interrupt its waiting, and end nothing by themselves."""

    def __init__(self) -> None:
        self.woken, self._waking = os.pipe()
        os.set_blocking(self._waking, False)
        heeded = (*(s for s in interrupts.SIGNALS if interrupts.is_plain(s)), signal.SIGCHLD)
        self._before = {number: signal.signal(number, lambda number, frame: None) for number in heeded}
        self._wakeup = signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)

    def undo(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.woken)
        os.close(self._waking)


class _Watch:
    """The parent's side, until the process has ended."""

    def __init__(self, pid: int, said: int, seen: int, woken: int) -> None:
        self.pid, self.said, self.seen, self.woken = pid, said, seen, woken
        self.began = time.perf_counter()
        self.partial = b""
        self.budget: float | None = None
        self.code: int | None = None  # what the process says, which may go on cleaning up
        self.told_at = 0.0
        self.signal = 0  # the first that came
        self.signal_at = 0.0
        self.passed_at = 0.0  # when the process had it last
        self.remarked = False
        self.left = ""  # where os._exit was called

    def until_it_ends(self) -> int:
        try:
            while True:
                self._listen(_LOOK)
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    self._listen(0.0)
                    return self._ending(os.waitstatus_to_exitcode(status))
                code = self._overdue(time.monotonic())
                if code is not None:
                    return code
        finally:
            os.close(self.said)
            os.close(self.seen)

    def _listen(self, seconds: float) -> None:
        ready, _, _ = select.select([self.said, self.woken] if self.said >= 0 else [self.woken], [], [], seconds)
        if self.woken in ready:
            for number in os.read(self.woken, 64):
                self._signalled(number)
        if self.said in ready:
            *lines, self.partial = (self.partial + os.read(self.said, 65536)).split(b"\n")
            for line in lines:
                self._told(loads(line))

    def _signalled(self, number: int) -> None:
        now = time.monotonic()
        if number not in interrupts.SIGNALS:
            return
        if not self.signal:
            self.signal, self.signal_at = number, now
        elif now - self.signal_at > interrupts.AGAIN:
            self._kill()  # who asks twice does not want to wait

    def _told(self, what: dict[str, Any]) -> None:
        self.budget = what.get("budget", self.budget)
        self.left = what.get("left", self.left)
        if "code" in what:
            self.code, self.told_at = what["code"], time.monotonic()
        if "heard" in what:
            self.signal, self.signal_at = self.signal or what["heard"], self.signal_at or time.monotonic()
            self.passed_at = time.monotonic()

    def _overdue(self, now: float) -> int | None:
        """The exit code where the process is not waited for any longer."""
        if self.code is not None:
            return self._killed(self.code) if now - self.told_at > LAST else None
        if self.signal:
            if now - (self.passed_at or self.signal_at) > (AGAIN if self.passed_at else ANSWER):
                self.passed_at = now
                with contextlib.suppress(OSError):
                    os.kill(self.pid, self.signal)
            return self._killed(self._interrupted()) if now - self.signal_at > LAST else None
        spent = time.perf_counter() - self.began
        if self.budget is None:
            if spent > REMARK and not self.remarked:
                self.remarked = True
                complain(f"note: it goes on after {spent:.0f} s: {self._place()} is running; --budget SECONDS sets a limit")
            return None
        if spent <= SLACK + TIMES * self.budget:
            return None
        complain(f"error: {self._place()} had not returned after {spent:.0f} s; the budget is {self.budget:g} s")
        complain("help: it may wait for something, or never end: correct it, or give it more time with --budget SECONDS")
        return self._killed(FAILED)

    def _place(self) -> str:
        """Where the code of the process is."""
        text = b""
        if _WHERE:
            with contextlib.suppress(OSError):
                os.kill(self.pid, _WHERE)
                while select.select([self.seen], [], [], 1.0)[0] and (more := os.read(self.seen, 65536)):
                    text += more
        return place_in(text.decode(errors="replace")) or "the code that is run"

    def _kill(self) -> None:
        end_tree(self.pid)

    def _killed(self, code: int) -> int:
        self._kill()
        with contextlib.suppress(OSError):
            os.waitpid(self.pid, 0)
        _show_cursor()
        return code

    def _interrupted(self) -> int:
        complain("interrupted")
        return 128 + self.signal

    def _ending(self, status: int) -> int:
        """The exit code of a process that has ended."""
        if self.code is not None:
            return self.code
        _show_cursor()
        if self.signal:
            remove_folders_of([self.pid])
            return self._interrupted()
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            complain(f"error: the process was ended by {name} before there was a verdict")
            memory = "the machine may have run out of memory" if -status == signal.SIGKILL else "native code that it calls may have crashed"
            complain(f"help: {memory}; `python -X faulthandler -m gradcheck ...` shows where the code was")
        else:
            where, how = (f"{self.left},", f"os._exit({status})") if self.left else ("the code that was run", f"exit code {status}")
            complain(f"error: {where} ended the process with {how} before there was a verdict")
            complain("help: leave with an exception, or not at all: what is scanned runs in gradcheck's process")
        return FAILED


def _show_cursor() -> None:
    if sys.stderr.isatty():
        with contextlib.suppress(OSError):
            sys.stderr.write("\x1b[?25h")
            sys.stderr.flush()
