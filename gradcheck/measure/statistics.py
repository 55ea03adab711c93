"""Statistics of a tensor in one pass over its memory.

On the CPU the tensor is read in chunks that stay in cache, with the cheapest reductions that torch and numpy have; NaN and
Inf show in those, and are counted only when they show. On other devices the same reductions are queued without a
synchronisation, and `Pending.settle` copies all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from gradcheck.nouns.measurement import TensorStats

CHUNK = 1 << 18  # elements: 1 MiB of float32, within L2
HISTOGRAM_SAMPLES = 2048  # entries whose exponents are counted, evenly spread over the tensor
TINY_SQUARE = 1e-30  # below this a float32 sum of squares has lost entries to underflow
CANCELS = 1e-4  # mean of squares minus squared mean has too few digits left below this share of the former

# dtype -> integer of its size, position and mask of the exponent bits, bias
_EXPONENT = {torch.float32: (np.int32, 23, 0xFF, 127), torch.float64: (np.int64, 52, 0x7FF, 1023)}
_BINS = 256  # of the float32 exponents that are counted on a device


def readable(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that can be read: not in `torch.func` transforms, on meta, quantized or nested."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.device.type != "meta" and tensor.layout in (torch.strided, torch.sparse_coo)


def real_values(tensor: torch.Tensor) -> torch.Tensor | None:
    """The entries as a flat real floating tensor [count], a view where possible, in any order; None for what has no statistics."""
    if not readable(tensor):
        return None
    x = tensor.detach()
    if x.layout == torch.sparse_coo:
        x = x.coalesce().values()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if not x.is_floating_point():
        return None
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=lambda i: -x.stride(i)))  # channels_last and transposes lie densely in memory
    return x.resolve_neg().reshape(-1)


def spread(count: int, samples: int) -> int:
    """A stride that takes at least `samples` of `count` entries, or all, and has no factor in common with any axis.

    With a common factor the sample would keep to a few rows or columns.
    """
    stride = max(1, count // samples)
    while stride > 1 and math.gcd(stride, count) > 1:
        stride -= 1
    return stride


def describe(tensor: torch.Tensor, histogram: bool = True) -> TensorStats | None:
    """Statistics of any tensor, read at once. None when it has none (integers, empty, quantized, meta)."""
    flat = real_values(tensor)
    if flat is None or not (count := flat.numel()):
        return None
    total, square, low, high, zeros = 0.0, 0.0, math.inf, -math.inf, 0
    for part in (flat,) if count <= CHUNK else flat.split(CHUNK):
        chunk = _readable_chunk(part)
        values = chunk.numpy()
        a, b = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))
        if not (math.isfinite(a) and math.isfinite(b)):
            return _describe_non_finite(flat)
        if a == 0.0 == b:
            low, high, zeros = min(low, a), max(high, b), zeros + len(values)
            continue
        chunk_total, chunk_square = chunk.sum().item(), torch.dot(chunk, chunk).item()
        if not TINY_SQUARE < chunk_square < math.inf or not math.isfinite(chunk_total):
            wide = chunk.double()
            chunk_total, chunk_square = wide.sum().item(), torch.dot(wide, wide).item()
        total, square = total + chunk_total, square + chunk_square
        low, high = min(low, a), max(high, b)
        if a <= 0.0 <= b:
            zeros += int(np.count_nonzero(values == 0))
    mean, mean_square = total / count, square / count
    variance = mean_square - mean * mean
    if variance < CANCELS * mean_square:
        variance = _variance(flat, mean) if high > low else 0.0
    first, counts = _exponents(flat) if histogram else (0, ())
    return TensorStats(count, 0, 0, mean, variance**0.5, square**0.5, low, high, zeros / count, first, counts)


def _readable_chunk(part: torch.Tensor) -> torch.Tensor:
    if part.device.type != "cpu":
        part = part.cpu()
    return part if part.dtype in _EXPONENT else part.float()


def _variance(flat: torch.Tensor, mean: float) -> float:
    """Two-pass variance, for entries that lie close together far from zero."""
    wide = [_readable_chunk(part).double() for part in flat.split(CHUNK)]
    mean = math.fsum(x.sum().item() for x in wide) / flat.numel()
    return math.fsum((x - mean).square_().sum().item() for x in wide) / flat.numel()


def _exponents(flat: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Counts of floor(log2|x|) over an even sample of the non-zero entries, from the exponent bits."""
    sample = _readable_chunk(flat[:: spread(len(flat), HISTOGRAM_SAMPLES)])
    integer, shift, mask, bias = _EXPONENT[sample.dtype]
    bits = np.ascontiguousarray(sample.numpy()).view(integer)
    counts = np.bincount((bits >> shift) & mask)
    return _trimmed(counts, bias)


def _trimmed(counts: np.ndarray, bias: int) -> tuple[int, tuple[int, ...]]:
    """Lowest exponent that occurs, and the counts from there on."""
    counts[0] = 0  # zeros, and subnormal numbers with them
    present = counts.nonzero()[0]
    if not len(present):
        return 0, ()
    first, last = int(present[0]), int(present[-1])
    return first - bias, tuple(counts[first : last + 1].tolist())


