"""Sparklines of a quantity over depth."""

import math
from collections.abc import Sequence
from typing import TypeVar

from gradcheck.analysis.wording import number
from gradcheck.types.layers import Layer, LayerKind
from gradcheck.types.measurement import Measurement

T = TypeVar("T")

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24
FEWEST_LAYERS = 4
WEIGHTED: tuple[LayerKind, ...] = ("linear", "conv", "recurrent")


def gradient_over_depth(m: Measurement) -> str:
    """`depth ▁▁▂▃▅▇█   first 7.4e-07 -> last 0.031   (x41900)`: rms of dL/d(output), first layer to last; "" when there are few.

    Scale: logarithmic, from the smallest to the largest, at least one decade high.
    """
    sizes = [g for layer in sorted(m.of_kind(*WEIGHTED), key=lambda x: x.order) if (g := _gradient(layer)) is not None]
    positive = [g for g in sizes if g > 0 and math.isfinite(g)]
    if len(sizes) < FEWEST_LAYERS or not positive:
        return ""
    first, last = sizes[0], sizes[-1]
    finite = first > 0 and last > 0 and math.isfinite(first) and math.isfinite(last)
    ratio = f"   (x{number(last / first)})" if finite else ""
    return f"{spark(sizes)}   first {number(first)} -> last {number(last)}{ratio}"


def _gradient(layer: Layer) -> float | None:
    """Root mean square of the gradient at the first measured step that has one."""
    gradients = (s.gradient for s in layer.snapshots)
    first = next((g for g in gradients if g is not None and g.count), None)
    if first is None or not layer.trained:
        return None
    return first.rms if first.finite else math.inf


def spark(values: Sequence[float], beside: Sequence[float] = ()) -> str:
    """Blocks on a logarithmic scale: zero is the lowest, "!" is not finite. `beside`: values that are shown on the same scale."""
    logs = [_log(v) for v in evenly(values, WIDTH)]
    finite = [x for x in (*logs, *map(_log, beside)) if math.isfinite(x)]
    low = min(finite, default=0.0)
    height = max(max(finite, default=0.0) - low, 1.0)
    return "".join(_block((x - low) / height) for x in logs)


def _log(value: float) -> float:
    return math.log10(value) if value > 0 and math.isfinite(value) else value if value else -math.inf


def _block(share: float) -> str:
    if share == -math.inf:
        return BLOCKS[0]
    return BLOCKS[round(share * (len(BLOCKS) - 1))] if math.isfinite(share) else "!"


def evenly(values: Sequence[T], most: int) -> Sequence[T]:
    """At most so many evenly spaced values, including the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
