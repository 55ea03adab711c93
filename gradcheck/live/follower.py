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
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradcheck.live.hooks import LoopHooks
from gradcheck.live.lines import Lines, caller
from gradcheck.live.models import is_compiled, unwrapped
from gradcheck.live.pace import Pace
from gradcheck.live.ranks import join
from gradcheck.live.record import Record, rescaled
from gradcheck.live.taps import LiveTaps, LiveTracer
from gradcheck.live.together import Together
from gradcheck.measure import facts, first_step, links
from gradcheck.measure.fork import Trainee
from gradcheck.measure.local import local
from gradcheck.measure.parameters import StepWatch, watch
from gradcheck.measure.structure import Fate, Graph
from gradcheck.measure.taps import Call
from gradcheck.nouns.measurement import NotMeasured
from gradcheck.target.sites import location_of_frame
from gradcheck.target.workload import Workload

EARLY = 4  # the first steps, all measured
ROWS_AT = (0, 3)  # steps at which equal rows of the weights are looked for
KEPT_LOSSES = 512  # values on a device that wait to be read at most
FOLLOWED = 4  # parameters whose gradients tell whether they were cleared
Marks = list[tuple[int, int]]
_COMPILED = "compiled by torch.compile: what happens inside it is not seen"


class Follower:
    """Listens to the loop's hooks and fills a Record. `after` is called when a measured step is over."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, every: int, record: Record, after: Callable[[], None]) -> None:
        self.model, self.optimizer, self.every, self.record, self.after = unwrapped(model), optimizer, every, record, after
        self.hooks = LoopHooks(self)
        self.pace = Pace()
        self.together: Together | None = None  # with the other processes of a distributed training
        self.names: dict[int, str] = {}
        self.taps: LiveTaps | None = None  # of the step that is being measured
        self.calls: list[Call] | None = None  # what they saw of the pass that counts
        self.fates: dict[int, Fate] | None = None
        self._graph: Graph | None = None
        self.watching: StepWatch | None = None
        self.functional = True  # whether functional calls need taps after the first step
        self.steppers: dict[int, Optimizer] = {}
        self.passes: list[torch.Tensor] = []  # losses since the last step
        self.waiting: list[torch.Tensor] = []  # losses of steps, on a device, not read yet
        self.explicit: Any = None  # the loss of the step, given by the user
        self._lines = Lines()
        self._step_places: set[Any] = set()  # lines whose passes make up this step
        self._left: list[torch.Tensor] = []  # parameters with gradients, after the pass that was measured
        self._dirty = False  # gradients of the step before were still there
        self._place: Any = None
        self._value: torch.Tensor | None = None
        self._scaled: tuple[Any, torch.Tensor] | None = None
        self._unscaled = self._closure = self._changed_hands = False
        self._factor = 1.0
        self._versions: list[int] = []
        self._gathered: tuple[list[torch.Tensor], Marks] = [], []  # losses before a step with a closure, and the gradients they left
        self._carried = 0  # of them that belong to the step: the closure adds to their gradients

    # ----------------------------------------------------------------- context

    def start(self) -> None:
        record = self.record
        record.model, record.training = self.model, self.model.training
        record.pretrained = facts.pretrained(self.model, self.optimizer or _no_optimizer())
        record.untapped = _COMPILED if is_compiled(self.model) else ""
        self._join()
        self.hooks.install()
        self._arm()

    def _join(self) -> None:
        ranks = join()
        if ranks is None:
            return
        self.together = Together(ranks, self.record)
        try:
            self.together.prepare()
            if self.together.sharded:
                self._know_parameters()  # later they are whole at times: other tensors, of the same names
        except Exception as error:  # models are spread in more ways than were thought of
            ranks.give_up(f"{type(error).__name__}: {error}")

    def enter(self, module: nn.Module, args: Any) -> None:
        """A call of a module that began before the hooks were there."""
        if self.taps is not None:
            self.taps._before(module, args)

    def stop(self) -> None:
        if self.taps is not None:
            self.taps.stop()
            self.taps.release()
            self.taps = None
        self.hooks.remove()
        self._read_losses()
        if self.together is not None:
            self.together.leave()
        self.passes.clear()
        self.watching = None

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
        self.calls = self.watching = self.fates = None
        self._left = []
        if self.taps is not None:
            self.taps.stop()
            self.taps = None
        if self.measures and not self.record.untapped:
            self.names = {id(m): name for name, m in self.model.named_modules()}  # a model may change while it trains
            self.taps = LiveTracer(self.names) if not self.record.measured else LiveTaps(self.names, functions=self.functional)
            self.taps.start()

    def failed(self) -> None:
        """The other ranks are not to wait for this one."""
        if self.together is not None:
            self.together.ranks.give_up("watching failed")

    # ---------------------------------------------------------------- backward

    def before_backward(self, losses: Sequence[torch.Tensor]) -> None:
        values = [self._scaled[1]] if self._scaled is not None and len(losses) == 1 else losses
        whole = [v.detach().sum() if v.dim() else v.detach() for v in values]
        self._value = whole[0] if len(whole) == 1 else torch.stack([w.float() for w in whole]).sum() if whole else None
        self._place = caller()
        if self._closure and not self.passes and self._gathered[1] and self._marks() == self._gathered[1]:
            self.passes = self._gathered[0]
            self._carried = len(self.passes)
        if self.measures:
            if self.calls is not None and not self._closure and self._is_cleared():
                self._discard()
            if not self.passes:
                self._dirty = self._has_gradients()
        if self.taps is not None and self.taps.recording:
            self.taps.recording = False  # a checkpoint that computes again is no forward pass
            if self.calls is None and isinstance(self.taps, LiveTracer) and losses and losses[0].grad_fn is not None:
                self._read_graph(self.taps, losses[0])

    def after_backward(self) -> None:
        self.record.backwards += self.measures
        came_back = self._gather(self.taps) if self.taps is not None and self.taps.on else None
        ours = (self._closure or self._lines.belongs(self._place, len(self.steppers) > 1)) if came_back is None else came_back
        if ours and self._value is not None:
            self.passes.append(self._value)
            self._step_places.add(self._place)
        self._value = None
        self._versions = self._gradient_versions() if self.measures else []
        if self._closure and self.measures and self.watching is None:
            self._watch_step()

    def _gather(self, taps: LiveTaps) -> bool:
        """Keeps the calls that gradient came back to. Whether it did: else it was a pass of something else."""
        taps.settle()
        calls = taps.take_reached()
        if not calls or (self._place in self._lines.void and not self._closure):
            taps.recording = True
            return False
        if self.calls is None:
            self._keep(taps, calls)
        if self._place in self._lines.sure:
            taps.stop()
        else:  # it may be a pass whose gradients are thrown away: seen when the next one comes, or the step
            taps.recording = True
        return True

    def _keep(self, taps: LiveTaps, calls: list[Call]) -> None:
        self.record.backward_site = self.record.backward_site or location_of_frame(sys._getframe(3))
        if self._scaled is not None:
            self._factor = float(self._scaled[0].get_scale())
            for call in calls:
                call.gradients = [rescaled(g, self._factor) for g in call.gradients]
            for seen in taps.losses if isinstance(taps, LiveTracer) else ():
                seen.weights = [w / self._factor for w in seen.weights]
        self.calls = calls
        self._left = [p for p in self._own() if p.grad is not None and _is_some(p.grad)][:FOLLOWED]
        if isinstance(taps, LiveTracer):
            others, taps.calls = taps.calls, calls
            self._read_first(taps)
            taps.calls = others

    def _is_cleared(self) -> bool:
        """Whether the gradients of the measured pass are gone: it was another one's, an adversary's say."""
        return bool(self._left) and not any(p.grad is not None and _is_some(p.grad) for p in self._left)

    def _discard(self) -> None:
        self._lines.void |= self._step_places - self._lines.sure
        self.passes.clear()
        self._step_places.clear()
        self.calls = self.fates = None
        if isinstance(self.taps, LiveTracer):
            self.taps.forget()

    def _has_gradients(self) -> bool:
        return bool(self.step) and any(p.grad is not None and _is_some(p.grad) for p in self._own()[:FOLLOWED])

    def _own(self) -> list[torch.Tensor]:
        return [p for g in self.optimizer.param_groups for p in g["params"]] if self.optimizer is not None else []

    def _read_graph(self, taps: LiveTracer, loss: torch.Tensor) -> None:
        record = self.record
        graph = Graph(loss.grad_fn)
        if not any(c.output_node in graph for c in taps.calls if c.output_node is not None):
            return
        self._know_parameters()
        self.fates = graph.fates(taps.calls)
        self._graph = graph
        try:
            record.linked = links.read(graph, taps.calls, taps.seen, self._sites())
        except Exception as error:  # graphs come in more shapes than were thought of
            record.not_measured.append(NotMeasured("links", f"{type(error).__name__}: {error}"))

    def _read_first(self, taps: LiveTracer) -> None:
        record = self.record
        record.training = self.model.training  # the loop may have set it since it is watched
        optimizer = self.optimizer or next(iter(self.steppers.values()), None) or _no_optimizer()
        sites = dict(record.sites)
        trainee = Trainee(self.model, optimizer, _no_step, sites)
        workload = Workload(record.name, self.model, [taps.batch()], _no_step, optimizer)
        value = float(self._value) if self._value is not None else math.nan
        try:
            record.first = first_step.read(taps, self._graph, trainee, record.watched, workload, self._sites(), value)
        except Exception as error:  # the loop is the user's: it may hold anything
            record.not_measured.append(NotMeasured("losses", f"{type(error).__name__}: {error}"))
        if self.together is not None and self.together.sharded:
            record.first.hidden = ()  # whole parameters, as they are during a pass, are not those that the model lists
        self._graph = None
        self.functional = any(c.module is None for c in taps.calls)

    def _sites(self) -> dict[str, Any]:
        return {name: self.record.sites.get(id(m)) for name, m in self.model.named_modules()}

    def _know_parameters(self) -> None:
        """Also those that the model has got since."""
        known = {id(w.tensor) for w in self.record.watched}
        sharded = self.together is not None and self.together.sharded
        if not known or (not sharded and any(id(p) not in known for p in self.model.parameters())):
            optimizer = self.optimizer or next(iter(self.steppers.values()), None) or _no_optimizer()
            self.record.watched += [w for w in watch(self.model, optimizer) if id(w.tensor) not in known]

    def _marks(self) -> Marks:
        """Of some gradients: which tensors they are, and how often they were written. Reads no value: a device need not be waited for."""
        return [(id(p.grad), p.grad._version) for p in self._own()[:FOLLOWED] if p.grad is not None]

    def _gradient_versions(self) -> list[int]:
        return [w.tensor.grad._version for w in self.record.watched if w.tensor.grad is not None]

    # ------------------------------------------------------------------- steps

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        self.steppers[id(optimizer)] = optimizer
        if self.optimizer is None and self._trains(optimizer):
            self.optimizer = optimizer
        if optimizer is not self.optimizer:
            return
        self.record.optimizer = optimizer
        self._closure = closure
        if closure:
            self._gathered, self.passes = (self.passes, self._marks()), []
        elif self.measures and self.watching is None:
            self.record.clipped = bool(self._versions) and not self._changed_hands and self._versions != self._gradient_versions()
            self._watch_step()
        if self.record.step_site is None:
            self.record.step_site = location_of_frame(sys._getframe(2))

    def _trains(self, optimizer: Optimizer) -> bool:
        own = {id(p) for p in self.model.parameters()}
        return any(id(p) in own for g in optimizer.param_groups for p in g["params"])

    def before_clipping(self, parameters: Sequence[torch.Tensor]) -> None:
        if not self.measures or self.watching is not None or not self.passes or self.optimizer is None:
            return
        own = {id(w.tensor) for w in self.record.watched}
        if any(id(p) in own for p in parameters):
            self._watch_step()

    def _watch_step(self) -> None:
        record = self.record
        self._know_parameters()
        scale = self._factor if self._scaled is not None and not self._unscaled else 1.0
        if self._scaled is not None and self._factor == 1.0:
            self._factor = float(self._scaled[0].get_scale())
            scale = 1.0 if self._unscaled else self._factor
        self.watching = StepWatch(record.watched, self.step, look_at_rows=self.step in ROWS_AT)
        record.scale = self._factor
        self.watching.unscale(scale)
        if self.optimizer is not None and record.optimizer is None:
            record.optimizer = self.optimizer
        record.graded.update(id(p) for p in self._own() if p.grad is not None)

    def after_step(self, optimizer: Optimizer) -> None:
        if optimizer is not self.optimizer:
            if self.optimizer is None or not self._trains(optimizer):
                self.record.several = self.optimizer is not None
            return
        measured = self.watching if self.measures else None
        self._lines.sure |= self._step_places if self.measures else set()
        self._file_loss()
        if measured is not None and (self._scaled is None or math.isfinite(measured.total_norm)):
            self._file(measured)
        else:
            measured = None
        self._clear()
        scheduled = self._scheduled
        self.record.steps += 1
        self.pace.step(measured is not None)
        if measured is not None:
            self._read_losses()
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
        passes = self.passes[: self._carried + 1] if self._closure else self.passes
        given, self.explicit = self.explicit, None
        if given is not None:
            passes = [given]
        if not passes:
            return
        if not self.step:
            self.record.accumulated = len(passes) if len(self._step_places) == 1 else 0
        value = passes[0] if len(passes) == 1 else torch.stack([p.float() for p in passes]).sum()
        if value.device.type != "cpu":
            self.waiting.append(value.clone())
            if len(self.waiting) >= KEPT_LOSSES:
                self._read_losses()
        else:
            self._note_loss(value.item())

    def _read_losses(self) -> None:
        if self.waiting:
            for value in torch.stack([w.float() for w in self.waiting]).tolist():
                self._note_loss(value)
            self.waiting.clear()

    def _note_loss(self, value: float) -> None:
        (self.together or self.record).note_loss(value)

    def _file(self, watching: StepWatch) -> None:
        record, step = self.record, self.step
        watching.after()
        self._forget_others()
        if step:
            record.looked += 1
            record.leftover += self._dirty
        record.measured.append(step)
        record.norms.append(watching.total_norm)
        rates = [float(g.get("lr") or 0.0) for g in self.optimizer.param_groups] if self.optimizer is not None else []
        record.rates.append(max(rates, default=0.0))
        if self.calls is not None and self.taps is not None:
            record.layers.add(step, step, self.calls, self.fates)
            record.failures |= self.taps.failures
            self.taps.release_calls(self.calls)
        record.thin()

    def _forget_others(self) -> None:
        """What another optimizer moves does not move in this one's step."""
        own = set(map(id, self._own()))
        for w in self.record.watched:
            if w.steps and id(w.tensor) not in own:
                w.steps[-1] = replace(w.steps[-1], update_ratio=None)

    def _clear(self) -> None:
        self.passes, self._gathered, self._carried = [], ([], []), 0
        self._step_places.clear()
        self._scaled = None
        self._factor = 1.0
        self._unscaled = self._closure = self._changed_hands = False

    # ------------------------------------------------------------------ scaler

    def scaled(self, scaler: Any, loss: torch.Tensor) -> None:
        self._scaled = scaler, loss.detach()

    def unscaled(self, optimizer: Optimizer) -> None:
        if self.optimizer is None and self._trains(optimizer):
            self.optimizer = optimizer
        if optimizer is self.optimizer:
            self._unscaled = self._changed_hands = True

    def scaler_stepped(self, optimizer: Optimizer) -> None:
        """A step that the scaler skipped, because a gradient was not finite, is none."""
        if optimizer is self.optimizer and self.passes:
            self._clear()
            self._arm()


def _is_some(gradient: torch.Tensor) -> bool:
    gradient = local(gradient)
    return bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())


def _no_step(model: nn.Module, batch: Any) -> torch.Tensor:
    raise RuntimeError("a live run takes its own steps")


def _no_optimizer() -> Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0)
