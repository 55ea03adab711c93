"""The taps of a measured step: put in when the step before it ends, read after the backward pass, taken out. A loop may run other passes of
the model before the one that counts: an adversary's, one whose gradients are thrown away, an evaluation.
Compiled layers are seen from outside (`Edges`), and the first pass of a run is looked at more closely.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gradcheck.analysis.gaps import described
from gradcheck.analysis.wording import layers_in_words
from gradcheck.instrument import data_flow
from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.graph_structure import Downstream, Graph, release_graphs
from gradcheck.instrument.loop_journal import Modes
from gradcheck.live.looks import Looks
from gradcheck.live.models import compiled_modules
from gradcheck.live.optimizers import Optimizers, Scaling
from gradcheck.live.record import CAPTURED, Record
from gradcheck.live.taps import LiveTaps, LiveTracer
from gradcheck.measure import first_step
from gradcheck.measure.checks.routing import ExpertGroup, groups_of
from gradcheck.types.location import Location
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


INSIDE = "_orig_mod"  # of a module that `torch.compile` returned: what was compiled


class EdgeTaps(LiveTaps):
    """Told of calls by Edges; no hook of a module is put in."""

    def start(self) -> None:
        self.recording = self.on = True

    def stop(self) -> None:
        self.recording = self.on = False

    def _module_call(self, module: nn.Module, name: str, role: Any, inputs: list[torch.Tensor], tensor: torch.Tensor) -> None:
        self._record(Call(name, f"compiled {role.type}", role.kind, module, None, None, tuple(tensor.shape)), tensor)

    def _note_batch(self, args: Any, kwargs: Any) -> None:
        if not self.module_name:  # what a part of the model is given tells nothing of the data
            super()._note_batch(args, kwargs)


class Edges:
    """Of the compiled layers of a model. `taps`: those of a measured step, None in between."""

    def __init__(self) -> None:
        self.taps: EdgeTaps | None = None
        self.names: dict[int, str] = {}  # id(module) -> name
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []

    def install(self, model: nn.Module) -> None:
        for name, module, holder, key in list(compiled_calls(model)):
            self.names[id(module)] = name
            self._replaced.append((holder, key, holder[key]))
            holder[key] = self._around(module, holder[key])

    def remove(self) -> None:
        for holder, key, original in self._replaced:
            holder[key] = original
        self._replaced.clear()
        self.taps = None

    def _around(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            taps = self.taps
            if torch.compiler.is_compiling() or taps is None or not taps.recording:
                return original(*args, **kwargs)
            taps._before(module, args)
            try:
                output = original(*args, **kwargs)
            except BaseException:
                taps.stack.clear()
                raise
            taps._after(module, args, kwargs, output)
            return output

        return call


def compiled_calls(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Any], str]]:
    """Name, module, and where the compiled function is kept, of the outermost compiled layers. None where TORCH_COMPILE_DISABLE=1 lets them
    run as they are."""
    if getattr(sys.modules.get("torch._dynamo.config"), "disable", False):
        return
    around = [x for x in compiled_modules() if "forward" in vars(x)]
    inside: list[str] = []
    for path, module in model.named_modules():
        name = ".".join(part for part in path.split(".") if part != INSIDE)
        if any(name != n and (not n or name.startswith(f"{n}.")) for n in inside):
            continue
        holders = [(vars(x), "forward") for x in around if x._modules.get(INSIDE) is module]
        if module._compiled_call_impl is not None:
            holders.append((vars(module), "_compiled_call_impl"))
        inside += [name] if holders else []
        yield from ((name, module, holder, key) for holder, key in holders)


def untapped(compiled: Sequence[str]) -> str:
    """Why layers are not looked at: `compiled` are the names of those that torch.compile has compiled, "" for the model."""
    what = "the model" if "" in compiled else layers_in_words(compiled)
    return f"torch.compile has compiled {what}, and the layers of the model were not looked at: a hook would be compiled, too"


class Tapping:
    """`calls`: what was seen of the pass that counts, once there was one."""

    def __init__(self, model: nn.Module, record: Record, first: FirstPass) -> None:
        self.model, self.record, self.first = model, record, first
        self.calls: list[Call] | None = None
        self._fates: dict[int, Downstream] | None = None
        self.edges = Edges()  # of compiled layers
        self.modes = Modes()  # of the modules that ran since the last step
        self._taps: LiveTaps | None = None
        self._groups: list[ExpertGroup] = []  # what could be experts
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
