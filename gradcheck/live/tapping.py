"""The taps of a measured step: put in when the step before it ends, read after the backward pass, taken out. A loop may run other passes of
the model before the one that counts: an adversary's, one whose gradients are thrown away, an evaluation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.graph_structure import Downstream
from gradcheck.instrument.modes import Modes
from gradcheck.live.edges import Edges, EdgeTaps
from gradcheck.live.first import FirstPass
from gradcheck.live.looks import Looks
from gradcheck.live.record import CAPTURED, Record
from gradcheck.live.scaling import Scaling
from gradcheck.live.taps import LiveTaps, LiveTracer
from gradcheck.measure.checks.routing import Group, groups_of
from gradcheck.types.location import Location


class Tapping:
    """`calls`: what was seen of the pass that counts, once there was one."""

    def __init__(self, model: nn.Module, record: Record, first: FirstPass) -> None:
        self.model, self.record, self.first = model, record, first
        self.calls: list[Call] | None = None
        self._fates: dict[int, Downstream] | None = None
        self.edges = Edges()  # of compiled layers
        self.modes = Modes()  # of the modules that ran since the last step
        self._taps: LiveTaps | None = None
        self._groups: list[Group] = []  # what could be experts
        self._functional = True  # whether functional calls need taps after the first step

    def arm(self, wanted: bool) -> None:
        """A step is over; whether the next one is measured."""
        self.calls = self._fates = None
        if self._taps is not None:
            self._taps.stop()
            self.record.untapped = self.record.untapped or CAPTURED * self._taps.captured
            self._taps = None
        self.edges.taps = None
        if wanted and self.edges.names:
            self.edges.taps = taps = EdgeTaps(self.edges.names, Modes(), functions=False)
            self._taps = taps
            taps.start()
        elif wanted and not self.record.untapped:
            if not self.record.measured:
                self._groups = groups_of(self.model)
            names = {id(m): name for name, m in self.model.named_modules()}  # a model may change while it trains
            self.modes = Modes()
            first = not self.record.measured
            self._taps = LiveTracer(names, self.modes) if first else LiveTaps(names, self.modes, functions=self._functional)
            self._taps.heads = self.record.layers.heads
            self._taps.looks = Looks(self._groups)
            self._taps.start()

    def stop(self) -> None:
        self.edges.remove()
        if self._taps is not None:
            self._taps.stop()
            self._taps.release()
            self._taps = self._taps if self._taps._active else None  # inside a call that went through its mode: taken out later

    def enter(self, module: nn.Module, args: Any) -> None:
        """Enters a call of a module that began before the hooks were there."""
        if self._taps is not None:
            self._taps._before(module, args)

    def before_backward(self, losses: Sequence[torch.Tensor]) -> None:
        taps = self._taps
        if taps is None or not taps.recording:
            return
        taps.recording = False  # a checkpoint that recomputes is not a forward pass
        if self.calls is None and isinstance(taps, LiveTracer) and losses and losses[0].grad_fn is not None:
            fates = self.first.before_backward(taps, losses[0])
            self._fates = fates if fates is not None else self._fates

    def reached(self) -> list[Call] | None:
        """Calls that the gradient reached in the backward pass that has just run; None when no taps are in."""
        if self._taps is None or not self._taps.on:
            return None
        self._taps.settle()
        return self._taps.take_reached()

    def listen(self) -> None:
        """To the next forward pass as well."""
        if self._taps is not None:
            self._taps.recording = True

    def take_out(self) -> None:
        """The pass that counts has been seen."""
        if self._taps is not None:
            self._taps.stop()

    def keep(self, calls: list[Call], loss: torch.Tensor | None, scaling: Scaling) -> None:
        """These are the calls that count."""
        taps = self._taps
        scaling.take_out(calls, taps.losses if isinstance(taps, LiveTracer) else ())
        self.calls = calls
        if isinstance(taps, LiveTracer):
            others, taps.calls = taps.calls, calls
            self.first.after_backward(taps, loss)
            self._functional = any(c.module is None for c in calls) or taps.looks.needs_functions
            taps.calls = others

    def batch(self) -> tuple[list[int], int, Location | None]:
        """Digests of what the model was called with since the step before, samples, and where it is called."""
        taps = self._taps
        return (taps.digests, taps.samples, taps.called_site) if taps is not None else ([], 0, None)

    def discard(self) -> None:
        """Drops the calls: another pass will count."""
        self.calls = self._fates = None
        if self._taps is not None:
            self._taps.looks = Looks(self._groups)
        if isinstance(self._taps, LiveTracer):
            self._taps.forget()

    def file(self, step: int) -> None:
        """Records the calls, and releases what they hold."""
        if self.calls is not None and self._taps is not None:
            self.record.layers.add(step, step, self.calls, self._fates)
            crossed = any(seen.function == "cross_entropy" for seen in self.record.first.losses)
            self.record.instruments.note_looks(step, self._taps.looks, crossed)
            self.record.instruments.note_units(step, self.record.layers)
            self.record.failures |= self._taps.failures
            self._taps.release_calls(self.calls)
