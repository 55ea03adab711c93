"""Running a training script, unchanged, under a recorder until it has taken enough steps."""

import atexit
import contextlib
import functools
import gc
import io
import logging
import os
import select
import signal
import stat
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradcheck import rank
from gradcheck.capture.alarm import Alarm, Stop
from gradcheck.capture.clock import TAPED, Clock, Tick
from gradcheck.capture.facts import Ending
from gradcheck.capture.further import further_training
from gradcheck.capture.kept_step import KeptStep
from gradcheck.capture.mirror import Mirror, keep_checkpoints
from gradcheck.capture.program import start
from gradcheck.capture.ranks import note_processes, ranks_kept
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.spec import ScriptSpec
from gradcheck.errors import TargetError
from gradcheck.files import temporary_folder
from gradcheck.instrument.patches import Patches
from gradcheck.loading.importing import session
from gradcheck.workload.lockstep import hidden_shards
from gradcheck.workload.notebook import code_cells, shell
from gradcheck.workload.source_sites import Sites, display_path, location_of_traceback, moved, origin_of


@dataclass
class Capture:
    """A run that is over."""

    recorder: Recorder
    ending: Ending
    error: BaseException | None
    files: list[str]
    seconds: float
    module: types.ModuleType  # the script's names, kept alive for the functions that use them
    started: list[str] = field(default_factory=list)  # Python processes that the script started

    @property
    def trained(self) -> list[torch.Tensor]:
        """What its optimizers hold."""
        return [p for trace in self.recorder.optimizers.values() for group in trace.optimizer.param_groups for p in group["params"]]


_TIMERS = {getattr(signal, name) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if hasattr(signal, name)}
_REGISTER = atexit.register


@contextmanager
def captured(spec: ScriptSpec, tick: Tick = lambda phase, fraction: None) -> Iterator[Capture]:
    """The run of a script, over, with its modules still importable. Raises TargetError when there is no such file.

    Raises KeyboardInterrupt on Ctrl-C. What the script raises is kept.
    """
    if spec.is_file and not Path(spec.path).is_file():
        raise TargetError(f"there is no file {spec.path}", hint="name the training script")
    if spec.kind == "notebook":
        code_cells(spec.path)
    with ExitStack() as stack:
        hidden = stack.enter_context(ranks_kept())
        current = stack.enter_context(session(spec.seed))
        if spec.cell is not None:
            current.sites.add(spec.cell.sites)
        run = _Run(spec, stack)
        capture = run.go(current.sites, tick)
        if hidden:
            raise hidden_shards(f"`gradcheck watch -- torchrun --nproc-per-node={rank.launched()[1]} {spec.target}`")
        current.note_files()
        capture.files = list(dict.fromkeys([*run.own_files(), *current.files]))
        yield capture


