"""What watching costs, told by the run itself: how much longer its measured steps take than the others."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

WINDOW = 64  # steps of each kind that are compared


@dataclass
class StepTimer:
    """Durations from the end of one step to the end of the next, seconds."""

    bare: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    steps: int = 0
    measured_steps: int = 0
    judging: float = 0.0  # seconds that went into judging and showing
    _last: float = field(default_factory=time.perf_counter)
    _began: float = field(default_factory=time.perf_counter)

    def step(self, measured: bool) -> None:
        now = time.perf_counter()
        self.steps += 1
        self.measured_steps += measured
        if self.steps > 1:  # the first one warms up
            (self.measured if measured else self.bare).append(now - self._last)
        self._last = now

    def resume(self) -> None:
        """After what a measured step is followed by: that is not the next step's time."""
        now = time.perf_counter()
        self.judging += now - self._last
        self._last = now

    @property
    def rate(self) -> float:
        """Steps a second."""
        recent = [*self.bare, *self.measured]
        typical = median(self.bare) if self.bare else median(recent) if recent else 0.0
        return 1.0 / typical if typical > 0 else 0.0

    @property
    def overhead(self) -> float | None:
        """Share of the run's time that watching takes; None as long as no other step was seen to compare with."""
        if len(self.bare) < 3 or not self.measured:
            return None
        usual = median(self.bare)
        extra = max(0.0, median(self.measured) - usual) * self.measured_steps + self.judging
        return extra / max(usual * self.steps, 1e-9)
