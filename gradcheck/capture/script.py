"""Running a training script, unchanged, under a recorder until it has taken enough steps."""

from __future__ import annotations

import atexit
import contextlib
import io
import linecache
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradcheck.capture.events import taken_alike
from gradcheck.capture.facts import Ending
from gradcheck.capture.patches import Patches
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.spec import ScriptSpec
from gradcheck.errors import TargetError
from gradcheck.target.importing import failure, session
from gradcheck.target.sites import Sites, display_path, location_of_traceback, moved, origin_of

TAPED = 32  # steps whose computations are kept
CORRECT = "correct it: gradcheck runs the script as python would"
FOLLOWED = 200  # steps that are looked at, where they are quick: schedules and evaluation show late
FOLLOWING = 3.0  # seconds for those beyond the taped ones
BUDGET = 120.0  # seconds for the script, before it is stopped wherever it is
LEFT_OUT = (".git", "__pycache__", ".venv", "venv")  # of a sandbox
IDLE = 160  # backward passes without any step, after which none is expected any more


@dataclass
class Capture:
    """A run that is over."""

    recorder: Recorder
    ending: Ending
    error: BaseException | None
    files: list[str]
    seconds: float
    module: types.ModuleType  # the script's names, kept alive for the functions that use them


_REGISTER = atexit.register


class Stop(BaseException):
    """Ends the script from within. Not an Exception, so that the script does not catch it."""


@dataclass
class _Clock:
    """When to stop: called by the recorder after each backward pass and step."""

    spec: ScriptSpec
    started: float = field(default_factory=time.perf_counter)
    taped_at: float | None = None
    over: bool = False
    by_time: bool = False

    def __call__(self, recorder: Recorder) -> None:
        now = time.perf_counter()
        self.by_time = self.by_time or now - self.started > (self.spec.budget or BUDGET)
        if self.by_time or self.over or self._enough(recorder, now):
            self.over = True
            raise Stop

    def _enough(self, recorder: Recorder, now: float) -> bool:
        most = taken_alike(recorder.optimizers.values())
        if not most:
            return recorder.backwards >= max(IDLE, 2 * (self.spec.steps or 0))
        wanted = self.spec.steps
        if wanted is not None:
            return most >= wanted
        if most < TAPED:
            return False
        self.taped_at = self.taped_at or now
        return most >= FOLLOWED or now - self.taped_at > FOLLOWING


@contextmanager
def captured(spec: ScriptSpec) -> Iterator[Capture]:
    """The run of a script, over, with its modules still importable. Raises TargetError when there is no such file.

    Raises KeyboardInterrupt on Ctrl-C. What the script raises is kept.
    """
    path = Path(spec.path)
    if not path.is_file():
        raise TargetError(f"there is no file {spec.path}", hint="name the training script")
    with ExitStack() as stack:
        current = stack.enter_context(session(spec.seed))
        run = _Run(spec, path.resolve(), stack)
        capture = run.go(current.sites)
        capture.files = list(dict.fromkeys([display_path(run.file), *current.files]))
        yield capture


class _Run:
    def __init__(self, spec: ScriptSpec, path: Path, stack: ExitStack) -> None:
        self.spec, self.stack = spec, stack
        self.folder, self.cwd = path.parent, Path.cwd()
        self.home: Path | None = None
        if spec.sandbox or spec.edits:
            self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradcheck-")))
            stack.enter_context(moved(str(self.home), str(path.parent)))
            self.folder = self.home
            shutil.copytree(path.parent, self.home, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
            self._edit(path.parent, self.home)
        self.file = str(self.folder / path.name)
        self.exits: list[tuple[Callable[..., Any], Any, Any]] = []
        self.module = types.ModuleType("__main__")

    def _edit(self, original: Path, home: Path) -> None:
        for name, data in self.spec.edits:
            file = Path(name).resolve()
            if not file.is_relative_to(original):
                raise TargetError(f"{name} is not in the folder of {self.spec.path}", hint="put the script beside the modules that it uses")
            (home / file.relative_to(original)).write_bytes(data)

    def go(self, sites: Sites) -> Capture:
        clock = _Clock(self.spec)
        recorder = Recorder(sites, min(TAPED, self.spec.steps or TAPED), clock)
        error: BaseException | None = None
        started = time.perf_counter()
        with self._process(clock):
            with recorder:
                try:
                    exec(self._code(), self.module.__dict__)
                except (Stop, KeyboardInterrupt, Exception, SystemExit) as caught:
                    error = caught
            self._exit()
        if isinstance(error, KeyboardInterrupt):
            raise error
        ending = _ending(error, clock)
        return Capture(recorder, ending, error, [], time.perf_counter() - started, self.module)

    def _code(self) -> types.CodeType:
        source = Path(self.file).read_bytes()
        linecache.checkcache(self.file)
        if b"get_ipython" in source:
            self.module.__dict__["get_ipython"] = _Notebook
        return compile(source, self.file, "exec", dont_inherit=True)

    @contextmanager
    def _process(self, clock: _Clock) -> Iterator[None]:
        """The process as a script expects it: `__main__`, arguments, path, closed input; put back on the way out."""
        self.module.__dict__.update(__file__=self.file, __builtins__=__builtins__, __spec__=None, __cached__=None)
        before = dict(os.environ)
        state = sys.modules["__main__"], sys.stdin, signal.getsignal(signal.SIGINT), logging.root.handlers[:], logging.root.level
        patches = Patches()
        patches.put(atexit, "register", self._register)
        _keep_checkpoints(patches, self.home)
        try:
            sys.modules["__main__"], sys.stdin = self.module, io.StringIO()
            sys.argv = [self.spec.path, *self.spec.arguments]
            sys.path.insert(0, str(self.folder))
            os.environ.setdefault("MPLBACKEND", "Agg")
            if self.home is not None and (self.spec.sandbox or self._inside()):
                os.chdir(self.home / self.cwd.relative_to(Path(self.spec.path).resolve().parent) if self._inside() else self.home)
            with _alarm(clock, self.spec.budget or BUDGET), torch.compiler.set_stance("force_eager"), self._output():
                yield
        finally:
            patches.undo()
            sys.modules["__main__"], sys.stdin = state[0], state[1]
            with contextlib.suppress(TypeError, ValueError):
                signal.signal(signal.SIGINT, state[2])
            logging.root.handlers[:], logging.root.level = state[3], state[4]
            if self.home is not None:
                os.chdir(self.cwd)
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)

    def _inside(self) -> bool:
        return self.cwd.is_relative_to(Path(self.spec.path).resolve().parent)

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
            self.exits.append((function, args, kwargs))
        else:
            _REGISTER(function, *args, **kwargs)
        return function

    def _exit(self) -> None:
        while self.exits:
            function, args, kwargs = self.exits.pop()
            try:
                function(*args, **kwargs)
            except (Exception, SystemExit, Stop) as error:
                print(f"gradcheck: an exit handler of the script raised {type(error).__name__}: {error}", file=sys.stderr)


