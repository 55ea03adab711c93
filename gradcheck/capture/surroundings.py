"""What else a loop does: schedules of the learning rate, evaluation, passes over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.optimizer import Optimizer
from torch.utils.data import DataLoader

from gradcheck.capture.tape import outside
from gradcheck.target.sites import location_of_frame, origin_of

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


class Surroundings:
    """Each method stands around one of torch's: a scheduler's `step`, a module's `eval`, a loader's `__iter__`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def scheduling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            frame = outside()
            if frame is not None and origin_of(frame.f_code.co_filename) not in ("torch", "hidden"):
                self.recorder.schedules += 1
                self.recorder.schedule_site = self.recorder.schedule_site or location_of_frame(frame)
                self._count(scheduler)
            return original(scheduler, *args, **kwargs)

        return step

    def _count(self, scheduler: Any) -> None:
        """A step of the last scheduler that was made at its place."""
        optimizer = getattr(scheduler, "optimizer", None)
        watched = self.recorder.optimizers.get(id(optimizer))
        made = watched.schedulers.get(getattr(scheduler, "_gradcheck_made", None)) if watched is not None else None
        if made:
            made[-1] += 1

    def making(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def made(scheduler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            original(scheduler, optimizer, *args, **kwargs)
            if isinstance(optimizer, Optimizer) and not self.recorder.busy:
                scheduler._gradcheck_made = place = location_of_frame(outside())
                self.recorder.watched(optimizer).schedulers.setdefault(place, []).append(0)

        return made

    def evaluating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(module: nn.Module) -> Any:
            if not self.recorder.busy:
                self.recorder.eval_sites[id(module)] = location_of_frame(outside())
            return original(module)

        return evaluate

    def iterating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def iterate(loader: DataLoader[Any]) -> Any:
            count = self.recorder.loaders.get(id(loader), (loader, 0))[1]
            self.recorder.loaders[id(loader)] = loader, count + 1
            return original(loader)

        return iterate
