"""The first pass of a run, which is looked at more closely: its graph before the backward pass, everything else after it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradcheck.analysis.gaps import described
from gradcheck.instrument import data_flow
from gradcheck.instrument.graph_structure import Downstream, Graph, release_graphs
from gradcheck.live.optimizers import Optimizers
from gradcheck.live.record import Record
from gradcheck.live.taps import LiveTracer
from gradcheck.measure import first_step
from gradcheck.types.measurement import NotMeasured
from gradcheck.workload.training_copy import TrainingCopy
from gradcheck.workload.workload import Workload


class FirstPass:
    """Reads what the tracer saw into the record. What cannot be read is noted as not measured."""

    def __init__(self, model: nn.Module, record: Record, optimizers: Optimizers, sharded: Callable[[], bool]) -> None:
        self.model, self.record, self.optimizers, self.sharded = model, record, optimizers, sharded
        self._graph: Graph | None = None

    def before_backward(self, taps: LiveTracer, loss: torch.Tensor) -> dict[int, Downstream] | None:
        """What becomes of each call's output on its way to the loss; None when the loss does not come from the model."""
        record = self.record
        graph = Graph(loss.grad_fn)
        if not any(c.output_node in graph for c in taps.calls if c.output_node is not None):
            release_graphs()
            return None
        self.optimizers.know_parameters()
        fates = graph.fates(taps.calls)
        self._graph = graph
        try:
            record.linked = data_flow.read(graph, taps.calls, taps.seen, self._sites())
        except Exception as error:  # there are more shapes of graphs than anyone thought of
            why = "how the layers are connected could not be read in full"
            record.not_measured.append(NotMeasured("graph", why, "short", detail=described(error)))
        return fates

    def after_backward(self, taps: LiveTracer, loss: torch.Tensor | None) -> None:
        """`taps.calls` are those of the pass."""
        record = self.record
        record.training = self.model.training  # the loop may have set it since the watching began
        optimizer = self.optimizers.known
        copy = TrainingCopy(self.model, optimizer, _no_step, dict(record.sites))
        workload = Workload(record.name, self.model, [taps.batch()], _no_step, optimizer)
        value = float(loss) if loss is not None else math.nan
        try:
            elsewhere = self.optimizers.elsewhere
            record.first = first_step.read(taps, self._graph, copy, record.watched, workload, self._sites(), value, elsewhere)
        except Exception as error:  # the loop is the user's: it may contain anything
            why = "what the first step showed could not be read"
            record.not_measured += [NotMeasured(what, why, detail=described(error)) for what in ("graph", "reach", "losses")]
        if self.sharded():
            record.first.hidden = ()  # whole parameters, as they are during a pass, are not those that the model lists
        self._graph = None
        release_graphs()

    def _sites(self) -> dict[str, Any]:
        return {name: self.record.sites.get(id(m)) for name, m in self.model.named_modules()}


def _no_step(model: nn.Module, batch: Any) -> torch.Tensor:
    raise RuntimeError("a live run takes its own steps")
