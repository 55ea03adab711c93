"""Spikes of a watched run, traced to their batch and tensor at the step at which they happen.

On the CPU the loss is read before each backward pass, and the norm that a clipping function returns. A device is not waited for: there
spikes are detected at measured steps, by the norm of the gradients.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from gradcheck.analysis.curves import SpikeScore
from gradcheck.instrument.loader_batches import LoaderBatches
from gradcheck.live.loss_shares import worst_samples
from gradcheck.live.record import Record
from gradcheck.live.spike_files import SpikeFiles
from gradcheck.types.gauges import Spike
from gradcheck.workload.dtensor import is_spread
from gradcheck.workload.tensors import tensors_in

MOST = 100  # most spikes of a run that are recorded
MOST_SAMPLES = 256  # indices of one of them


class Spikes:
    """Asked by the monitor: `look` before a backward pass, `before_step` when its gradients are there."""

    def __init__(self, record: Record, files: SpikeFiles | None = None) -> None:
        self.record, self.files = record, files
        self.batches = LoaderBatches()
        self._losses, self._norms, self._clipped = SpikeScore(), SpikeScore(), SpikeScore()
        self.pending: Spike | None = None
        self.jumped = False  # the loss or the norm, in the step that is being taken

    def start(self) -> None:
        self.batches.install()
        if self.files is not None:
            self.batches.fetched = self.files.remember_random

    def stop(self) -> None:
        self.batches.remove()
        self.pending = None

    def look(self, loss: torch.Tensor | None, graph: torch.Tensor) -> None:
        """`loss`: without a scaler's factor; `graph`: what the backward pass is called on."""
        self.judge(loss.item() if loss is not None and loss.is_cpu and not loss.dim() else None, graph)

    def judge(self, value: float | None, graph: torch.Tensor) -> None:
        """`value`: of the loss, where it may be read."""
        self.batches.begin_backward()
        if value is not None and not self.record.several and self._losses.stands_out(value):
            self.jumped = True
            self.pending = self._of("loss", value, self._losses.level, graph)

    def note_clipped(self, norm: Any) -> None:
        """What a clipping function gave back."""
        if isinstance(norm, torch.Tensor) and norm.is_cpu and not norm.dim() and self._clipped.stands_out(norm.item()):
            self.jumped = True

    def before_step(self, norm: float | None) -> None:
        """`norm`: of all gradients, in a measured step."""
        if norm is not None and self._norms.stands_out(norm) and self.pending is None and not self.record.several:
            self.pending = self._of("gradient", norm, self._norms.level, None)
        pending, self.pending = self.pending, None
        if pending is None or len(self.record.spikes) >= MOST:
            return
        spike = self._put_down(replace(pending, step=self.record.steps))
        if self.files is not None:
            spike = replace(spike, file=self.files.keep(self.record.model, spike, self.batches.current))
        self.record.spikes.append(spike)

    def _of(self, what: Any, value: float, level: float, graph: torch.Tensor | None) -> Spike:
        fetched = self.batches.current
        if fetched is None:
            return Spike(self.record.steps, what, value, level)
        tensors = list(tensors_in(fetched.batch))
        size = len(fetched.samples) or next((len(t) for t in tensors if t.dim()), None)
        bad = any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors)
        worst = worst_samples(graph, size) if graph is not None and size else ()
        return Spike(self.record.steps, what, value, level, size, fetched.samples[:MOST_SAMPLES], worst, bad)

    @torch.no_grad()
    def _put_down(self, spike: Spike) -> Spike:
        """Blames the parameter with the largest gradient, or the first one whose gradient is not finite. Parameters that are spread over
        processes are left alone: their norms need all processes, and only this one has the spike.
        """
        named = [(n, p.grad) for n, p in self.record.model.named_parameters() if p.grad is not None and not p.grad.is_sparse]
        if not named or any(map(is_spread, self.record.model.parameters())):
            return spike
        norms = [float(g.norm()) for _, g in named]
        broken = [i for i, n in enumerate(norms) if not math.isfinite(n)]
        if len(broken) == len(norms):
            return spike  # what came first cannot be told from it
        total = math.fsum(n * n for n in norms)
        place = broken[0] if broken else max(range(len(norms)), key=norms.__getitem__)
        share = None if broken or not total > 0 else norms[place] ** 2 / total
        name = named[place][0]
        layer = name.rpartition(".")[0]
        return replace(spike, tensor=name, share=share, layer=layer, site=self.record.sites.get(id(self.record.model.get_submodule(layer))))
