"""When a script has been followed for long enough."""

import itertools
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from gradcheck import rank
from gradcheck.analysis.convergence import FEWEST_STEPS
from gradcheck.capture.alarm import GRACE, Alarm, Stop
from gradcheck.capture.events import taken_alike
from gradcheck.capture.further import further_training
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.spec import ScriptSpec
from gradcheck.types.location import Location
from gradcheck.types.report import FEWEST_SEEN

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
class Clock:
    """Tells when to stop: the recorder calls it after each backward pass and step, and the alarm asks it."""

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
