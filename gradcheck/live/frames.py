"""From a watched run to the numbers that a display shows."""

import math
from collections.abc import Sequence
from statistics import median

from gradcheck.analysis.curves import told
from gradcheck.live.record import Record
from gradcheck.live.step_timer import StepTimer
from gradcheck.measure.layers import LayerAccumulator
from gradcheck.measure.parameters import Watched
from gradcheck.types.finding import Finding
from gradcheck.types.gauges import Frame, LiveLayer, live_findings

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
