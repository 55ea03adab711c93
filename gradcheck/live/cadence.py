"""Which steps are measured: every so many if the user says so, else as often as a share of the run's time allows."""

import math
from dataclasses import dataclass

from gradcheck.config.settings import EVERY, OVERHEAD
from gradcheck.live.step_timer import StepTimer

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
