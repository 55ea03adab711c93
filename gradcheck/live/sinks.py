"""The numbers of a watched run that displays show, and experiment trackers beside the loop: which they get, under which names.

    gradcheck/loss                      gradcheck/gradient/<layer>      root mean square of dL/d(output)
    gradcheck/gradient_norm             gradcheck/activation/<layer>    root mean square of the output
    gradcheck/learning_rate             gradcheck/update/<layer>        ||change|| / ||weight|| of a step
    gradcheck/typical_update            gradcheck/dead/<layer>          share of units
    gradcheck/score/<category>          gradcheck/findings/<severity>

Gradients are those before clipping, without the factor of a loss scaler. Only finite numbers go out.
"""

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from gradcheck.analysis.curves import told
from gradcheck.judge.scores import scores
from gradcheck.live.cadence import StepTimer
from gradcheck.live.record import Record
from gradcheck.measure.layers import LayerAccumulator
from gradcheck.measure.parameters import Watched
from gradcheck.types.finding import SEVERITIES, Finding
from gradcheck.types.gauges import Frame, LiveLayer, Magnitudes, live_findings
from gradcheck.types.report import Report

SHOWN_LAYERS = 4
SHOWN_LOSSES = 48
SHOWN_SPIKES = 3


def frame(record: Record, pace: StepTimer, findings: Sequence[Finding]) -> Frame:
    """`findings`: those of the last verdict; judging for each frame would cost too much."""
    losses = record.losses.values()
    stride = max(1, -(-len(losses) // SHOWN_LOSSES))
    return Frame(
        step=record.steps,
        loss=record.losses.last,
        losses=losses[::stride],
        norm=record.norms[-1] if record.norms else None,
        norms=tuple(record.norms[-SHOWN_LOSSES:]),
        update=typical_update(record),
        rate=record.rates[-1] if record.rates else 0.0,
        speed=pace.rate,
        overhead=pace.overhead,
        layers=ranked(record)[:SHOWN_LAYERS],
        findings=live_findings(findings),
        spikes=tuple(map(told, record.spikes[-SHOWN_SPIKES:])),
    )


def typical_update(record: Record) -> float | None:
    """||change|| / ||weight|| of the last measured step, the median over the weight matrices."""
    updates = [r for w in record.watched if w.tensor.dim() > 1 and (r := _update(w)) is not None]
    return median(updates) if updates else None


def _update(w: Watched) -> float | None:
    return w.steps[-1].update_ratio if w.steps else None


def ranked(record: Record) -> tuple[LiveLayer, ...]:
    """Layers with weights whose gradient lies furthest from the others', and activations with dead units."""
    updates = {w.layer: _update(w) for w in reversed(record.watched) if w.tensor.dim() > 1}
    rows: list[tuple[float, LiveLayer]] = []
    known = {name: g for name, layer in record.layers.layers.items() if name in updates and (g := _gradient(layer)) is not None}
    logs = [math.log10(g) for g in known.values() if 0 < g < math.inf]
    middle = median(logs) if logs else 0.0
    for name, size in known.items():
        distance = abs(math.log10(size) - middle) if 0 < size < math.inf else math.inf
        rows.append((distance, LiveLayer(name, size, updates[name], None)))
    for name, layer in record.layers.layers.items():
        if layer.alive and (dead := 1.0 - float(layer.alive[-1].float().mean())) > 0.5:
            rows.append((10.0 * dead, LiveLayer(name, _gradient(layer), None, dead)))
    rows.sort(key=lambda row: -row[0])
    return tuple(layer for _, layer in rows)


def _gradient(layer: LayerAccumulator) -> float | None:
    stats = layer.snapshots[-1].gradient if layer.snapshots else None
    if stats is None or not stats.count:
        return None
    return stats.rms if stats.finite else math.inf


PREFIX = "gradcheck"
MOST_LAYERS = 20
ROOT = "(model)"  # name of the root module, which has none


class Sink(ABC):
    """A tracker. `layers`: how many layers it gets; None: all. A failure in it ends its part, not the loop."""

    layers: int | None = MOST_LAYERS

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float], magnitudes: Mapping[str, Magnitudes]) -> None:
        """Takes the numbers of a measured step, by their full names. Steps only grow."""

    @abstractmethod
    def finish(self, report: Report) -> None:
        """Takes the report of the run. Called once, when the board is closed."""


