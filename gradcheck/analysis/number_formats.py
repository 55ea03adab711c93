"""Which entries of a tensor narrower number formats could not hold, from their exponents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from gradcheck.types.layers import TensorStats
from gradcheck.types.measurement import Measurement

BLOCK = 32  # entries of MXFP8 that share a scale: OCP Microscaling Formats (MX) 1.0

What = Literal["activations", "gradients", "weights"]
KINDS: tuple[What, ...] = ("activations", "gradients", "weights")


@dataclass(frozen=True)
class Format:
    """`lowest`: exponent of the smallest subnormal number; `highest`: that of the largest one. OCP 8-bit floating point 1.0, IEEE 754."""

    name: str
    lowest: int
    highest: int
    scaled: Literal["", "tensor", "block"] = ""  # what a factor is chosen for that brings its largest entry to the highest exponent


FORMATS = (
    Format("bf16", -133, 127),
    Format("fp16", -24, 15),
    Format("E4M3", -9, 8, "tensor"),
    Format("E5M2", -16, 15, "tensor"),
    Format("MXFP8", -9, 8, "block"),
)
BY_NAME = {f.name: f for f in FORMATS}


@dataclass(frozen=True)
class Lost:
    """Shares of the entries of a tensor that are not 0 and would become 0, and of those that would be beyond the largest number."""

    under: float
    over: float

    @property
    def total(self) -> float:
        return self.under + self.over


@dataclass(frozen=True)
class Exponents:
    """Of the entries of a tensor that are not 0: floor(log2|x|)."""

    low: int  # the lowest in a sample,
    counts: Sequence[int]  # and how many have each from there on
    top: int  # the highest of all entries
    entries: int


def lost(exponents: Exponents, form: Format, shift: int = 0) -> Lost:
    """`shift`: exponent of a factor that all entries are multiplied by before."""
    low, counts = exponents.low, exponents.counts
    total = sum(counts)
    if not total:
        return Lost(0.0, 0.0)
    smallest = form.lowest - 1  # half of the smallest number rounds up to it
    if form.scaled == "block":
        return Lost(_under_in_blocks(counts, form.highest - smallest), 0.0)
    if form.scaled:
        shift = form.highest - exponents.top
    under = sum(c for i, c in enumerate(counts) if low + i + shift < smallest)
    over = sum(c for i, c in enumerate(counts) if low + i + shift > form.highest)
    some = 1 / exponents.entries if exponents.top + shift > form.highest else 0.0
    return Lost(under / total, max(over / total, some))


def _under_in_blocks(counts: Sequence[int], span: int) -> float:
    """The share of entries more than `span` powers of two below the largest of their block, of entries that come in any order."""
    total = sum(counts)
    upto = [c / total for c in accumulate(counts)]
    return sum(c / total * (1 - upto[i + span] ** (BLOCK - 1)) for i, c in enumerate(counts) if i + span < len(counts))


def exponents(stats: TensorStats | None) -> Exponents | None:
    if stats is None or not stats.exponent_counts:
        return None
    sampled = stats.exponent_low + len(stats.exponent_counts) - 1
    return Exponents(stats.exponent_low, stats.exponent_counts, max(sampled, exponent(max(abs(stats.min), abs(stats.max)))), stats.count)


def exponent(x: float) -> int:
    return math.frexp(x)[1] - 1


def measured(m: Measurement) -> dict[What, dict[str, Exponents]]:
    """By kind and layer: of outputs and their gradients at the last measured step that was finite, and of weights at the start."""
    found: dict[What, dict[str, Exponents]] = {kind: {} for kind in KINDS}
    for layer in m.layers:
        if layer.kind == "container" or layer.dtype not in ("float32", "float64", ""):
            continue
        for s in reversed(layer.snapshots):
            if s.output is not None and s.output.finite:
                for kind, stats in (("activations", s.output), ("gradients", s.gradient)):
                    if (known := exponents(stats)) is not None:
                        found["activations" if kind == "activations" else "gradients"][layer.name] = known
                break
    for p in m.parameters:
        if p.exponent_counts and len(p.shape) > 1:
            top = max(exponent(p.largest), p.exponent_low + len(p.exponent_counts) - 1)
            found["weights"][p.name] = Exponents(p.exponent_low, p.exponent_counts, top, p.count)
    return found


def loss_scale_exponent(gradients: dict[str, Exponents], form: Format) -> int:
    """Exponent of the largest loss scale at which no gradient overflows."""
    return form.highest - max((e.top for e in gradients.values()), default=form.highest)
