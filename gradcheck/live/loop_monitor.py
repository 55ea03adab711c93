"""Which steps of a running loop are measured, and what happens in which order.

Between measured steps only the value of the loss is kept. For a measured step the taps are put in when the step before it ends; they
see the next forward pass of the model, and are taken out after the first backward pass that comes back to it. Norms of gradients are
read before clipping, updates around the optimizer's step. Nothing is copied but samples, no random number is drawn, and no value of
the user's is written.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradcheck.capture.events import Scaler
from gradcheck.instrument.activation_recorder import Call
from gradcheck.live.backward_sites import BackwardSites, caller
from gradcheck.live.first import FirstPass
from gradcheck.live.gradients import Gradients, is_filled
from gradcheck.live.hooks import Kind, LoopHooks
from gradcheck.live.losses import Losses
from gradcheck.live.merge import Together
from gradcheck.live.models import is_compiled, unwrapped
from gradcheck.live.optimizers import Optimizers
from gradcheck.live.ranks import join
from gradcheck.live.record import Record
from gradcheck.live.scaling import Scaling
from gradcheck.live.step_timer import StepTimer
from gradcheck.live.tapping import Tapping
from gradcheck.measure import facts
from gradcheck.measure.parameters import StepWatch
from gradcheck.workload.source_sites import location_of_frame

EARLY = 4  # the first steps, all measured
ROWS_AT = (0, 3)  # steps at which equal rows of the weights are looked for
_COMPILED = "the model is compiled by torch.compile, and what happens inside it is not seen"


class LoopMonitor:
    """Listens to the loop's hooks and fills a Record. `after` is called when a measured step is over."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, every: int, record: Record, after: Callable[[], None]) -> None:
        self.model, self.every, self.record, self.after = unwrapped(model), every, record, after
        self.hooks, self.pace = LoopHooks(self), StepTimer()
        self.together: Together | None = None  # with the other processes of a distributed training
        self.optimizers = Optimizers(self.model, optimizer, record, self._is_sharded)
        self.gradients = Gradients(self.optimizers, record)
        self.tapping = Tapping(self.model, record, FirstPass(self.model, record, self.optimizers, self._is_sharded))
        self.losses, self.lines, self.scaling = Losses(record.note_loss), BackwardSites(), Scaling()
        self.watching: StepWatch | None = None  # the step that is being measured, once its gradients are there
        self._closure = False  # the optimizer calls one, which runs the backward passes

    # ----------------------------------------------------------------- context

    def start(self) -> None:
        record = self.record
        record.model, record.training = self.model, self.model.training
        record.pretrained = facts.pretrained(self.model, self.optimizers.known)
        record.untapped = _COMPILED if is_compiled(self.model) else ""
        self._join()
        self.hooks.install()
        self._arm()

    def _join(self) -> None:
        ranks = join()
        if ranks is None:
            return
        self.together = Together(ranks, self.record)
        self.losses.note = self.together.note_loss
        try:
            self.together.prepare()
            if self.together.sharded:
                self.optimizers.know_parameters()  # later they are whole at times: other tensors, of the same names
        except Exception as error:  # models are spread in more ways than were thought of
            ranks.give_up(f"{type(error).__name__}: {error}")

    def _is_sharded(self) -> bool:
        return self.together is not None and self.together.sharded

    def stop(self) -> None:
        self.tapping.stop()
        self.hooks.remove()
        self.losses.read()
        if self.together is not None:
            self.together.leave()
        self.losses.passes.clear()
        self.watching = None

    def failed(self) -> None:
        """The other ranks are not to wait for this one."""
        if self.together is not None:
            self.together.ranks.give_up("watching failed")

    # ---------------------------------------------------------------- schedule

    @property
    def step(self) -> int:
        return self.record.steps

    @property
    def measures(self) -> bool:
        """Whether the step that comes next is measured."""
        return self._scheduled or (self.record.bad_losses == 1 and (self.together is None or not self.together.ranks.joined))

    @property
    def _scheduled(self) -> bool:
        """By count alone: so that the ranks of a distributed training measure the same steps."""
        return self.step < EARLY or self.step % self.every == 0

    def _arm(self) -> None:
        self.watching = None
        self.gradients.forget()
        self.tapping.arm(self.measures)

    # ---------------------------------------------------------------- backward

    def before_backward(self, losses: Sequence[torch.Tensor]) -> None:
        self.losses.begin(losses, self.scaling.loss)
        self.lines.current = caller()
        if self._closure:
            self.losses.take_up(self.gradients.marks)
        if self.measures:
            if self.tapping.calls is not None and not self._closure and self.gradients.cleared():
                self._discard()
            if not self.losses.passes:
                self.gradients.look_for_leftover()
        self.tapping.before_backward(losses)

    def after_backward(self) -> None:
        measures = self.measures
        self.record.backwards += measures
        calls = self.tapping.reached()
        ours = self._gather(calls) if calls is not None else self._closure or self.lines.belongs(self.optimizers.several)
        if self.losses.end(ours):
            self.lines.step.add(self.lines.current)
        self.gradients.note_versions(measures)
        if self._closure and measures and self.watching is None:
            self._watch_step()

    def _gather(self, calls: list[Call]) -> bool:
        """Keeps the calls that gradient came back to. Whether it did: else it was a pass of something else."""
        line = self.lines.current
        if not calls or (line in self.lines.void and not self._closure):
            self.tapping.listen()
            return False
        if self.tapping.calls is None:
            self.record.backward_site = self.record.backward_site or location_of_frame(sys._getframe())
            self.tapping.keep(calls, self.losses.running, self.scaling)
            self.gradients.remember()
        if line in self.lines.sure:
            self.tapping.take_out()
        else:  # it may be a pass whose gradients are thrown away: seen when the next one comes, or the step
            self.tapping.listen()
        return True

    def _discard(self) -> None:
        self.lines.discard()
        self.losses.passes.clear()
        self.tapping.discard()

    # ------------------------------------------------------------------- steps

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        self.optimizers.see(optimizer)
        if not self.optimizers.is_main(optimizer):
            return
        self.record.optimizer = optimizer
        self._closure = closure
        if closure:
            self.losses.set_aside(self.gradients.marks())
        elif self.measures:
            self.record.log.lost += self.gradients.cleared()
            if self.watching is None:
                self.record.clipped = not self.scaling.unscaled and self.gradients.edited()
                self.record.log.edited |= self.record.clipped
                self._watch_step()
        if self.record.step_site is None:
            self.record.step_site = location_of_frame(sys._getframe())

    def before_clipping(self, kind: Kind, threshold: float, parameters: Sequence[torch.Tensor]) -> None:
        if not self.measures or self._closure or self.optimizers.main is None:
            return
        fault = self._fault_of_clipping(parameters)
        if fault is not None:
            self.record.log.note_clip(kind, float(threshold), len(parameters), location_of_frame(sys._getframe()), fault)
        own = {id(w.tensor) for w in self.record.watched}
        if self.watching is None and self.losses.passes and any(id(p) in own for p in parameters):
            self._watch_step()

    def _fault_of_clipping(self, parameters: Sequence[torch.Tensor]) -> str | None:
        """What is wrong with the call, as LoopClip counts it; None when it is about another optimizer's parameters."""
        if not parameters:
            return "empty"
        ids = set(map(id, parameters))
        if not any(id(p) in ids for p in self.optimizers.parameters()):
            return None if self.optimizers.trains_any(ids) else "foreign"
        if not self.losses.passes:
            return "late" if self.step and any(map(is_filled, parameters)) else "early"
        return "scaled" if self.scaling.scaler is not None and not self.scaling.unscaled else ""

    def _watch_step(self) -> None:
        record = self.record
        self.optimizers.know_parameters()
        scale = self.scaling.in_gradients()
        self.watching = StepWatch(record.watched, self.step, look_at_rows=self.step in ROWS_AT)
        record.scale = self.scaling.factor
        self.watching.unscale(scale)
        record.optimizer = record.optimizer or self.optimizers.main
        record.graded.update(id(p) for p in self.optimizers.parameters() if p.grad is not None)

    def after_step(self, optimizer: Optimizer) -> None:
        if optimizer is not self.optimizers.main:
            self.optimizers.note_other(optimizer)
            return
        measured = self.watching if self.measures else None
        self.record.log.note_rate(optimizer.param_groups)
        self.lines.sure |= self.lines.step if self.measures else set()
        self._file_loss()
        if measured is not None and (self.scaling.scaler is None or math.isfinite(measured.total_norm)):
            self._file(measured)
        else:
            measured = None
        self._clear()
        scheduled = self._scheduled
        self.record.steps += 1
        self.pace.step(measured is not None)
        if measured is not None:
            self.losses.read()
            if self.together.bad if self.together is not None else self.record.bad_losses:
                self.record.locate(self.step - 1)
        if self.together is not None and scheduled:
            self.together.exchange(self.step - 1, measured)
        if measured is not None:
            self.after()
        self._arm()
        if measured is not None:
            self.pace.resume()

    def _file_loss(self) -> None:
        passes = self.losses.of_step(self._closure)
        if not passes:
            return
        if not self.step:
            self.record.accumulated = len(passes) if len(self.lines.step) == 1 else 0
        self.losses.file(passes)

    def _file(self, watching: StepWatch) -> None:
        watching.after()
        self.optimizers.forget_others()
        self.record.note_step(self.step, watching.total_norm, self.optimizers.rate(), self.gradients.leftover)
        self._file_loop()
        self.tapping.file(self.step)
        self.record.thin()

    def _file_loop(self) -> None:
        log = self.record.log
        if not self._closure:
            log.note_passes(len(self.losses.passes), len(self.lines.step))
        log.dropped += self.lines.dropped()
        if log.scaler is not None:
            log.scaler.factor = self.record.scale
        log.bare += self.scaling.in_gradients() != 1.0 and not self.scaling.by_scaler
        log.note_modes(self.step, self.tapping.modes.take(frozenset(map(id, self.optimizers.parameters()))))

    def _clear(self) -> None:
        """What is known of one step only."""
        self.losses.clear()
        self.lines.settle()
        self.scaling.clear()
        self._closure = False

    # ------------------------------------------------------------------ scaler

    def scaled(self, scaler: Any, loss: torch.Tensor) -> None:
        self.scaling.scaled(scaler, loss)
        seen = self._seen_scaler()
        seen.scaled += 1
        seen.scale_site = seen.scale_site or location_of_frame(sys._getframe())

    def _seen_scaler(self) -> Scaler:
        log = self.record.log
        log.scaler = log.scaler or Scaler(True)
        return log.scaler

    def scaler_steps(self, scaler: Any) -> None:
        self.scaling.by_scaler = True
        seen = self._seen_scaler()
        seen.steps += 1
        seen.step_site = seen.step_site or location_of_frame(sys._getframe())

    def scaler_updated(self) -> None:
        self._seen_scaler().updates += 1

    def evaluated(self, module: nn.Module) -> None:
        log = self.record.log
        if log.eval_site is None and any(m is module for m in self.model.modules()):
            log.eval_site = location_of_frame(sys._getframe())

    def unscaled(self, optimizer: Optimizer) -> None:
        if self.optimizers.is_main(optimizer):
            self.scaling.unscaled = True

    def scaler_stepped(self, optimizer: Optimizer) -> None:
        """A step that the scaler skipped, because a gradient was not finite, is none."""
        if optimizer is self.optimizers.main and self.losses.passes:
            self._clear()
            self._arm()
