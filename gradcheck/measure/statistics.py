"""Statistics of a tensor in one pass over its memory.

On the CPU a tensor is read in chunks that stay in cache, with the cheapest reductions that torch and numpy have; NaN and Inf
show in those, and are counted only when they show. For other devices see `pending`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradcheck.nouns.measurement import TensorStats

Array = npt.NDArray[Any]

CHUNK = 1 << 18  # elements: 1 MiB of float32, within L2
HISTOGRAM_SAMPLES = 512, 4096  # least and most entries whose exponents are counted; one in 64 between them
FEW = 1 << 13  # elements up to which numpy's sums cost less than torch's; and which BLAS does not share among threads
TINY_SQUARE = 1e-30  # below this a float32 sum of squares has lost entries to underflow
CANCELS = 1e-4  # mean of squares minus squared mean has too few digits left below this share of the former

# dtype -> integer of its size, position and mask of the exponent bits, bias
EXPONENT_BITS = {torch.float32: (np.int32, 23, 0xFF, 127), torch.float64: (np.int64, 52, 0x7FF, 1023)}


class _Scratch(threading.local):
    """Room for a mask over a chunk: fresh memory would cost more than the comparison."""

    def __init__(self) -> None:
        self.mask = np.empty(CHUNK, np.bool_)


_scratch = _Scratch()


def readable(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that can be read: not in `torch.func` transforms, on meta, quantized or nested."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.device.type != "meta" and tensor.layout in (torch.strided, torch.sparse_coo)


def real_values(tensor: torch.Tensor) -> torch.Tensor | None:
    """The entries as a flat real floating tensor [count], a view where possible, in any order; None for what has no statistics."""
    if tensor.dtype is torch.float32 and tensor.layout is torch.strided and tensor.device.type != "meta" and tensor.is_contiguous():
        if not (torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor.is_neg() or tensor.is_nested):
            return tensor.detach().view(-1)
    if not readable(tensor):
        return None
    x = tensor.detach()
    if x.layout == torch.sparse_coo:
        x = x.coalesce().values()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if not x.is_floating_point():
        return None
    if x.is_contiguous():
        return (x.resolve_neg() if x.is_neg() else x).view(-1)
    if x.dim() > 1:
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


def histogram_stride(count: int) -> int:
    least, most = HISTOGRAM_SAMPLES
    return spread(count, min(max(least, count // 64), most))


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
        low, high = min(low, a), max(high, b)
        if a == 0.0 == b:
            zeros += len(values)
            continue
        chunk_total, chunk_square = _sums(chunk, values)
        total, square = total + chunk_total, square + chunk_square
        if a <= 0.0 <= b:
            zeros += np.count_nonzero(np.equal(values, 0, out=_scratch.mask[: len(values)]))
    mean, mean_square = total / count, square / count
    variance = mean_square - mean * mean
    if variance < CANCELS * mean_square:
        variance = _variance(flat, mean) if high > low else 0.0
    first, counts = _exponents(flat) if histogram else (0, ())
    return TensorStats(count, 0, 0, mean, variance**0.5, square**0.5, low, high, zeros / count, first, counts)


def _sums(chunk: torch.Tensor, values: Array) -> tuple[float, float]:
    """Sum and sum of squares of a chunk, which is both; in float64 where float32 overflows or underflows."""
    if len(values) <= FEW:
        total, square = float(np.add.reduce(values)), float(np.dot(values, values))
    else:
        total, square = chunk.sum().item(), torch.dot(chunk, chunk).item()
    if not TINY_SQUARE < square < math.inf or not math.isfinite(total):
        wide = chunk.double()
        total, square = wide.sum().item(), torch.dot(wide, wide).item()
    return total, square


def _readable_chunk(part: torch.Tensor) -> torch.Tensor:
    if part.device.type != "cpu":
        part = part.cpu()
    return part if part.dtype in EXPONENT_BITS else part.float()


def _variance(flat: torch.Tensor, mean: float) -> float:
    """Two-pass variance, for entries that lie close together far from zero."""
    wide = [_readable_chunk(part).double() for part in flat.split(CHUNK)]
    mean = math.fsum(x.sum().item() for x in wide) / flat.numel()
    return math.fsum((x - mean).square_().sum().item() for x in wide) / flat.numel()


def _exponents(flat: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Counts of floor(log2|x|) over an even sample of the non-zero entries, from the exponent bits."""
    sample = _readable_chunk(flat[:: histogram_stride(len(flat))])
    integer, shift, mask, bias = EXPONENT_BITS[sample.dtype]
    return trimmed(np.bincount((sample.numpy().view(integer) >> shift) & mask), bias)


def trimmed(counts: Array, bias: int) -> tuple[int, tuple[int, ...]]:
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
