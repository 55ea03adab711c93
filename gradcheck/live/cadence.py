"""Which steps are measured: every so many if the user says so, else as often as a share of the run's time allows.

And what watching costs, measured in the run itself: how much longer its measured steps take than the others.
"""

import math
import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from gradcheck.config.settings import EVERY, OVERHEAD

WINDOW = 64  # steps of each kind that are compared
OUTLIER = 4.0  # times the median: what takes longer waited for the processor, which others used, too
TOLD = 5.0  # seconds after the first steps: of less a single measured step is a large share, and says nothing of the run


@dataclass
class StepTimer:
    """Durations from the end of one step to the end of the next, seconds."""

    bare: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    steps: int = 0
    own: float = 0.0  # seconds in the hooks of all other steps
    began: float = 0.0  # on the clock: when the cost of watching began to count against its share
    spent: float = 0.0  # seconds since then
    now: float = field(default_factory=time.perf_counter)  # when a step ended last
    _hooks: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # of samples that make up `own`

    def step(self, measured: bool) -> None:
        now = time.perf_counter()
        took, self.now = now - self.now, now
        self.steps += 1
        if self.steps > 1:  # the first one warms up
            (self.measured if measured else self.bare).append(took)
        if measured and self.began:
            self.spent += max(0.0, min(took - self.usual, OUTLIER * self.next_cost))

    def note_own(self, seconds: float) -> None:
        """That hooks of unmeasured steps have taken."""
        self._hooks.append(seconds)
        self.own += min(seconds, OUTLIER * median(self._hooks))

    def resume(self) -> None:
        """After the work that follows a measured step, which does not belong to the next step."""
        now = time.perf_counter()
        self.spent += (now - self.now) if self.began else 0.0
        self.now = now

    def begin_share(self) -> None:
        """What was spent so far does not count: it is spent once per run."""
        self.began = self.now
        self.own = 0.0

    @property
    def usual(self) -> float:
        """Seconds that an unmeasured step takes; 0 as long as there was none."""
        return median(self.bare) if self.bare else 0.0

    @property
    def next_cost(self) -> float:
        """Seconds that measuring another step may take beyond them."""
        return max(0.0, median(self.measured) - self.usual) if self.measured else 0.0

    @property
    def rate(self) -> float:
        """Steps a second."""
        recent = [*self.bare, *self.measured]
        typical = median(self.bare) if self.bare else median(recent) if recent else 0.0
        return 1.0 / typical if typical > 0 else 0.0

    @property
    def overhead(self) -> float | None:
        """Share of the time that watching has taken, without what is spent once; None of a short run."""
        if len(self.bare) < 3 or not self.began or self.now - self.began < TOLD:
            return None
        return (self.spent + self.own) / max(self.now - self.began, 1e-9)


EARLY = 4  # the first steps, all measured: they warm up, and their cost is not part of the share
HELD = 0.8  # of the share that is used: what hooks push out of the processor's caches is felt by the steps, and not seen by the clock
UNAVOIDABLE = 0.5  # of the share, at the most, for the hooks of other steps: very small steps are looked at now and then, too
PATIENCE = 30.0  # seconds after which a step closer than EVERY may be measured: steps of large models take long


@dataclass
class Cadence:
    """`every`: the user's interval; without one, measuring takes at most `share` of the time and one step in EVERY, and the clock decides.
    The processes of a distributed training must measure the same steps: there the interval is agreed on, and counted.
    """

    pace: StepTimer
    every: int | None = None
    share: float = OVERHEAD
    agreed: int | None = None  # steps between two that are measured, in all processes
    wanted: bool = True  # whether the step that comes next is measured
    _last: int = 0  # the last measured step
    _asked: bool = False  # the next step is to be measured ahead of its time
    _lent: bool = False  # such a step has been taken since the last one that was due
    _due: float = 0.0  # on the clock; or before that, when hooks have taken long since
    _patient: float = 0.0  # likewise

    def ask(self) -> None:
        """Something jumped. The next step is measured ahead of its time, and the one that is due later: the share is passed by one step."""
        self._asked = not self._lent

    def look(self, step: int) -> None:
        """A step is over, and the one with this number comes next."""
        if self._asked:
            self.wanted = True
        elif self.every is not None:
            self.wanted = step < EARLY or step % self.every == 0
        elif step < EARLY:
            self.wanted = True
        elif self.agreed is not None:
            self.wanted = step - self._last >= self.agreed
        else:
            now = self.pace.now
            self.wanted = (step - self._last >= EVERY or now >= self._patient) and self._is_due(now)

    def note(self, step: int) -> None:
        """The measured step with this number, and what followed it, are over."""
        pace, self._last = self.pace, step
        self._lent, self._asked = self._asked, False
        if step == EARLY - 1:
            pace.begin_share()
        if self.every is not None or step < EARLY - 1:
            return
        self._patient, self._due = pace.now + PATIENCE, 0.0

    def _is_due(self, now: float) -> bool:
        """Whether another measured step, with all that was spent before, stays within the share."""
        if now < self._due:
            return False
        pace, held = self.pace, HELD * self.share
        own = min(pace.own, UNAVOIDABLE * held * (now - pace.began))
        self._due = pace.began + (pace.spent + own + pace.next_cost) / held
        return now >= self._due

    @property
    def interval(self) -> int | None:
        """Steps until the next measured one, as this process alone would have it; None where the user has said that."""
        pace, usual = self.pace, self.pace.usual
        if self.every is not None:
            return None
        if usual <= 0.0:
            return EVERY
        rare = pace.next_cost / (self.share * usual)
        return max(1, min(EVERY, math.ceil(PATIENCE / usual)), math.ceil(min(rare, 1e9)))
