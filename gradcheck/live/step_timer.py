"""What watching costs, measured in the run itself: how much longer its measured steps take than the others."""

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

WINDOW = 64  # steps of each kind that are compared
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

    def step(self, measured: bool) -> None:
        now = time.perf_counter()
        took, self.now = now - self.now, now
        self.steps += 1
        if self.steps > 1:  # the first one warms up
            (self.measured if measured else self.bare).append(took)
        if measured and self.began:
            self.spent += max(0.0, took - self.usual)

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
