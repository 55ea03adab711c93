"""Spikes as they come: a robust score of each value against those right before it. `curves.spikes` does the same for a whole curve."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from gradcheck.analysis.curves import CLEAR, FEWEST, NORMAL, WINDOW, noise
from gradcheck.analysis.wording import number, percent
from gradcheck.types.spikes import Spike

SCORE, REACH = 10.0, 3.0  # as for the losses of a log (LOG003), whose sources say why
RENEWED = 10  # values after which the limits are reckoned again: a loop may take thousands of steps a second
NAMED = 3  # samples
LEAST = 0.01  # of a loss, for a sample to be named


@dataclass
class SpikeScore:
    """Fed one value after another. Values that are not finite, and those of a spike, are reported once, at the first."""

    level: float = math.nan
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _above: float = math.inf  # what is a spike
    _calm: float = math.inf  # what no longer is
    _left: int = 0  # values until the limits are reckoned again
    _inside: int = 0  # values of the present spike
    _broken: bool = False

    def stands_out(self, value: float) -> bool:
        """Whether a spike begins with this value."""
        if not math.isfinite(value):
            new, self._broken = not self._broken, True
            return new
        self._broken = False
        if self._inside:
            self._inside += 1
            if value > self._calm and self._inside <= WINDOW:
                return False
            if self._inside > WINDOW:  # it stays: a level of its own
                self._recent.clear()
                self._above = self._calm = math.inf
                self._left = 0
            self._inside = 0
        elif value > self._above:
            self._inside = 1
            return True
        self._recent.append(value)
        self._left -= 1
        if self._left <= 0:
            self._renew()
        return False

    def _renew(self) -> None:
        values = list(self._recent)
        self.level = median(values)
        self._left = RENEWED
        if len(values) < FEWEST:
            return
        size = max(NORMAL * median(abs(v - self.level) for v in values), noise(values))
        self._calm = self.level + CLEAR * size
        self._above = self.level + max(SCORE * size, REACH * (max(values) - self.level)) if size > 0 else math.inf


def told(spike: Spike) -> str:
    """In a line: the step, the batch, the tensor, the layer, the place."""
    before = f" (before: {number(spike.level)})" if math.isfinite(spike.level) else ""
    parts = [f"step {spike.step}: {spike.what} {number(spike.value)}{before}"]
    if spike.bad_batch:
        parts.append("its batch holds values that are not finite")
    parts += [_samples(spike)] if spike.size is not None else []
    if spike.tensor:
        share = f", {percent(spike.share)} of the gradient" if spike.share is not None else ", whose gradient is not finite"
        parts.append(f"{spike.tensor}{share}{f' ({spike.site})' if spike.site is not None else ''}")
    parts += [f"kept in {spike.file}"] if spike.file else []
    return "; ".join(parts)


def _samples(spike: Spike) -> str:
    worst = [(i, share) for i, share in spike.worst if share >= LEAST]
    if worst:
        named = [(spike.samples[i] if i < len(spike.samples) else f"{i} of the batch", share) for i, share in worst]
        return "most of it by " + ", ".join(f"sample {n} ({percent(share)})" for n, share in named)
    if not spike.samples:
        return f"{spike.size} samples, whose indices the loader does not say"
    more = f" and {spike.size - NAMED} more" if spike.size is not None and spike.size > NAMED else ""
    return f"samples {', '.join(map(str, spike.samples[:NAMED]))}{more}"
