"""Running a training script, unchanged, under a recorder until it has taken enough steps; or on the batch of a spike, kept before."""

import atexit
import contextlib
import functools
import gc
import io
import itertools
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
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gradcheck import rank
from gradcheck.analysis.convergence import FEWEST_STEPS
from gradcheck.capture.alarm import GRACE, Alarm, Stop
from gradcheck.capture.events import taken_alike
from gradcheck.capture.facts import Ending
from gradcheck.capture.further import further_training
from gradcheck.capture.mirror import Mirror, keep_checkpoints
from gradcheck.capture.program import start
from gradcheck.capture.ranks import note_processes, ranks_kept
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.spec import ScriptSpec
from gradcheck.errors import TargetError
from gradcheck.files import temporary_folder
from gradcheck.instrument.patches import Patches
from gradcheck.loading.importing import session
from gradcheck.types.location import Location
from gradcheck.types.report import FEWEST_SEEN
from gradcheck.workload.kept_batch import like, load, restore_random
from gradcheck.workload.lockstep import hidden_shards
from gradcheck.workload.notebook import code_cells, shell
from gradcheck.workload.source_sites import Sites, display_path, location_of_traceback, moved, origin_of


class KeptStep:
    """Raises TargetError for a file that holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved = load(path)
        self.state: dict[str, torch.Tensor] = self.saved["model"]
        self.batches = 0
        self.placed = False
        self._handle: Any = None

    def install(self, patches: Patches) -> None:
        patches.wrap(_BaseDataLoaderIter, "__next__", self._giving)
        self._handle = register_module_forward_pre_hook(self._called)

    def _giving(self, original: Any) -> Any:
        def give(iterator: Any) -> Any:
            batch = original(iterator)
            try:
                batch = like(batch, self.saved["batch"])
            except ValueError:  # another loader's
                return batch
            self.batches += 1
            return batch

        return give

    @torch.no_grad()
    def _called(self, module: nn.Module, args: Any) -> None:
        """Calls come from the outside in: the first that fits is the whole model."""
        own = module.state_dict() if not self.placed and self.batches else {}
        if not own or own.keys() != self.state.keys() or any(own[k].shape != self.state[k].shape for k in own):
            return
        for name, value in own.items():
            value.copy_(self.state[name])
        restore_random(self.saved["random"])
        self.placed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def check(self, error: BaseException | None) -> None:
        """Call it when the script is over. Raises TargetError if it did not run on what is kept; the error that ended it comes first."""
        self._let_go()
        if error is not None and not (self.batches and self.placed) and isinstance(error, Exception):
            return
        if not self.batches:
            hint = "name the script and the arguments that the file was kept with"
            raise TargetError(f"no DataLoader of the script gives batches like that of {self.path}", hint=hint)
        if not self.placed:
            hint = "build the model with the arguments that the file was kept with"
            raise TargetError(f"no model of the script has the parameters that {self.path} holds", hint=hint)


TAPED = 32  # steps whose computations are kept
FOLLOWED = 200  # steps that are looked at, where they are quick: schedules and evaluation show late
FOLLOWING = 3.0  # seconds for those beyond the taped ones, and beyond as many as can be judged by themselves
BUDGET = 120.0  # seconds for the script, before it is stopped wherever it is
SCRIPT_SHARE = 0.5  # of a budget that the user sets, for a script that has begun to train
BEGUN = 8  # backward passes without any step, after which a script counts as one that trains
IDLE = 160  # backward passes without any step, after which none is expected any more
WAITED = 4.0  # seconds for the end of a training that was followed for long enough, where another one comes after it
WAITED_SHARE = 0.25  # the same of a budget that the user sets

Tick = Callable[[str, float], None]  # phase, fraction done


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


@dataclass
class _Clock:
    """When to stop: called by the recorder after each backward pass and step, and asked by the alarm."""

    spec: ScriptSpec
    recorder: Recorder
    tick: Tick
    began: float = field(default_factory=time.monotonic)
    taped_at: float | None = None
    told_at: float | None = None  # when the script was told to end
    by_time: bool = False
    known: dict[int, torch.optim.Optimizer] = field(default_factory=dict)  # by id, of trainings that were followed for long enough
    next: Location | None = None  # the training that is waited for
    waited: float = 0.0  # seconds
    waits_from: float = 0.0

    def __call__(self, recorder: Recorder) -> None:
        if self.told_at is not None or self._late() or self._enough(recorder):
            self.tell()
            raise Stop

    def tell(self) -> None:
        """Tells the script to end."""
        self.told_at = self.told_at or time.monotonic()

    def due(self) -> bool:
        """Whether the script is to be ended wherever it is. It is left alone for a while after it was told to end."""
        if self.told_at is None and (self._late() or self._in_vain()):
            self.tell()
            return True
        return self.told_at is not None and time.monotonic() - self.told_at > GRACE

    def _late(self) -> bool:
        """A script that has taken some steps leaves time for measuring; one that has not gets all of it."""
        budget = self.spec.budget or BUDGET
        if self.spec.budget is not None and (self._steps() >= FEWEST_SEEN or self.recorder.backwards >= BEGUN):
            budget *= SCRIPT_SHARE
        self.by_time = self.by_time or time.monotonic() - self.began > budget
        return self.by_time

    def _steps(self) -> int:
        return taken_alike(w for w in list(self.recorder.optimizers.values()) if id(w.optimizer) not in self.known)

    def _enough(self, recorder: Recorder) -> bool:
        """Whether the training that runs was followed for long enough, and none that comes after it is to be waited for."""
        if self.next is None:
            return self._followed(recorder) and not self._waits_for_next(recorder)
        if not self._steps():
            return self._in_vain()
        self.waited, self.next, self.taped_at = self.waited + time.monotonic() - self.waits_from, None, None
        return False

    def _in_vain(self) -> bool:
        limit = WAITED if self.spec.budget is None else WAITED_SHARE * self.spec.budget
        return self.next is not None and not self._steps() and self.waited + time.monotonic() - self.waits_from > limit

    def _waits_for_next(self, recorder: Recorder) -> bool:
        if self.spec.steps is not None or rank.rank_and_world_size()[1] > 1:
            return False
        stack = reversed(list(traceback.walk_stack(sys._getframe())))
        running = itertools.dropwhile(lambda at: at[0].f_code is not Alarm.guarded.__code__, stack)
        self.known = {id(w.optimizer): w.optimizer for w in recorder.optimizers.values() if w.steps}
        self.waits_from = time.monotonic()
        self.next = further_training(running)  # last: the alarm asks, too
        return self.next is not None

    def _followed(self, recorder: Recorder) -> bool:
        most, wanted = self._steps(), self.spec.steps
        if not most:
            return recorder.backwards >= max(IDLE, 2 * (wanted or 0))
        self.tick(f"running the script: step {most}", min(1.0, most / (wanted or FOLLOWED)))
        if wanted is not None:
            return most >= wanted
        if most < TAPED:
            return False
        if rank.rank_and_world_size()[1] > 1:  # by count alone: all processes have to end at the same step
            return True
        now = time.perf_counter()
        self.taped_at = self.taped_at or now
        return most >= FOLLOWED or (most >= FEWEST_STEPS and now - self.taped_at > FOLLOWING)


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
        clock = _Clock(self.spec, recorder, tick)
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


def _ending(error: BaseException | None, clock: _Clock) -> Ending:
    if isinstance(error, Stop) or clock.told_at is not None:
        further = further_training(traceback.walk_tb(error.__traceback__)) if isinstance(error, Stop) else None
        return Ending("budget" if clock.by_time else "stopped", further=further)
    if error is None:
        return Ending("end")
    site = location_of_traceback(error.__traceback__)
    if isinstance(error, SystemExit):
        return Ending("exit", f"sys.exit({error.code!r})", site)
    return Ending("raised", f"{type(error).__name__}: {error}", site)
