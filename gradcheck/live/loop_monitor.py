"""Which steps of a running loop are measured, and what happens in which order.

Between measured steps only the value of the loss is kept. For a measured step the taps are put in when the step before it ends; they see
the next forward pass of the model, and are taken out after the first backward pass that reaches it. Norms of gradients are
read before clipping, updates around the optimizer's step. Nothing is copied but samples, no random number is drawn, and no value of
the user's is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradcheck.capture.retained import FOLLOWED, GLANCE, Retained
from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.loop_hooks import ClipKind, LoopHooks, LoopListener
from gradcheck.instrument.loop_journal import LoopJournal, fault_of_clipping
from gradcheck.instrument.running_code import here, outside, variable_of
from gradcheck.instrument.source_loops import loops_around
from gradcheck.live.cadence import Cadence, StepTimer
from gradcheck.live.losses import BackwardSites, Gradients, Losses, caller
from gradcheck.live.merge import MergedLosses
from gradcheck.live.models import compiled_parts, unwrapped
from gradcheck.live.optimizers import Optimizers, Scaling
from gradcheck.live.record import CAPTURED, Record
from gradcheck.live.spikes import Spikes
from gradcheck.live.tapping import FirstPass, Tapping, untapped
from gradcheck.measure import facts
from gradcheck.measure.parameters import StepWatch
from gradcheck.workload.ranks import join

MEASURED_ONLY = ("clears", "before_clipping")  # events that matter in measured steps only
OWN = 3.0  # what hooks take over what their listeners do (paired blocks on a busy machine: 30 and 9 microseconds, with a loader 36 and 12)
JUDGED = (16, 32, 128, 1024)  # steps in a row that a scaler skips: no further one is measured. Healthy scales settle within six
ROWS_AT = (0, 3)  # steps at which equal rows of the weights are looked for


class LoopMonitor(LoopListener):
    """Listens to the loop's hooks and fills a Record. `after` is called when a measured step is over."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | None, every: int | None, share: float, record: Record, after: Callable[[], None]
    ) -> None:
        self.model, self.record, self.after = unwrapped(model), record, after
        self.pace = StepTimer()
        self.cadence = Cadence(self.pace, every, share)
        self.together: MergedLosses | None = None  # with the other processes of a distributed training
        self.optimizers = Optimizers(self.model, optimizer, record, self._is_sharded)
        self.gradients = Gradients(self.optimizers, record)
        self.tapping = Tapping(self.model, record, FirstPass(self.model, record, self.optimizers, self._is_sharded))
        self.losses, self.lines, self.scaling = Losses(record.note_loss), BackwardSites(), Scaling()
        self.watching: StepWatch | None = None  # the step that is being measured, once its gradients are there
        self.measures, self.skipped = True, 0  # the step that comes next, and those before it that a scaler skipped
        self._closure = False  # the optimizer calls one, which runs the backward passes
        self._plain = False  # only the loss of a backward pass matters: each one belongs to the step, which is not measured
        self.journal = record.log.journal = LoopJournal(lambda: self.optimizers.traces, self.optimizers.traced)
        self.spikes = Spikes(record)
        self.retained = record.log.retained = Retained(record)
        self.hooks = LoopHooks(self.journal, self.retained, self)

    def start(self) -> None:
        record = self.record
        record.model, record.training = self.model, self.model.training
        record.pretrained = facts.pretrained(self.model, self.optimizers.known)
        if compiled := compiled_parts(self.model):
            record.untapped = untapped(compiled)
            self.tapping.edges.install(self.model)
        self._join()
        if self.together is None:
            record.log.averages = record.averages()
            record.log.remember(p for p in self.model.parameters() if p.requires_grad)
        self.hooks.install()
        self.spikes.start()
        self._arm()

    def _join(self) -> None:
        ranks = join()
        if ranks is None:
            return
        self.together = MergedLosses(ranks, self.record)
        self.losses.note = self.together.note_loss
        self.together.prepare(self.optimizers.know_parameters)

    @property
    def _accumulates(self) -> bool:
        """Whether a step adds up passes, and each leaves its own gradient: several processes average them later."""
        return self.record.accumulated > 1 and self.together is None and not self._closure

    def _is_sharded(self) -> bool:
        return self.together is not None and self.together.sharded

    def stop(self) -> None:
        self.tapping.stop()
        self.hooks.remove()
        self.spikes.stop()
        self.record.log.over = True
        self.losses.read()
        if self.together is not None:
            self.together.leave()
        self.losses.passes.clear()
        self.watching = None

    def captured(self) -> None:
        if self.record.untapped != CAPTURED:
            self.record.untapped = CAPTURED
            self.tapping.stop()
            self._clear()

    def failed(self, error: Exception) -> None:
        """Keeps the other ranks from waiting for this one."""
        if self.together is not None:
            with suppress(Exception):
                self.together.ranks.give_up("watching failed")

    # ---------------------------------------------------------------- schedule

    @property
    def step(self) -> int:
        return self.record.steps

    def _arm(self) -> None:
        """The step that comes next begins."""
        broke = self.record.bad_losses == 1 and (self.together is None or not self.together.ranks.joined)
        self.measures, self.spikes.jumped = self.cadence.wanted or broke, False
        self._plain = not (self.measures or self.optimizers.several or self.lines.void)
        self.watching = None
        self.gradients.forget()
        self.record.log.forget_passes()
        self.tapping.arm(self.measures)
        for event in MEASURED_ONLY:
            self.hooks.hear(event, self, self.measures)
        self.hooks.hear("after_backward", self, not self._plain)
        self.hooks.hear("before_backward", self.retained, not self.retained.over)

    # ---------------------------------------------------------------- backward

    def before_backward(self, losses: Sequence[torch.Tensor], given: bool) -> None:
        if self._plain and len(losses) == 1 and self.scaling.loss is None and not losses[0].dim():
            self.spikes.judge(self.losses.take(losses[0]), losses[0])
            return
        self.losses.begin(losses, self.scaling.loss)
        if len(losses) == 1:
            self.spikes.look(self.losses.running, losses[0])
        if self._plain:
            self.losses.end(True)
            return
        self.lines.current = caller()
        if self._closure:
            self.losses.take_up(self.gradients.marks)
        if self.measures:
            if self.tapping.calls is not None and not self._closure and self.gradients.cleared():
                self._discard()
            if not self.losses.passes:
                self.gradients.look_for_leftover()
            if self._accumulates and len(losses) == 1 and not losses[0].dim():
                self.record.log.begin_pass(losses[0])
        self.tapping.before_backward(losses)

    def after_backward(self, done: bool) -> None:
        if not done:
            return
        self.record.backwards += self.measures
        calls = self.tapping.reached()
        unseen = self.step and not calls and not self.record.layers.layers  # all of it is compiled
        if calls is not None and not self.record.untapped and not unseen:
            ours = self._gather(calls)
        else:
            self.tapping.listen()
            ours = self._closure or self.lines.belongs(self.optimizers.several)
            if calls and ours and self.tapping.calls is None:
                self.tapping.keep(calls, self.losses.running, self.scaling)
        if self.losses.end(ours):
            self.lines.step.add(self.lines.current)
            self.record.log.passes += not self.step
            if self.measures and self._accumulates:
                self.record.log.end_pass(self.optimizers.parameters())
        self.gradients.note_versions(self.measures)
        if self._closure and self.measures and self.watching is None:
            self._watch_step()

    def backward_failed(self) -> None:
        if self._plain and self.losses.passes:
            self.losses.passes.pop()

    def _gather(self, calls: list[Call]) -> bool:
        """Keeps the calls that the gradient reached. Returns whether it reached any: if not, the pass was of something else."""
        line = self.lines.current
        if not calls or (line in self.lines.void and not self._closure):
            self.tapping.listen()
            return False
        if self.tapping.calls is None:
            self.record.backward_site = self.record.backward_site or here()
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

    def optimizer_made(self, optimizer: Optimizer) -> None:
        self.optimizers.made(optimizer)

    def clears(self, optimizer: Optimizer) -> None:
        traced = self.record.traced
        if self.measures and traced is not None and traced.optimizer is optimizer and traced.clear_site is None:
            traced.clear_site = here()

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if not (self.measures or closure) and self.optimizers.is_known(optimizer):
            if self.spikes.pending is not None:
                self.spikes.before_step(None)
            self.record.optimizer, self._closure = optimizer, False
            return
        self.optimizers.see(optimizer, self.measures)
        if self._plain and (closure or self.optimizers.several):
            self._plain = False
            self.hooks.hear("after_backward", self, True)
        if not self.optimizers.is_main(optimizer):
            return
        if self.measures and self.record.log.averages is not None:
            self.record.log.averages.before_step()
        self.record.optimizer, self._closure = optimizer, closure
        if closure:
            self.losses.set_aside(self.gradients.marks())
        elif self.measures:
            self.record.log.lost += self.gradients.cleared()
            if self.watching is None:
                self.record.clipped = not self.scaling.unscaled and self.gradients.edited()
                self.record.log.edited |= self.record.clipped
                self._watch_step()
        if not closure:
            self.spikes.before_step(self.watching.total_norm if self.watching is not None else None)
        traced = self.record.traced
        if self.measures and traced is not None and traced.step_site is None:
            traced.step_site, traced.loops, traced.label = here(), loops_around(outside()), variable_of(optimizer)
            self.journal.schedulers.name(traced)

    def before_clipping(self, kind: ClipKind, threshold: float, parameters: Sequence[torch.Tensor]) -> None:
        if not self.measures or self.optimizers.main is None:
            return
        own, ids = set(map(id, self.optimizers.parameters())), set(map(id, parameters))
        mine = bool(own & ids)
        if mine or not self.optimizers.trains_any(ids):
            scaled = self.scaling.scaler is not None and not self.scaling.unscaled
            fault = fault_of_clipping(parameters, mine, bool(self.losses.passes), False, self.step > 0, scaled)
            self.journal.note_clip(kind, threshold, len(parameters), fault)
        own = {id(w.tensor) for w in self.record.watched}
        if self.watching is None and self.losses.passes and not self._closure and own & ids:
            self._watch_step()

    def after_clipping(self, result: Any) -> None:
        if not self.optimizers.several:
            self.spikes.note_clipped(result)

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
        self.skipped = 0
        self.record.log.note_rate(optimizer.param_groups)
        assert self.record.traced is not None
        self.record.traced.taken += 1
        if not self.measures:
            self._count()
            return
        self.lines.sure |= self.lines.step
        self._file_loss()
        if measured is not None and (self.scaling.scaler is None or math.isfinite(measured.total_norm)):
            self._file(measured)
        else:
            measured = None
        self._clear()
        scheduled = self.cadence.wanted
        self.record.steps += 1
        self.pace.step(measured is not None)
        if measured is not None:
            self.losses.read()
            if self.together.bad if self.together is not None else self.record.bad_losses:
                self.record.locate(self.step - 1)
        if self.together is not None and scheduled:
            self.cadence.agreed = self.together.exchange(self.step - 1, measured, self.cadence.interval)
        if measured is not None:
            self.after()
            self.pace.resume()
        self.cadence.note(self.step - 1)
        self._next()
        self.hooks.listen(False)  # its time is accounted for elsewhere

    def _count(self) -> None:
        """A step that was not measured is over."""
        if self.spikes.jumped:
            self.spikes.jumped = False
            if self.together is None:  # processes measure the same steps
                self.cadence.ask()
                if self.scaling.scaler is None:  # the gradients can still be seen
                    self.record.instruments.look_between(self.step, self.optimizers.main, self.record.watched)
        if not (self._plain and self.scaling.scaler is None and self.losses.file_single()):
            self._file_loss()
            self._clear()
        self.record.steps = step = self.record.steps + 1
        self.pace.step(False)
        if taken := self.hooks.sampled(step, self.pace.now):
            self.pace.note_own(OWN * taken)
        if step in (GLANCE, FOLLOWED):
            self.hooks.hear("before_backward", self.retained, not self.retained.over)
        self.cadence.look(step)
        if self.cadence.wanted or self.record.bad_losses == 1:
            self._next()

    def _next(self) -> None:
        self.cadence.look(self.step)
        if self.cadence.wanted and self.record.log.averages is not None:
            self.record.log.averages.after_step()  # the next step is measured, too
        self._arm()

    def _file_loss(self) -> None:
        passes = self.losses.of_step(self._closure)
        if not passes:
            return
        if not self.step:
            self.record.accumulated = len(passes) if len(self.lines.step) == 1 else 0
        self.losses.file(passes)

    def _file(self, watching: StepWatch) -> None:
        record = self.record
        watching.after(record.instruments.riders(self.optimizers.main, record.watched))
        scale = self.scaling.factor if self.scaling.scaler is not None else None
        record.instruments.note_step(self.step, record.watched, watching.brought, scale, self.scaling.in_gradients() != 1.0)
        self.optimizers.forget_others()
        self.record.note_step(self.step, watching.total_norm, self.optimizers.rate(), self.gradients.leftover)
        self._file_loop()
        self.tapping.file(self.step)
        self.record.thin()

    def _file_loop(self) -> None:
        log = self.record.log
        if self.gradients.leftover:
            log.forget_passes()
        if not self._closure:
            log.note_passes(len(self.losses.passes), len(self.lines.step))
        log.dropped += self.lines.dropped()
        if self.journal.scaler is not None and self.journal.scaler.enabled:
            self.journal.scaler.factor = self.record.scale
        log.bare += self.scaling.in_gradients() != 1.0 and not self.journal.by_scaler
        log.alone += not self.journal.by_scaler
        off = self.tapping.modes.take(frozenset(map(id, self.optimizers.parameters())))
        log.evaluations.note(self.step, off, bool(off))
        log.note_batch(*self.tapping.batch())

    def _clear(self) -> None:
        """Forgets what is known of one step only."""
        self.losses.clear()
        self.lines.settle()
        self.scaling.clear()
        self._closure = False

    def scaled(self, scaler: Any, loss: torch.Tensor, result: torch.Tensor | None) -> None:
        if scaler.is_enabled():
            self.scaling.scaled(scaler, loss)

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None:
        if scaler.is_enabled() and self.optimizers.is_main(optimizer):
            self.scaling.unscaled = True

    def scaler_stepped(self, scaler: Any, optimizer: Optimizer) -> None:
        """A step that the scaler skipped, because a gradient was not finite, does not count."""
        if optimizer is self.optimizers.main and self.losses.passes:
            self._clear()
            self._arm()
            self.skipped += 1
            if self.skipped in JUDGED:
                self.record.instruments.gauges.note("loss-scale", "GradScaler", "", self.step, float(scaler.get_scale()))
                if self.together is None:
                    self.after()
