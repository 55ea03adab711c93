"""GradScalers, and how a loop uses them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import Optimizer

from gradcheck.capture.events import Scaler
from gradcheck.capture.tape import outside
from gradcheck.workload.source_sites import location_of_frame

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


class Scalers:
    """`seen`: by id, each with what was noted of it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.seen: dict[int, tuple[Any, Scaler]] = {}

    def wrappers(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        """By the name of the method of GradScaler that each stands around."""
        return (
            ("__init__", self.made),
            ("scale", self.scaling),
            ("unscale_", self.unscaling),
            ("step", self.stepping),
            ("update", self.updating),
        )

    def made(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def made(scaler: Any, *args: Any, **kwargs: Any) -> None:
            original(scaler, *args, **kwargs)
            asked = signature.bind(scaler, *args, **kwargs).arguments.get("enabled", True)
            if asked:
                self.seen[id(scaler)] = scaler, Scaler(scaler.is_enabled())

        return made

    def scaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            known = self.seen.get(id(scaler))
            if known is None or not isinstance(outputs, torch.Tensor):
                return original(scaler, outputs)
            self.recorder.busy += 1
            try:
                result = original(scaler, outputs)
            finally:
                self.recorder.busy -= 1
            noted = known[1]
            noted.scaled += 1
            noted.scale_site = noted.scale_site or location_of_frame(outside())
            noted.factor = scaler.get_scale() if scaler.is_enabled() else 1.0
            if result is not outputs:
                result._gradcheck_factor = noted.factor
                self.recorder.tape.alias(result, self.recorder.tape.ref(outputs))
            return result

        return scale

    def unscaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale(scaler: Any, optimizer: Optimizer) -> Any:
            result = original(scaler, optimizer)
            if id(scaler) in self.seen:
                watched = self.recorder.watched(optimizer)
                watched.unscaled = True
                watched.note_version()
            return result

        return unscale

    def stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            known = self.seen.get(id(scaler))
            if known is not None:
                known[1].steps += 1
                known[1].step_site = known[1].step_site or location_of_frame(outside())
            scaler._gradcheck_stepping = known is not None
            try:
                return original(scaler, *args, **kwargs)
            finally:
                del scaler._gradcheck_stepping

        return step

    def updating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            if id(scaler) in self.seen:
                self.seen[id(scaler)][1].updates += 1
            return original(scaler, *args, **kwargs)

        return update