def _describe_non_finite(flat: torch.Tensor) -> TensorStats:
    """Counts of NaN and Inf, and the other statistics over the finite entries."""
    nan = int(torch.isnan(flat).sum().item())
    inf = int(torch.isinf(flat).sum().item())
    finite = flat[torch.isfinite(flat)]
    count = flat.numel()
    rest = describe(finite) if finite.numel() else None
    if rest is None:
        return TensorStats(count, nan, inf)
    return replace(rest, count=count, nan=nan, inf=inf, zeros=rest.zeros * finite.numel() / count)


def merge(parts: Sequence[TensorStats]) -> TensorStats | None:
    """Statistics of several tensors as if they were one."""
    if len(parts) < 2:
        return parts[0] if parts else None
    count = sum(p.count for p in parts)
    known = [p for p in parts if p.count > p.nan + p.inf]
    finite = sum(p.count - p.nan - p.inf for p in known)
    square = math.fsum(p.norm**2 for p in known)
    mean = math.fsum(p.mean * (p.count - p.nan - p.inf) for p in known) / max(1, finite)
    moments = (p.std**2 + (p.mean - mean) ** 2 for p in known)  # each about the common mean: nothing cancels
    variance = math.fsum(m * (p.count - p.nan - p.inf) for m, p in zip(moments, known, strict=True)) / max(1, finite)
    first, bins = _merged_bins([p for p in parts if p.exponent_counts])
    return TensorStats(
        count,
        sum(p.nan for p in parts),
        sum(p.inf for p in parts),
        mean,
        variance**0.5,
        square**0.5,
        min((p.min for p in known), default=0.0),
        max((p.max for p in known), default=0.0),
        sum(p.zeros * p.count for p in parts) / count,
        first,
        bins,
    )


def _merged_bins(parts: Sequence[TensorStats]) -> tuple[int, tuple[int, ...]]:
    """The histograms of several samples, each weighted as its tensor."""
    if not parts:
        return 0, ()
    first = min(p.exponent_low for p in parts)
    bins = [0] * (max(p.exponent_low + len(p.exponent_counts) for p in parts) - first)
    for part in parts:
        for i, c in enumerate(part.exponent_counts, part.exponent_low - first):
            bins[i] += c
    return first, tuple(bins)


Sink = Callable[[TensorStats], None]


@dataclass
class Pending:
    """Statistics on their way. CPU tensors are read at once; on other devices a row of reductions is queued for each tensor,
    [sum, norm, min, max, zeros, NaN, Inf, exponents of a sample] in float64, and `settle` brings all rows to the host in one copy."""

    rows: list[torch.Tensor] = field(default_factory=list)
    waiting: list[tuple[int, Sink]] = field(default_factory=list)

    def add(self, tensor: torch.Tensor, sink: Sink) -> None:
        """Hands the statistics to `sink`, now or when settled; never, when the tensor has none."""
        if tensor.device.type == "cpu":
            stats = describe(tensor)
            if stats is not None:
                sink(stats)
        else:
            self.queue(tensor, sink)

    def queue(self, tensor: torch.Tensor, sink: Sink) -> None:
        flat = real_values(tensor)
        if flat is None or flat.numel() == 0:
            return
        self.rows.append(_row(flat))
        self.waiting.append((flat.numel(), sink))

    def settle(self) -> None:
        if not self.rows:
            return
        table = torch.stack(self.rows).cpu().double().numpy()
        for (count, sink), row in zip(self.waiting, table, strict=True):
            sink(_stats_of_row(count, row))
        self.rows.clear()
        self.waiting.clear()


def _row(flat: torch.Tensor) -> torch.Tensor:
    """Every statistic of a tensor on its device, without waiting for it. -> [7 + _BINS]"""
    wide = torch.float32 if flat.device.type == "mps" else torch.float64  # there is no float64 there
    x = flat if flat.dtype in _EXPONENT else flat.float()
    nan, inf = torch.isnan(x), torch.isinf(x)
    clean = torch.where(nan | inf, 0.0, x)
    low = torch.where(nan | inf, math.inf, x).amin()
    high = torch.where(nan | inf, -math.inf, x).amax()
    largest = clean.abs().amax()
    unit = torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(clean / unit, dtype=wide) * unit  # scaled: squares of tiny entries vanish in float32
    zeros = (clean == 0).sum() - nan.sum() - inf.sum()
    numbers = [clean.sum(dtype=wide), norm, low, high, zeros, nan.sum(), inf.sum()]
    bits = x[:: spread(len(x), HISTOGRAM_SAMPLES)].float().contiguous().view(torch.int32)
    exponents = ((bits >> 23) & 0xFF).long()
    bins = torch.zeros(_BINS, dtype=wide, device=x.device).scatter_add_(0, exponents, torch.ones_like(exponents, dtype=wide))
    return torch.cat([torch.stack([n.to(wide) for n in numbers]), bins])


def _stats_of_row(count: int, row: np.ndarray) -> TensorStats:
    total, norm, low, high, zeros, nan, inf = row[:7].tolist()
    finite = count - int(nan) - int(inf)
    if not finite:
        return TensorStats(count, int(nan), int(inf))
    bins = row[7:].astype(np.int64)
    bins[-1] = 0  # NaN and Inf
    first, counts = _trimmed(bins, 127)
    mean = total / finite
    variance = max(0.0, norm * norm / finite - mean * mean) if high > low else 0.0
    return TensorStats(count, int(nan), int(inf), mean, variance**0.5, norm, low, high, zeros / count, first, counts)