class _Run:
    def __init__(self, spec: ScriptSpec, stack: ExitStack) -> None:
        self.spec, self.stack = spec, stack
        self.folder = self.original = spec.folder
        self.cwd = Path.cwd()
        self.mirror: Mirror | None = None
        if spec.sandbox or spec.edits:
            home = stack.enter_context(temporary_folder())
            self.mirror = Mirror(Path(home), (self.original, self.cwd), {Path(name).resolve(): data for name, data in spec.edits})
            self.folder = self.mirror.path(self.original)
            stack.enter_context(moved(home, self.original.anchor))
        else:
            stack.enter_context(moved(str(self.folder), str(self.original)))
        self.file = str(self.folder / Path(spec.path).resolve().name) if spec.is_file else ""
        self.kept = KeptStep(Path(spec.replay)) if spec.replay else None
        self.exits: list[Callable[[], Any]] = []
        self.started: list[str] = []
        self.module = types.ModuleType("__main__") if spec.cell is None else spec.cell.module

    def own_files(self) -> list[str]:
        file = self.file or getattr(self.module, "__file__", None)
        return [display_path(file)] if file and origin_of(file) == "user" else []

    def go(self, sites: Sites, tick: Tick) -> Capture:
        recorder = Recorder(sites, min(TAPED, self.spec.steps or TAPED))
        recorder.owners.offload = self.spec.offload
        clock = Clock(self.spec, recorder, tick)
        recorder.observer = clock
        alarm = Alarm(clock.due, clock.tell)
        error: BaseException | None = None
        callbacks = gc.callbacks[:]
        tick("running the script: no training step yet", 0.0)
        with self._process(), alarm.running():
            with recorder:
                try:
                    alarm.guarded(self._run)
                    alarm.guarded(alarm.wait_for_threads)
                    while self.exits and not recorder.backwards:  # a program may train when it ends
                        alarm.guarded(self.exits.pop())
                except BaseException as caught:
                    error = caught
                gc.callbacks[:] = callbacks  # at once: no alarm ends one that runs in gradcheck's own code
            self._exit(alarm)
        if alarm.interrupted or isinstance(error, KeyboardInterrupt):
            raise error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt
        if self.kept is not None:
            self.kept.check(error)
        return Capture(recorder, _ending(error, clock), error, [], time.monotonic() - clock.began, self.module, self.started)

    def _run(self) -> None:
        if self.spec.cell is not None:
            exec(self.spec.cell.code, self.module.__dict__)
            return
        for code in start(self.spec.kind, self.spec.path, self.spec.arguments, self.module, str(self.folder), self.file):
            exec(code, self.module.__dict__)

    @contextmanager
    def _process(self) -> Iterator[None]:
        """The process as a script expects it: no terminal to ask, no display, the folder it starts in; put back on the way out."""
        before = dict(os.environ)
        state = sys.modules["__main__"], sys.stdin, _handlers(), logging.root.handlers[:], logging.root.level
        patches = Patches()
        patches.put(atexit, "register", self._register)
        note_processes(patches, self.started)
        keep_checkpoints(patches, self.mirror.home if self.mirror is not None else None)
        if self.kept is not None:
            self.kept.install(patches)
        try:
            sys.stdin = _input()
            os.environ.setdefault("MPLBACKEND", "Agg")
            os.chdir(self._starts_in())
            with self._guarded(), self._notebook(), torch.compiler.set_stance("force_eager"), self._output():
                yield
        finally:
            patches.undo()
            sys.modules["__main__"], sys.stdin = state[0], state[1]
            _put_back(*state[2])
            logging.root.handlers[:], logging.root.level = state[3], state[4]
            os.chdir(self.cwd)
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)

    def _starts_in(self) -> Path:
        """The working directory: a notebook's is its folder; in a mirror, what corresponds to the user's."""
        if self.spec.kind == "notebook":
            return self.folder
        return self.mirror.path(self.cwd) if self.mirror is not None else self.cwd

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Edited modules are imported from the mirror, and what the script writes stays there."""
        if self.mirror is None:
            yield
            return
        sys.path[:] = [self.mirror.of_edited(self.cwd / name) or name for name in sys.path]
        with self.mirror.guarded():
            yield

    def _notebook(self) -> AbstractContextManager[None]:
        return shell() if self.spec.kind == "notebook" else nullcontext()

    @contextmanager
    def _output(self) -> Iterator[None]:
        if not self.spec.quiet:
            yield
            return
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield

    def _register(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """What the user's own code registers runs when the script is over; libraries wait for the end of the process."""
        frame = sys._getframe(1)
        if origin_of(frame.f_code.co_filename) == "user":
            self.exits.append(functools.partial(function, *args, **kwargs))
        else:
            _REGISTER(function, *args, **kwargs)
        return function

    def _exit(self, alarm: Alarm) -> None:
        while self.exits:
            try:
                alarm.guarded(self.exits.pop())
            except Stop:
                print("gradcheck: an exit handler of the script took too long and was ended", file=sys.stderr)
            except (Exception, SystemExit) as error:
                print(f"gradcheck: an exit handler of the script raised {type(error).__name__}: {error}", file=sys.stderr)


def _input() -> Any:
    """What the user redirects to the command; nothing where that is a terminal, or a pipe without anything in it yet."""
    try:
        number = sys.__stdin__.fileno() if sys.__stdin__ is sys.stdin and sys.stdin is not None else -1
        kind = os.fstat(number).st_mode
        if stat.S_ISREG(kind):
            os.lseek(number, 0, os.SEEK_SET)
            return open(number, encoding="utf-8", errors="replace", closefd=False)
        if stat.S_ISFIFO(kind) and select.select([number], [], [], 0)[0]:
            return sys.stdin
    except (OSError, ValueError):  # it is closed
        pass
    return io.StringIO()


def _handlers() -> tuple[dict[int, Any], set[int]]:
    """Of all signals, and the timers that run: a script may set its own, and may be ended before it puts them back."""
    return {number: signal.getsignal(number) for number in signal.valid_signals()}, {
        timer for timer in _TIMERS if any(signal.getitimer(timer))
    }


def _put_back(handlers: dict[int, Any], timers: set[int]) -> None:
    for timer in _TIMERS.difference(timers):
        signal.setitimer(timer, 0)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            with contextlib.suppress(TypeError, ValueError):  # it is none of Python's; another thread than the main one may not
                signal.signal(number, handler)


def _ending(error: BaseException | None, clock: Clock) -> Ending:
    if isinstance(error, Stop) or clock.told_at is not None:
        further = further_training(traceback.walk_tb(error.__traceback__)) if isinstance(error, Stop) else None
        return Ending("budget" if clock.by_time else "stopped", further=further)
    if error is None:
        return Ending("end")
    site = location_of_traceback(error.__traceback__)
    if isinstance(error, SystemExit):
        return Ending("exit", f"sys.exit({error.code!r})", site)
    return Ending("raised", f"{type(error).__name__}: {error}", site)
