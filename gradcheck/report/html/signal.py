"""The numbers behind the charts over depth: a column per layer, in order of the forward pass."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gradcheck.analysis.layer_groups import body
from gradcheck.judge.registry import builtin_rules
from gradcheck.types.finding import Finding
from gradcheck.types.layers import Layer, Snapshot
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report

Number = float | None  # None: not measured
FEWEST = 4  # body layers, for the gradient rules to see a trend


@dataclass(frozen=True)
class Course:
    """One quantity over depth: at the first measured step, at the last one, and its range over all of them."""

    first: tuple[Number, ...]
    last: tuple[Number, ...]
    lowest: tuple[Number, ...]
    highest: tuple[Number, ...]

    @property
    def sizes(self) -> list[float]:
        """All values that a logarithmic scale can show."""
        columns = (self.first, self.lowest, self.highest)
        return [v for column in columns for v in column if v is not None and v > 0 and math.isfinite(v)]


def shown_layers(m: Measurement) -> list[Layer]:
    """Layers of the charts and the table: all that were measured except containers, which only pass on what others made."""
    return sorted((x for x in m.layers if x.kind != "container"), key=lambda x: x.order)


def columns(layers: Sequence[Layer]) -> list[int]:
    """Positions of the layers that have a depth: no functions that are called all over the forward pass, and only measured layers."""
    return [i for i, x in enumerate(layers) if x.snapshots and not (x.calls > 1 and ":" in x.name)]


def gradient(snapshot: Snapshot) -> Number:
    """||dL/d(output)||, as the gradient rules take it."""
    stats = snapshot.gradient
    return None if stats is None or not stats.count else stats.norm if stats.finite else math.inf


def output(snapshot: Snapshot) -> Number:
    """Root mean square of the output."""
    stats = snapshot.output
    return None if stats is None or not stats.count else stats.rms if stats.finite else math.inf


def zeros(snapshot: Snapshot) -> Number:
    return None if snapshot.output is None else snapshot.output.zeros


def course(layers: Sequence[Layer], value: Callable[[Snapshot], Number], units: Mapping[int, float] | None = None) -> Course:
    """The course of a quantity. `units`: what it is divided by, by step; steps that are not in it are left out. None: nothing."""
    series = [
        [v / (units[s.step] if units else 1.0) for s in x.snapshots if (units is None or s.step in units) and (v := value(s)) is not None]
        for x in layers
    ]
    return Course(
        tuple(s[0] if s else None for s in series),
        tuple(s[-1] if s else None for s in series),
        tuple(min((v for v in s if 0 < v < math.inf), default=None) for s in series),
        tuple(max((v for v in s if v < math.inf), default=None) for s in series),
    )


def last_gradients(m: Measurement) -> Mapping[int, float] | None:
    """By step, the gradient norm of the last body layer that has one at the start: what the rules compare the others with.

    None when there are too few such layers for the rules to judge.
    """
    judged = body(m)
    ends = [{s.step: g for s in x.snapshots if (g := gradient(s)) is not None and 0 < g < math.inf} for x in judged]
    started = [e for e in ends if e and min(e) == m.measured_steps[0]]
    return started[-1] if len(started) >= FEWEST else None


def allowed_decades(report: Report) -> float:
    """Decades that the gradient may change over depth: the limit that a finding names, else the rule's own."""
    named = [e.limit for f in report.findings if f.code in ("GRAD001", "GRAD002") for e in f.evidence if e.unit == "decades"]
    own = next(rule.limits["total"].value for rule in builtin_rules() if rule.code == "GRAD001")
    return next((x for x in named if x is not None), own)


def updates(m: Measurement) -> Mapping[str, dict[int, float]]:
    """By layer and step: the largest update-to-weight ratio of its weights (not biases), as the optimizer moved them."""
    ratios: dict[str, dict[int, float]] = {}
    for p in m.parameters:
        if len(p.shape) < 2:
            continue
        mine = ratios.setdefault(p.layer, {})
        for step in p.steps:
            if step.update_ratio is not None:
                mine[step.step] = max(mine.get(step.step, 0.0), step.update_ratio)
    return ratios


def affected(finding: Finding, layers: Sequence[Layer]) -> list[int]:
    """Positions of the layers that a finding names: themselves, or the layers of its parameters or below its containers."""
    exact = set(finding.layers)
    if "" in exact:
        return []
    holders = {name.rpartition(".")[0] for name in exact} if not exact & {x.name for x in layers} else set()
    return [i for i, x in enumerate(layers) if x.name in exact or x.name in holders or not exact.isdisjoint(_containers(x.name))]


def _containers(name: str) -> list[str]:
    """What a layer is below: "a" and "a.b" for "a.b:1"."""
    return [name[:i] for i, sign in enumerate(name) if sign in ".:"]


def marks(report: Report, layers: Sequence[Layer]) -> dict[int, Finding]:
    """The most severe finding at each position, consequences included."""
    found: dict[int, Finding] = {}
    for finding in report.findings:  # most severe first
        for i in affected(finding, layers):
            found.setdefault(i, finding)
    return found
