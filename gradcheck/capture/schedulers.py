"""Schedulers of the learning rate: what each was built for, and where the loop steps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from torch.optim.optimizer import Optimizer

from gradcheck.capture.events import OptimizerTrace
from gradcheck.capture.loops import Loop, loops_around, loops_at_call, product
from gradcheck.capture.root_modules import variable_of
from gradcheck.capture.tape import outside
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopSchedule
from gradcheck.workload.source_sites import location_of_frame, origin_of

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder

_KEPT = 64  # calls whose place among the optimizer's steps is kept
_TORCH = "torch.optim.lr_scheduler"


@dataclass(eq=False)
class SeenScheduler:
    scheduler: Any
    site: Location | None
    epochs: int | None = None  # that it was told to be for
    epoch_steps: int | None = None  # likewise
    calls: int = 0
    label: str = ""
    step_site: Location | None = None
    loops: tuple[Loop, ...] = ()  # around the first call
    after: list[int] = field(default_factory=list)  # steps of its optimizer before each call

    def belongs_to(self, watched: OptimizerTrace) -> bool:
        optimizer = getattr(self.scheduler, "optimizer", None)
        return watched.optimizer in (optimizer, getattr(optimizer, "optimizer", None))


class Schedulers:
    """`making` and `stepping` stand around `__init__` and `step` of torch's schedulers."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.seen: dict[int, SeenScheduler] = {}

    @property
    def calls(self) -> int:
        return sum(s.calls for s in self.seen.values())

    @property
    def step_site(self) -> Location | None:
        return next((s.step_site for s in self.seen.values() if s.step_site is not None), None)

    def making(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def init(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            frame = outside()
            self.seen[id(scheduler)] = seen = SeenScheduler(scheduler, location_of_frame(frame), *_told(scheduler, frame))
            original(scheduler, *args, **kwargs)
            optimizer = getattr(scheduler, "optimizer", None)
            if isinstance(optimizer, Optimizer) and not self.recorder.busy:
                self.recorder.watched(optimizer).schedulers.setdefault(seen.site, []).append(0)

        return init

    def stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            frame = outside()
            if frame is not None and origin_of(frame.f_code.co_filename) not in ("torch", "hidden"):
                self._stepped(scheduler, frame)
            return original(scheduler, *args, **kwargs)

        return step

    def _stepped(self, scheduler: Any, frame: FrameType) -> None:
        seen = self.seen.setdefault(id(scheduler), SeenScheduler(scheduler, None))
        seen.calls += 1
        if seen.step_site is None:
            seen.step_site, seen.loops = location_of_frame(frame), loops_around(frame)
        watched = next((w for w in self.recorder.optimizers.values() if seen.belongs_to(w)), None)
        made = watched.schedulers.get(seen.site) if watched is not None else None
        if made:
            made[-1] += 1  # a step of the last one that was made at its place
        if watched is not None and len(seen.after) < _KEPT:
            seen.after.append(len(watched.steps))

    def name(self, watched: OptimizerTrace) -> None:
        """Notes the variables of an optimizer's schedulers, which are bound once it takes steps."""
        for seen in self.seen.values():
            if not seen.label and seen.belongs_to(watched):
                seen.label = variable_of(seen.scheduler)

    def facts(self, watched: OptimizerTrace) -> tuple[LoopSchedule, ...]:
        inner = {id(x) for s in self.seen.values() for x in getattr(s.scheduler, "_schedulers", ())}  # stepped by the one that holds them
        return tuple(_fact(s, watched) for s in self.seen.values() if s.belongs_to(watched) and id(s.scheduler) not in inner)


def _told(scheduler: Any, frame: FrameType | None) -> tuple[int | None, int | None]:
    """`epochs` and `steps_per_epoch`, among the arguments of the constructor that runs."""
    for _ in range(4):
        if frame is None or frame.f_locals.get("self") is not scheduler:
            break
        epochs, steps = frame.f_locals.get("epochs"), frame.f_locals.get("steps_per_epoch")
        if isinstance(epochs, int) and isinstance(steps, int):
            return epochs, steps
        frame = frame.f_back
    return None, None


def _fact(seen: SeenScheduler, watched: OptimizerTrace) -> LoopSchedule:
    length, decay = _length(seen.scheduler)
    loops = seen.loops if seen.calls else loops_at_call(seen.label, "step", watched.loops) if seen.label else None
    stepped, epochs, epoch_steps = _cadence(loops, watched.loops, seen)
    return LoopSchedule(
        type(seen.scheduler).__name__,
        length,
        decay,
        seen.calls,
        stepped,
        epochs if epochs is not None else seen.epochs,
        epoch_steps if epoch_steps is not None else seen.epoch_steps,
        seen.site,
        seen.step_site,
    )


def _cadence(
    loops: tuple[Loop, ...] | None, around: tuple[Loop, ...], seen: SeenScheduler
) -> tuple[Literal["step", "epoch", ""], int | None, int | None]:
    """How often it is stepped, the epochs of the training, and the optimizer's steps in one. `around`: the loops around these."""
    gaps = [b - a for a, b in pairwise(seen.after)]
    usual = int(median(gaps)) if gaps else None
    if loops == around and loops:
        return "step", around[0].turns if len(around) > 1 else None, product(around[1:])
    if loops is not None and loops == around[: len(loops)] and len(loops) < len(around):
        return "epoch", product(loops), usual or product(around[len(loops) :])
    if usual == 1:
        return "step", None, None
    return ("epoch", None, usual) if usual is not None and usual == seen.epoch_steps else ("", None, None)


def _length(scheduler: Any) -> tuple[int | None, float | None]:
    """The calls of `step` that a schedule of torch's is laid out for, and the factor on the rate for as many."""
    kind = type(scheduler).__name__
    if kind == "LambdaLR":
        return _of_lambda(scheduler), None
    if type(scheduler).__module__ != _TORCH:
        return None, None
    if kind in ("OneCycleLR", "LinearLR", "ConstantLR", "PolynomialLR"):
        return _whole(getattr(scheduler, "total_steps", None) or getattr(scheduler, "total_iters", None)), None
    if kind == "CosineAnnealingLR":
        return _whole(scheduler.T_max), None
    if kind in ("StepLR", "ExponentialLR"):
        return _whole(getattr(scheduler, "step_size", 1)), float(scheduler.gamma)
    if kind == "MultiStepLR":
        return max(scheduler.milestones, default=None), None
    if kind == "SequentialLR":
        last = _length(scheduler._schedulers[-1])[0]
        return (scheduler._milestones[-1] + last if last is not None else None), None
    return None, None


def _of_lambda(scheduler: Any) -> int | None:
    """Transformers' schedules are functions of a step, with the length among their arguments."""
    found = (getattr(f, "keywords", {}).get("num_training_steps") for f in scheduler.lr_lambdas)
    return next((_whole(n) for n in found if n is not None), None)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value > 0 else None
