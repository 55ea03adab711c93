"""Calls of the clipping functions: on which gradients, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from gradcheck.capture.events import Clip, OptimizerTrace
from gradcheck.capture.tape import outside
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


class Clips:
    """`seen`: by kind and place."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.seen: dict[tuple[str, Location | None], Clip] = {}

    def wrapper(self, kind: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if self.recorder.busy:
                return original(parameters, *args, **kwargs)
            given = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            name = "max_norm" if kind == "norm" else "clip_value"
            threshold = float(args[0] if args else kwargs.get(name, float("inf")))
            self.recorder.busy += 1
            try:
                touched = self._note(kind, threshold, given)
                result = original(given, *args, **kwargs)
                for watched in touched:
                    watched.note_version()
            finally:
                self.recorder.busy -= 1
            return result

        return clip

    def _note(self, kind: Any, threshold: float, given: list[torch.Tensor]) -> list[OptimizerTrace]:
        site = location_of_frame(outside())
        clip = self.seen.setdefault((kind, site), Clip(kind, threshold, site))
        ids = set(map(id, given))
        touched = [w for w in self.recorder.optimizers.values() if w.ids & ids]
        for watched in touched:
            watched.settle()
        clip.owners |= {id(w) for w in touched}
        clip.calls += 1
        clip.threshold, clip.parameters = threshold, len(given)
        if not given:
            clip.empty += 1
        elif not touched:
            clip.foreign += bool(self.recorder.optimizers)
        elif all(p.grad is None or not bool(p.grad.coalesce().values().any() if p.grad.is_sparse else p.grad.any()) for p in given):
            clip.early += not any(w.live or w.cleared for w in touched)  # those that were cleared are a finding of their own
        elif not any(w.live for w in touched):
            clip.late += any(w.steps for w in touched)
        elif any(p.factor != 1 for w in touched if not w.unscaled for p in w.live):
            clip.scaled += 1
        return touched
