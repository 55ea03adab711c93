"""Statistics of a tensor in one pass over its memory.

On the CPU a tensor is read in chunks that stay in cache, with the cheapest reductions that torch and numpy have; NaN and Inf show up in
those, and are counted only then. For other devices see `deferred_statistics`.
"""

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradcheck.types.layers import TensorStats

Array = npt.NDArray[Any]
Values = Array | torch.Tensor
Numbers = tuple[int, int, int, float, float, float, float, float, float]  # count, NaN, Inf, mean, std, norm, min, max, zeros

CHUNK = 1 << 18  # elements: 1 MiB of float32, within L2
HISTOGRAM_SAMPLES = 512, 4096  # least and most entries whose exponents are counted; between them, one in 64
TINY, HUGE = 1e-15, 1e16  # largest entries outside this range: float32 squares of a chunk vanish, or their sum overflows
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
        strides = x.stride()
        x = x.permute(sorted(range(x.dim()), key=lambda i: -strides[i]))  # channels_last and transposes lie densely in memory
    return x.resolve_neg().reshape(-1)


@functools.lru_cache(maxsize=4096)
def spread(count: int, samples: int) -> int:
    """A stride that takes at least `samples` of `count` entries, or all, and has no factor in common with any axis.

    With a common factor the sample would be confined to a few rows or columns.
    """
    stride = max(1, count // samples)
    while stride > 1 and math.gcd(stride, count) > 1:
        stride -= 1
    return stride


@functools.lru_cache(maxsize=4096)
def histogram_stride(count: int) -> int:
    least, most = HISTOGRAM_SAMPLES
    return spread(count, min(max(least, count // 64), most))


def describe(tensor: torch.Tensor) -> TensorStats | None:
    """Statistics of any tensor, read at once. None when it has none (integers, empty, quantized, meta)."""
    values = flat_values(tensor)
    if values is None:
        return None
    found = numbers(values)
    if found is None:
        chunks = (_part(values, start) for start in range(0, len(values), CHUNK))
        stats = merge([TensorStats(*f) if (f := numbers(part)) is not None else _of_non_finite(part) for part in chunks])
        assert stats is not None
        return stats if len(values) <= CHUNK else _with_exponents(stats, values)
    return _with_exponents(TensorStats(*found), values)


def histogram_bits(values: Values) -> Array:
    """The bits of float32 numbers, of a sample of the entries: a copy."""
    sample = values[:: histogram_stride(len(values))]
    return sample.view(np.int32).copy() if isinstance(sample, np.ndarray) else _array(sample).view(np.int32)


def _with_exponents(stats: TensorStats, values: Values) -> TensorStats:
    first, counts = exponents(_array(values[:: histogram_stride(len(values))]))
    return replace(stats, exponent_low=first, exponent_counts=counts)


def flat_values(tensor: torch.Tensor) -> Values | None:
    """The entries [count] in the memory of numpy if it knows their type; None for what has no statistics."""
    if tensor.dtype is torch.float32 and tensor.is_cpu:  # the most frequent case
        try:
            values = tensor.detach().numpy()
            if values.flags.c_contiguous:
                return values.reshape(-1) if values.size else None
        except (RuntimeError, TypeError):  # sparse, nested, negated, in a transform: numpy has no such arrays
            pass
    flat = real_values(tensor)
    if flat is None or not len(flat):
        return None
    return flat.numpy() if flat.dtype in EXPONENT_BITS and flat.is_cpu else flat


def _part(values: Values, start: int) -> Array:
    """A chunk of them, as float32 or float64."""
    return _array(values[start : start + CHUNK] if len(values) > CHUNK else values)


def _array(values: Values) -> Array:
    if isinstance(values, np.ndarray):
        return values
    return (values if values.dtype in EXPONENT_BITS else values.float()).cpu().numpy()


def numbers(values: Values) -> Numbers | None:
    """The fields of TensorStats but the histogram, for some entries [count], not empty. None when they are not finite."""
    count, low, high, total, square, zeros = len(values), math.inf, -math.inf, 0.0, 0.0, 0
    for start in range(0, count, CHUNK):
        part = _part(values, start)
        chunk = torch.from_numpy(part)  # its reductions are faster than numpy's
        ends = chunk.aminmax()
        least, most = ends.min.item(), ends.max.item()
        if not (math.isfinite(least) and math.isfinite(most)):
            return None
        low, high = min(low, least), max(high, most)
        if least == 0.0 == most:
            zeros += len(part)
            continue
        if not TINY < max(most, -least) < HUGE:
            chunk = chunk.double()
        total, square = total + chunk.sum().item(), square + chunk.dot(chunk).item()
        if least <= 0.0 <= most:
            zeros += int(np.count_nonzero(np.equal(part, 0, out=_scratch.mask[: len(part)])))
    mean, mean_square = total / count, square / count
    variance = mean_square - mean * mean
    if variance < CANCELS * mean_square:  # the entries are close together and far from zero
        variance = _square_about(values, mean) / count if high > low else 0.0
    return count, 0, 0, mean, variance**0.5, square**0.5, low, high, zeros / count


def _square_about(values: Values, mean: float) -> float:
    chunks = (_part(values, start).astype(np.float64) for start in range(0, len(values), CHUNK))
    return math.fsum(float(np.square(chunk - mean).sum()) for chunk in chunks)


def exponents(sample: Array) -> tuple[int, tuple[int, ...]]:
    """Counts of floor(log2|x|) over the non-zero entries, from the exponent bits."""
    integer, shift, mask, bias = EXPONENT_BITS[torch.float32 if sample.dtype == np.float32 else torch.float64]
    counts = np.bincount((sample.view(integer) >> shift) & mask)
    counts[0] = 0  # zeros, and subnormal numbers with them
    present = counts.nonzero()[0]
    if not len(present):
        return 0, ()
    first, last = int(present[0]), int(present[-1])
    return first - bias, tuple(counts[first : last + 1].tolist())


def _of_non_finite(values: Array) -> TensorStats:
    """Counts of NaN and Inf, and the other statistics over the finite entries."""
    count, nan = len(values), int(np.isnan(values).sum())
    finite = values[np.isfinite(values)]
    inf = count - nan - len(finite)
    if not len(finite):
        return TensorStats(count, nan, inf)
    rest = describe(torch.from_numpy(finite))
    assert rest is not None
    return replace(rest, count=count, nan=nan, inf=inf, zeros=rest.zeros * len(finite) / count)


def of_sample(sample: Array, count: int, extremes: Sequence[float]) -> TensorStats:
    """For a non-finite tensor with `count` entries, estimated from a sample of them.

    `extremes`: NaN where some slice holds NaN, +-Inf where one holds Inf: that much is sure.
    """
    found = _of_non_finite(sample)
    scale = count / len(sample)
    nan = max(round(found.nan * scale), int(any(x != x for x in extremes)))
    inf = max(round(found.inf * scale), int(any(math.isinf(x) for x in extremes)))
    return replace(found, count=count, nan=nan, inf=inf, norm=found.norm * scale**0.5)


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