class SinkDispatcher:
    """Hands the numbers of a watched run to its sinks. `taken`: steps that a resumed training took before it was watched."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)
        self.taken = 0
        self._chosen: dict[int, dict[str, None]] = {}  # id(sink) -> its layers: one that was chosen stays, so that no curve has holes

    def measured(self, record: Record, report: Report | None) -> None:
        """`report`: when this step was judged."""
        if not self.sinks:
            return
        step = self.taken + record.measured[-1]
        whole, layers, sizes = _of_the_run(record, report), list(_of_layers(record)), dict(_magnitudes(record))
        for sink in list(self.sinks):
            chosen = self._layers(sink, record, report)
            scalars = whole | {f"{PREFIX}/{what}/{tag(name)}": value for what, name, value in layers if name in chosen}
            finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
            shown = {f"{PREFIX}/gradient_log2/{tag(name)}": found for name, found in sizes.items() if name in chosen}
            try:
                sink.log(step, finite, shown)
            except Exception as error:
                self._drop(sink, error)

    def finish(self, report: Report) -> None:
        for sink in list(self.sinks):
            try:
                sink.finish(report)
            except Exception as error:
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        self.sinks.remove(sink)
        text = f"gradcheck: {type(sink).__name__} failed and gets no more numbers: {type(error).__name__}: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _layers(self, sink: Sink, record: Record, report: Report | None) -> Iterable[str]:
        """The layers that stood out when there was room, and as many more that findings name."""
        if sink.layers is None:
            return {*record.layers.layers, *(w.layer for w in record.watched)}
        chosen = self._chosen.setdefault(id(sink), {})
        if len(chosen) < sink.layers:
            names = [*(layer.name for layer in ranked(record)), *(w.layer for w in record.watched)]
            _join(chosen, names, sink.layers)
        if report is not None:
            _join(chosen, (name for finding in report.headlines for name in finding.layers), 2 * sink.layers)
        return chosen


def tag(layer: str) -> str:
    """The name of a layer as every tracker takes it."""
    return re.sub(r"[^\w. :()\-]", "_", layer) or ROOT


def _join(chosen: dict[str, None], names: Iterable[str], most: int) -> None:
    for name in names:
        if len(chosen) >= most:
            return
        chosen[name] = None


def _of_the_run(record: Record, report: Report | None) -> dict[str, float]:
    update = typical_update(record)
    found = {"loss": record.losses.last, "gradient_norm": record.norms[-1], "learning_rate": record.rates[-1]}
    if update is not None:
        found["typical_update"] = update
    if report is not None:
        found |= {f"score/{s.name}": float(s.value) for s in scores(report) if s.value is not None}
        found |= {f"findings/{severity}": float(report.count(severity)) for severity in SEVERITIES}
    return {f"{PREFIX}/{name}": value for name, value in found.items()}


def _of_layers(record: Record) -> Iterator[tuple[str, str, float]]:
    """What, layer, value, at the last measured step."""
    last = record.measured[-1]
    for name, layer in record.layers.layers.items():
        if not layer.snapshots or layer.snapshots[-1].step != last:
            continue
        seen = layer.snapshots[-1]
        for what, stats in (("gradient", seen.gradient), ("activation", seen.output)):
            if stats is not None and stats.count:
                yield what, name, stats.rms if stats.finite else math.nan
        if layer.alive:
            yield "dead", name, 1.0 - float(layer.alive[-1].float().mean())
    for (quantity, place), value in record.instruments.gauges.largest(last).items():
        if quantity in ("second-moment-lag", "attention-logit", "log-z"):
            yield quantity.replace("-", "_"), place, value
    for w in record.watched:
        if w.tensor.dim() > 1 and w.steps and w.steps[-1].step == last and w.steps[-1].update_ratio is not None:
            yield "update", w.layer, w.steps[-1].update_ratio


def _magnitudes(record: Record) -> Iterator[tuple[str, Magnitudes]]:
    """Of the gradient at each layer's output, at the last measured step."""
    last = record.measured[-1]
    for name, layer in record.layers.layers.items():
        stats = layer.snapshots[-1].gradient if layer.snapshots and layer.snapshots[-1].step == last else None
        if stats is not None and any(stats.exponent_counts):
            yield name, Magnitudes(stats.exponent_low, stats.exponent_counts)
