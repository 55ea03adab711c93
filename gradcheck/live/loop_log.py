"""What a watched loop does around its passes and steps: clipping, modes, rates, loss scaling, passes of a step. From it, LoopFacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from gradcheck.capture.events import Clip, Scaler
from gradcheck.capture.modes import Off
from gradcheck.types.location import Location
from gradcheck.types.loop import NEVER_EVALUATED, NO_SCALER, LoopClip, LoopEvaluation, LoopScaler

MOST_RATES = 1000  # steps, from the first one on, whose rates are kept
SHOWN_LAYERS = 20


@dataclass
class LoopLog:
    """Counts are of measured steps, where values on a device may be read. None as in LoopFacts: it could not be looked at."""

    steps: int = 0
    leftover: int = 0
    lost: int = 0
    dropped: int = 0
    rates: list[float] | None = field(default_factory=list)
    base_rate: float = 0.0
    eval_site: Location | None = None
    scaler: Scaler | None = None
    bare: int = 0  # steps on gradients that were still scaled
    edited: bool = False  # something that was not seen changed the gradients before a step
    _passes: Counter[int] = field(default_factory=Counter)
    _mixed: bool = False  # steps had passes of several lines, which cannot be counted apart
    _clips: dict[tuple[str, Location | None], Clip] = field(default_factory=dict)
    _off: list[int] = field(default_factory=list)  # steps in evaluation mode
    _trained: bool = False  # a step before them was in training mode
    _first: tuple[tuple[str, ...], tuple[str, ...], bool] = ((), (), False)  # what was off in the first of them

    # ------------------------------------------------------------------- writing

    def note_rate(self, groups: Sequence[dict[str, Any]]) -> None:
        """Of every step. A rate that lies on a device is not waited for."""
        if self.rates is None or len(self.rates) >= MOST_RATES:
            return
        values = [g.get("lr", 0.0) for g in groups]
        if any(isinstance(v, torch.Tensor) and v.device.type != "cpu" for v in values):
            self.rates = None
            return
        if not self.rates and groups:
            self.base_rate = float(groups[0].get("initial_lr") or 0.0)
        self.rates.append(max((float(v) for v in values if v is not None), default=0.0))

    def note_passes(self, passes: int, lines: int) -> None:
        """Backward passes of a step, and the lines that ran them."""
        if lines == 1:
            self._passes[passes] += 1
        elif passes == lines:
            self._passes[1] += 1
        else:
            self._mixed = True

    def note_modes(self, step: int, off: Sequence[Off]) -> None:
        """`off`: of the modules that ran in the step and that the optimizer trains."""
        if not off:
            return
        dropouts, norms = tuple(n for o in off for n in o.dropouts), tuple(n for o in off for n in o.norms)
        evaluated = all(not o.module.training for o in off)
        if evaluated and (dropouts or norms):
            if not self._off:
                self._first = dropouts, norms, any(o.fresh for o in off)
            self._off.append(step)
        elif not self._off:
            self._trained = self._trained or not evaluated

    def note_clip(self, kind: Literal["norm", "value"], threshold: float, count: int, site: Location | None, fault: str) -> None:
        """`fault`: the name of the counter of LoopClip for what is wrong with this call; "" for nothing."""
        clip = self._clips.setdefault((kind, site), Clip(kind, threshold, site))
        clip.calls += 1
        clip.threshold, clip.parameters = threshold, count
        if fault:
            setattr(clip, fault, getattr(clip, fault) + 1)

    # ------------------------------------------------------------------- reading

    @property
    def accumulated(self) -> int | None:
        if self._mixed or not self._passes:
            return None
        return self._passes.most_common(1)[0][0]

    def clips(self) -> tuple[LoopClip, ...] | None:
        if self.edited and not self._clips:
            return None
        return tuple(clip.record() for clip in self._clips.values())

    def scaling(self) -> LoopScaler:
        s = self.scaler
        if s is None:
            return NO_SCALER
        return LoopScaler(s.enabled, s.factor, s.scaled, s.steps, self.bare, s.updates, s.step_site, s.scale_site)

    def evaluation(self) -> LoopEvaluation:
        if not self._off:
            return NEVER_EVALUATED
        dropouts, norms, fresh = self._first
        site = self.eval_site
        return LoopEvaluation(len(self._off), self._off[0], self._trained, dropouts[:SHOWN_LAYERS], norms[:SHOWN_LAYERS], fresh, site)