class _Notebook:
    """Stands for IPython in a notebook that was exported: its magics do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def _alarm(clock: _Clock, seconds: float) -> Iterator[None]:
    """Stops a script that comes to no step in time, where the platform has timers."""

    def ring(*_: Any) -> None:
        clock.over = clock.by_time = True
        raise Stop

    try:
        before = signal.signal(signal.SIGALRM, ring)
    except (AttributeError, ValueError):  # no such signal, or not the main thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _keep_checkpoints(patches: Patches, home: Path | None) -> None:
    """`torch.save` keeps what it is to write in memory, where `torch.load` finds it; in a sandbox it writes."""
    kept: dict[str, bytes] = {}

    def place(file: Any) -> str | None:
        if not isinstance(file, (str, os.PathLike)):
            return None
        path = os.path.realpath(os.fspath(file))
        return None if home is not None and Path(path).is_relative_to(home.resolve()) else path

    def save(original: Callable[..., Any]) -> Callable[..., Any]:
        def saved(value: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            path = place(f)
            if path is None:
                return original(value, f, *args, **kwargs)
            if not kept:
                print("gradcheck: checkpoints are kept in memory and not written (--sandbox writes them to a copy)", file=sys.stderr)
            buffer = io.BytesIO()
            result = original(value, buffer, *args, **kwargs)
            kept[path] = buffer.getvalue()
            return result

        return saved

    def load(original: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(f: Any, *args: Any, **kwargs: Any) -> Any:
            found = kept.get(place(f) or "")
            return original(io.BytesIO(found) if found is not None else f, *args, **kwargs)

        return loaded

    patches.wrap(torch, "save", save)
    patches.wrap(torch, "load", load)


def _ending(error: BaseException | None, clock: _Clock) -> Ending:
    if isinstance(error, Stop) or clock.over:
        return Ending("budget" if clock.by_time else "stopped")
    if error is None:
        return Ending("end")
    site = location_of_traceback(error.__traceback__)
    if isinstance(error, SystemExit):
        return Ending("exit", f"sys.exit({error.code!r})", site)
    return Ending("raised", f"{type(error).__name__}: {error}", site)


def nothing_seen(capture: Capture, spec: ScriptSpec) -> TargetError:
    """Why a run without any backward pass cannot be judged."""
    path = spec.path
    ending, error = capture.ending, capture.error
    if ending.how == "raised" and error is not None:
        return failure(f"{path} failed before its first backward pass", error, hint=CORRECT)
    if ending.how == "exit":
        hint = f"give it the arguments that it needs: gradcheck scan {spec.path} -- ARGUMENTS"
        return TargetError(f"{path} ended itself before its first backward pass: {ending.error}", hint=hint, location=ending.site)
    if ending.how == "budget":
        return TargetError(f"no training was seen in {capture.seconds:.0f} s of {path}", hint="give it more time with --budget SECONDS")
    hint = "the script is to train when it is run: does it need arguments (after --), or is it a model file (FILE.py:name)?"
    return TargetError(f"no training was seen: {spec.path} ended after {capture.seconds:.1f} s without a backward pass", hint=hint)
