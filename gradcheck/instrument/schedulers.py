"""Schedulers of the learning rate: what each was built for, and where the loop steps it."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from types import FrameType
from typing import Any, Literal

from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import Optimizer

from gradcheck.instrument.running_code import outside, variable_of
from gradcheck.instrument.source_loops import Loop, loop_begun, loops_around, loops_at_call, made_once, product
from gradcheck.instrument.traced_optimizer import TracedOptimizer, inner_optimizer
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopSchedule
from gradcheck.workload.source_sites import location_of_frame, origin_of

MOST = 256  # schedulers that are kept: a loop may make a new one again and again
_KEPT = 64  # calls whose place among the optimizer's steps is kept
_TORCH = "torch.optim.lr_scheduler"
_DENSE, _APART, _LOOKS = 128, 1.02, 500  # calls at which a function is asked for its factor: the first, then up to 2.5 million, 2 % apart
_SAME, _NOTHING = 1e-6, 1e-3  # of its highest value: rounding; a cosine 2 % beside its lowest point
_HALF = 0.05  # of its highest value, half way: lines, cosines and polynomials have more, what falls for ever less
_MOST = 4000  # calls between two of those, all of which are looked at for the exact place


@dataclass(eq=False)
class SeenScheduler:
    scheduler: Any
    site: Location | None
    epochs: int | None = None  # that it was told to expect
    epoch_steps: int | None = None  # likewise
    calls: int = 0
    running: tuple[Loop, ...] = ()  # when it was made: loops over several trainings
    label: str = ""
    step_site: Location | None = None
    loops: tuple[Loop, ...] = ()  # around the first call
    after: list[int] = field(default_factory=list)  # steps of its optimizer before each call
    metrics: list[float] = field(default_factory=list)  # that a ReduceLROnPlateau was given by each


class Schedulers:
    """`optimizers` gives the known ones, by id; `traced` what is known of one, also of a new one."""

    def __init__(
        self,
        optimizers: Callable[[], Mapping[int, TracedOptimizer]],
        traced: Callable[[Optimizer], TracedOptimizer | None],
        busy: Callable[[], bool],
    ) -> None:
        self.optimizers, self.traced, self.busy = optimizers, traced, busy
        self.seen: dict[int, SeenScheduler] = {}
        self.calls = 0
        self.running = loops_around(outside())  # when listening began: also around the making of what was made before
        self._begun = 0  # times that a loader was iterated over
        self.reads: dict[Loop, int | None] = {}  # how many batches a loop's loader has, of calls in heads of loops

    def begins(self, loader: Any) -> None:
        """A loader is iterated over."""
        self._begun += 1
        loop = loop_begun(outside()) if self._begun <= MOST else None  # some loops begin to read in every step
        if loop is not None:
            try:
                self.reads[loop] = len(loader)
            except (TypeError, NotImplementedError):
                self.reads[loop] = None

    @property
    def step_site(self) -> Location | None:
        return next((s.step_site for s in self.seen.values() if s.step_site is not None), None)

    def _know(self, seen: SeenScheduler) -> SeenScheduler:
        while len(self.seen) >= MOST:
            del self.seen[next(iter(self.seen))]
        self.seen[id(seen.scheduler)] = seen
        return seen

    def made(self, scheduler: Any) -> None:
        optimizer, frame = inner_optimizer(getattr(scheduler, "optimizer", None)), outside()
        traced = self.traced(optimizer) if isinstance(optimizer, Optimizer) and not self.busy() else None
        if traced is not None:
            seen = self._know(SeenScheduler(scheduler, location_of_frame(frame), *_told(scheduler, frame)))
            seen.running = loops_around(frame)[: -1 if made_once(frame) else None]
            traced.schedulers.setdefault(seen.site, []).append(0)

    def moves(self, scheduler: Any, given: Any) -> None:
        frame = outside()
        if frame is not None and origin_of(frame.f_code.co_filename) not in ("torch", "hidden"):
            self._moved(scheduler, frame, given)

    def _moved(self, scheduler: Any, frame: FrameType, given: Any) -> None:
        traced = next((w for w in self.optimizers().values() if drives(scheduler, w)), None)
        if traced is None:
            return
        seen = self.seen.get(id(scheduler))
        if seen is None or seen.scheduler is not scheduler:  # made before anyone listened
            seen = self._know(SeenScheduler(scheduler, None, running=self.running))
        seen.calls += 1
        self.calls += 1
        if seen.calls == 1:
            seen.step_site, seen.loops = location_of_frame(frame), loops_around(frame)
        made = traced.schedulers.get(seen.site)
        if made:
            made[-1] += 1  # a step of the last one that was made at its place
        if len(seen.after) < _KEPT:
            seen.after.append(traced.taken)
            if isinstance(scheduler, ReduceLROnPlateau):
                seen.metrics.append(float(given))

    def name(self, traced: TracedOptimizer) -> None:
        """Notes the variables of an optimizer's schedulers, which are bound once it takes steps."""
        for seen in self.seen.values():
            if not seen.label and drives(seen.scheduler, traced):
                seen.label = variable_of(seen.scheduler)

    def facts(self, traced: TracedOptimizer) -> tuple[LoopSchedule, ...]:
        inner = {id(x) for s in self.seen.values() for x in getattr(s.scheduler, "_schedulers", ())}  # stepped by the one that holds them
        return tuple(self._fact(s, traced) for s in self.seen.values() if drives(s.scheduler, traced) and id(s.scheduler) not in inner)

    def _fact(self, seen: SeenScheduler, traced: TracedOptimizer) -> LoopSchedule:
        length, decay, warm_up = _layout(seen.scheduler)
        loops = seen.loops if seen.calls else loops_at_call(seen.label, "step", traced.loops) if seen.label else None
        stepped, epochs, epoch_steps = _cadence(self._own(loops, seen), self._own(traced.loops, seen) or (), seen)
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
            warm_up,
            tuple(zip(seen.after, seen.metrics, strict=True)) if seen.metrics else (),
            getattr(seen.scheduler, "mode", "") if seen.metrics else "",
        )

    def _own(self, loops: tuple[Loop, ...] | None, seen: SeenScheduler) -> tuple[Loop, ...] | None:
        """Those of one training: a loop that ran when its scheduler was made makes one for each of its turns."""
        own = loops and tuple(loop for loop in loops if loop not in seen.running)
        return own and tuple(x if x.turns is not None else replace(x, turns=self.reads.get(x)) for x in own)


