"""Steps of optimizers: from which passes each was taken, and how its gradients got there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import Optimizer

from gradcheck.capture.events import BackwardPass, OptimizerTrace, Step
from gradcheck.capture.loops import loops_around
from gradcheck.capture.passes import fingerprint
from gradcheck.capture.root_modules import variable_of
from gradcheck.capture.tape import outside
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.training_copy import copy_optimizer

if TYPE_CHECKING:
    from gradcheck.capture.recorder import Recorder


AHEAD = 12  # steps of one optimizer, a critic's say, after which the first step of another one is no longer waited for


class Steps:
    """`before` and `after` are global hooks of optimizers, `made` and `clearing` stand around their `__init__` and `zero_grad`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.stepping: list[int] = []  # ids of optimizers inside their step

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        recorder = self.recorder
        if type(optimizer).__module__.startswith("accelerate") or recorder.busy:
            return None
        recorder.busy += 1
        recorder.updates.close()
        recorder.averages.before_step()
        self.stepping.append(id(optimizer))
        watched = recorder.watched(optimizer)
        if watched.copy is None and not watched.steps:
            self._copy(watched)
        if watched.step_site is None:
            watched.step_site, watched.loops = location_of_frame(outside()), loops_around(outside())
            recorder.schedulers.name(watched)
        watched.starts()
        recorder.updates.leave_to(watched)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            watched.settle()
            self.note(watched)
            return None
        return _with_closure(args, kwargs, self._watching(closure))

    def _watching(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        def watched_closure(*args: Any, **kwargs: Any) -> Any:
            busy, self.recorder.busy = self.recorder.busy, 0
            try:
                return closure(*args, **kwargs)
            finally:
                self.recorder.busy = busy

        return watched_closure

    def _copy(self, watched: OptimizerTrace) -> None:
        recorder = self.recorder
        watched.label = watched.label or variable_of(watched.optimizer)
        watched.base_rate = float(watched.optimizer.param_groups[0].get("initial_lr", _rate(watched.optimizer)))
        recorder.owners.own(watched.parameters)
        for owner in recorder.owners.current.values():
            watched.memo |= owner.memo
        try:
            watched.keys = tuple(map(id, watched.parameters))
            watched.copy = copy_optimizer(watched.optimizer, watched.memo)
        except Exception as error:
            recorder.tape.failure = recorder.tape.failure or f"the optimizer cannot be copied: {type(error).__name__}: {error}"

    def note(self, watched: OptimizerTrace) -> None:
        """Files the step that is about to be taken, or, with a closure, that was taken."""
        recorder = self.recorder
        asked = [] if watched.live else [p for p in recorder.asked if p.reached & watched.ids]
        passes, lost = (asked, False) if asked else self._passes(watched)
        recorder.asked = [p for p in recorder.asked if not p.reached & watched.ids]
        recorder.backwards += len(asked)
        mine = recorder.modes.take(watched.ids)
        factor = next((p.factor for p in passes if p.factor != 1), 1.0)
        rates = tuple(float(g.get("lr") or 0.0) for g in watched.optimizer.param_groups)
        scaler = next((s for o, s in recorder.scalers.values() if getattr(o, "_gradcheck_stepping", False)), None)
        same = {p.place for p in passes}
        since = watched.last_call()
        watched.steps.append(
            Step(
                passes=passes,
                rate=max(rates, default=0.0),
                rates=rates,
                leftover=watched.dirty and bool(watched.steps) and not asked,
                lost=lost,
                dropped=not lost and any(p.place in same for p in watched.cleared),
                bare=factor != 1 and not watched.unscaled and scaler is None,
                by_scaler=scaler is not None,
                off=tuple(name for m in mine for name in m.dropouts),
                frozen=tuple(name for m in mine for name in m.norms),
                fresh=any(m.fresh for m in mine),
                evaluated=bool(mine) and all(not m.module.training for m in mine),
                fingerprint=fingerprint(passes, since),
                since=since,
                epoch=sum(count for _, count in recorder.loaders.values()),
                number=recorder.steps,
                edited=watched.edited(),
                near=recorder.newest if not passes and len(watched.steps) < recorder.taped else None,
            )
        )
        recorder.steps += 1
        watched.live, watched.cleared, watched.unscaled = [], [], False

    def _passes(self, watched: OptimizerTrace) -> tuple[list[BackwardPass], bool]:
        """The passes that a step belongs to, and whether their gradients were lost before it."""
        if watched.live:
            return watched.live, False
        if watched.cleared:
            return watched.cleared, True
        passes, self.recorder.unclaimed = self.recorder.unclaimed, []  # of a loss that does not reach this optimizer, and no other one
        return passes, False

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        recorder = self.recorder
        if not self.stepping or self.stepping[-1] != id(optimizer):
            return  # one inside another one's step
        self.stepping.pop()
        watched = recorder.optimizers[id(optimizer)]
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if callable(closure):
            evaluated = [*watched.cleared, *watched.live]
            watched.live, watched.cleared = evaluated[:1], []
            self.note(watched)
        recorder.averages.after_step()
        recorder.busy -= 1
        recorder.newest = None
        watched.keep_watch()
        self.taken(watched)
        recorder.observer(recorder)

    def taken(self, watched: OptimizerTrace) -> None:
        """After a step that was noted."""
        recorder = self.recorder
        watched.dirty = True
        begun = recorder.beginning  # of those that are no optimizers of torch, as many as have stepped
        if all(w.steps and w.changes is None for w in begun) or any(len(w.steps) > (AHEAD if w.changes is None else 1) for w in begun):
            recorder.owners.initial = False
        self._release(watched)

    def _release(self, watched: OptimizerTrace) -> None:
        """Keeps the computations of the first steps only."""
        recorder = self.recorder
        if len(watched.steps) > recorder.taped:
            for found in watched.steps[-1].passes:
                found.ref = None
        if all(len(w.steps) >= recorder.taped for w in recorder.optimizers.values()):
            recorder.tape.recording = False

    def made(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def init(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            if not self.recorder.busy and not type(optimizer).__module__.startswith("accelerate"):
                self.recorder.watched(optimizer)

        return init

    def clearing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def zero_grad(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            watched = self.recorder.optimizers.get(id(optimizer))
            if watched is not None and watched.clear_site is None:
                watched.clear_site = location_of_frame(outside())
            return original(optimizer, *args, **kwargs)

        return zero_grad


def _with_closure(args: Any, kwargs: Any, closure: Callable[..., Any]) -> tuple[Any, Any]:
    """Arguments of a step with another closure."""
    return ((args[0], closure, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closure})


def _rate(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0].get("lr") or 0.0) if optimizer.param_groups else 0.0
