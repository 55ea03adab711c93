"""What a recorded loop gives its optimizer, given to a copy of it step by step: learning rates, and arguments of the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST = 0.1  # of the highest rate: after the recorded steps the rate does not fall below this share of it


@dataclass
class Schedule:
    """Hooks around an optimizer's step. They scale whatever rates the groups have at the time, and put them back."""

    peaks: tuple[float, ...]  # highest rate of each group
    factors: tuple[tuple[float, ...], ...]  # by step, by group: the rate over the peak
    step: int = 0
    _kept: tuple[Any, ...] = ()

    @classmethod
    def of(cls, rates: Sequence[tuple[float, ...]]) -> Schedule | None:
        """`rates` by step and group; None when they stay as they are."""
        usable = [r for r in rates if len(r) == len(rates[0])]
        if len(set(usable)) < 2:
            return None
        peaks = tuple(max(column) for column in zip(*usable, strict=True))
        factors = [tuple(r / p if p else 1.0 for r, p in zip(row, peaks, strict=True)) for row in usable]
        return cls(peaks, tuple(factors))

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        over = self.step >= len(self.factors)
        row = self.factors[-1 if over else self.step]
        self._kept = tuple(group["lr"] for group in optimizer.param_groups)
        for group, factor in zip(optimizer.param_groups, row, strict=True):
            group["lr"] = group["lr"] * (max(factor, LEAST) if over else factor)
        self.step += 1

    def after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._kept, strict=True):
            group["lr"] = rate


@dataclass
class StepOptions:
    """A hook before an optimizer's step: `step(burn_in=True)`."""

    options: Sequence[Mapping[str, Any]]  # by step; those of the last one hold on
    step: int = 0

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        given = self.options[min(self.step, len(self.options) - 1)]
        self.step += 1
        return args, {**given, **kwargs}