def drives(scheduler: Any, traced: TracedOptimizer) -> bool:
    """Whether it sets the rate of this optimizer."""
    return inner_optimizer(getattr(scheduler, "optimizer", None)) is traced.optimizer


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


def _layout(scheduler: Any) -> tuple[int | None, float | None, int | None]:
    """The calls of `step` that a schedule is laid out for, the factor on the rate for as many, and the calls until its peak."""
    kind = type(scheduler).__name__
    if kind == "LambdaLR":
        length, decay, peak = laid_out(scheduler.lr_lambdas[0])
        return _of_lambda(scheduler) or length, decay, peak
    if type(scheduler).__module__ != _TORCH:
        return None, None, None
    if kind == "SequentialLR":
        length, _, warm_up = _layout(scheduler._schedulers[-1])
        inner = _layout(scheduler._schedulers[0])[2]
        return (scheduler._milestones[-1] + length if length is not None else None), None, inner if not warm_up else None
    if kind == "LinearLR":
        return scheduler.total_iters, None, scheduler.total_iters if scheduler.start_factor < scheduler.end_factor else 0
    return *_length(scheduler, kind), None


@functools.lru_cache(maxsize=32)
def laid_out(factor: Callable[[int], Any]) -> tuple[int | None, float | None, int | None]:
    """The same of a function of the call, by its values: where it stays as it is, comes down to nothing, or turns back up."""
    at = sorted({*range(_DENSE), *(int(_DENSE * _APART**k) for k in range(_LOOKS))})
    try:
        with contextlib.redirect_stdout(None):
            values = [float(factor(s)) for s in at]
    except Exception:  # the user's function, asked beyond what it was written for
        return None, None, None
    high = max(values)
    start = at[next(i for i, v in enumerate(values) if v >= (1 - _SAME) * high)]
    if high <= 0:
        return None, None, None
    first = next((s for s, v in zip(at, values, strict=True) if v != values[0]), 0)
    if start == 0 and 0 < first < _DENSE // 3 and _falls(values, first):
        return first, values[first] / values[0], 0
    for i in range(at.index(start), len(at) - 1):
        rest, low = values[i:], values[i] <= _NOTHING * high
        if low or max(rest) - min(rest) <= _SAME * high or rest[1] > rest[0] + _SAME * high:
            ends = values[i] >= (1 - _SAME) * high or max(rest[:2]) < high / 2  # one that jumps back up begins again
            half = next(v for s, v in zip(at, values, strict=True) if 2 * s >= start + at[i])
            if not ends or (low and half < _HALF * high):
                return None, None, start
            around = range(at[max(i - 1, 0)], at[i + 1])
            length = (max if at[i] == start else min)(around, key=factor) if len(around) < _MOST else at[i]
            return length or None, None, length if at[i] == start else start
    return None, None, start


def _falls(values: Sequence[float], period: int) -> bool:
    """Whether each `period` calls multiply it by the same, three times over."""
    steps = [values[k * period : (k + 1) * period] for k in range(3)]
    flat = all(max(step) - min(step) <= _SAME * abs(step[0]) for step in steps)
    return flat and 0 < values[period] < values[0] and abs(steps[2][0] * steps[0][0] / steps[1][0] ** 2 - 1) <= _SAME


def _length(scheduler: Any, kind: str) -> tuple[int | None, float | None]:
    if kind in ("OneCycleLR", "ConstantLR", "PolynomialLR"):
        return _whole(getattr(scheduler, "total_steps", None) or getattr(scheduler, "total_iters", None)), None
    if kind == "CosineAnnealingLR":
        return _whole(scheduler.T_max), None
    if kind in ("StepLR", "ExponentialLR"):
        return _whole(getattr(scheduler, "step_size", 1)), float(scheduler.gamma)
    if kind == "MultiStepLR":
        return max(scheduler.milestones, default=None), None
    return None, None


def _of_lambda(scheduler: Any) -> int | None:
    """Transformers' schedules are functions of a step, with the length among their arguments."""
    found = (getattr(f, "keywords", {}).get("num_training_steps") for f in scheduler.lr_lambdas)
    return next((_whole(n) for n in found if n is not None), None)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value > 0 else None
