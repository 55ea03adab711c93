"""What the log of a finished run says about its training."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A column of a log. The two tuples are equally long; steps grow, values may be not finite."""

    name: str  # as the log calls it
    steps: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def finite(self) -> Curve:
        """Its finite values."""
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return Curve(self.name, tuple(s for s, _ in kept), tuple(v for _, v in kept))


@dataclass(frozen=True)
class LogFacts:
    """The columns of a log that rules read; None: it has no such column."""

    format: str  # "trainer_state.json of Transformers", "TensorBoard", ...
    loss: Curve | None = None  # of training
    evaluation: Curve | None = None  # loss on held-out data
    rate: Curve | None = None
    norm: Curve | None = None  # of the gradient
    clip: float | None = None  # norm that gradients are clipped to, where the log or the user says it
    others: tuple[str, ...] = ()  # columns that were not used

    @property
    def last(self) -> float:
        """The last step that it tells of."""
        return max((c.steps[-1] for c in (self.loss, self.evaluation, self.rate, self.norm) if c is not None and c.steps), default=0.0)
