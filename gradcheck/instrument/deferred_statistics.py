"""Statistics of many tensors, on their way.

For small tensors a call costs more than the reading, so that what can wait is done for many of them together. On devices
other than the CPU every reduction is queued without a synchronisation, and `settle` brings all results to the host at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gradcheck.instrument.tensor_statistics import (
    EXPONENT_BITS,
    Array,
    Numbers,
    describe,
    histogram_stride,
    numbers,
    real_values,
    small_values,
    trimmed,
)
from gradcheck.types.layers import TensorStats

SMALL = 1 << 16  # elements up to which a tensor is copied, to be reduced together with others
TOGETHER = 1 << 20  # elements that are reduced together at most
_BINS = 256  # exponents of float32

Sink = Callable[[TensorStats], None]


@dataclass
class DeferredStatistics:
    """Statistics on their way: `add` tensors, then `settle`."""

    read: list[tuple[Sink, Numbers]] = field(default_factory=list)  # small CPU tensors: all but their histogram
    samples: list[Array] = field(default_factory=list)  # of the same tensors, for it: the bits of float32 numbers
    groups: dict[tuple[torch.device, torch.dtype, int], list[tuple[torch.Tensor, Sink]]] = field(default_factory=dict)  # copies
    rows: list[torch.Tensor] = field(default_factory=list)  # results, [tensors, 7 + _BINS] each
    sinks: list[tuple[int, Sink]] = field(default_factory=list)  # count and receiver of each row

    def add(self, tensor: torch.Tensor, sink: Sink) -> float | None:
        """Hands the statistics to `sink`, at the latest when settled; never, when the tensor has none.

        Returns the share of zeros, where that is known at once.
        """
        if not tensor.is_cpu:
            self.queue(tensor, sink)
            return None
        values = small_values(tensor)
        found = numbers(values) if values is not None else None
        if values is not None and found is not None:
            self.read.append((sink, found))
            self.samples.append(values.view(np.int32)[:: histogram_stride(len(values))].copy())
            return found[-1]
        stats = describe(tensor)
        if stats is None:
            return None
        sink(stats)
        return stats.zeros

    def queue(self, tensor: torch.Tensor, sink: Sink) -> None:
        """Statistics without waiting for the device."""
        flat = real_values(tensor)
        if flat is None or flat.numel() == 0:
            return
        if flat.numel() > SMALL:
            self._reduce(flat.unsqueeze(0), [sink])
            return
        group = self.groups.setdefault((flat.device, flat.dtype, flat.numel()), [])
        group.append((flat.clone(), sink))
        if len(group) * flat.numel() >= TOGETHER:
            self._reduce_group(group)

    def _reduce_group(self, group: list[tuple[torch.Tensor, Sink]]) -> None:
        if group:
            self._reduce(torch.stack([values for values, _ in group]), [sink for _, sink in group])
            group.clear()

    def _reduce(self, block: torch.Tensor, sinks: Sequence[Sink]) -> None:
        self.rows.append(_rows(block))
        self.sinks.extend((block.shape[1], sink) for sink in sinks)

    def settle(self) -> None:
        """Hands out all statistics that are still on their way. Waits for other devices, once each."""
        if self.read:
            for (sink, found), histogram in zip(self.read, _histograms(self.samples), strict=True):
                sink(TensorStats(*found, *histogram))
            self.read.clear()
            self.samples.clear()
        for group in self.groups.values():
            self._reduce_group(group)
        self.groups.clear()
        if not self.rows:
            return
        devices = {r.device for r in self.rows}
        table = torch.cat([r.cpu() for r in self.rows] if len(devices) > 1 else self.rows).cpu().double().numpy()
        for (count, sink), row in zip(self.sinks, table, strict=True):
            sink(_stats_of_row(count, row))
        self.rows.clear()
        self.sinks.clear()


def _histograms(samples: Sequence[Array]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Lowest exponent and counts from there on, for each sample of float32 bits."""
    exponents = np.concatenate(samples)
    exponents >>= 23
    exponents &= 0xFF
    exponents += np.repeat(np.arange(0, len(samples) * _BINS, _BINS, dtype=np.int32), [len(s) for s in samples])
    bins = np.bincount(exponents, minlength=len(samples) * _BINS).reshape(-1, _BINS)
    bins[:, 0] = 0  # zeros, and subnormal numbers with them
    present = bins > 0
    firsts, lasts, filled = present.argmax(1), _BINS - present[:, ::-1].argmax(1), present.max(axis=1)
    for row, first, last, any_found in zip(bins, firsts.tolist(), lasts.tolist(), filled.tolist(), strict=True):
        yield (first - 127, tuple(row[first:last].tolist())) if any_found else (0, ())


def _rows(block: torch.Tensor) -> torch.Tensor:
    """Every statistic of each row [tensors, count], on the device: [sum, norm, min, max, zeros, NaN, Inf, exponents of a sample]."""
    wide = torch.float32 if block.device.type == "mps" else torch.float64  # there is no float64 there
    x = block if block.dtype in EXPONENT_BITS else block.float()
    nan, inf = torch.isnan(x), torch.isinf(x)
    bad = nan | inf
    clean = torch.where(bad, 0.0, x)
    low, high = torch.where(bad, math.inf, x).amin(1), torch.where(bad, -math.inf, x).amax(1)
    largest = clean.abs().amax(1)
    unit = torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(clean / unit[:, None], dim=1, dtype=wide) * unit  # scaled: squares of tiny entries vanish in float32
    zeros = (clean == 0).sum(1) - bad.sum(1)
    numbers = [clean.sum(1, dtype=wide), norm, low, high, zeros, nan.sum(1), inf.sum(1)]
    bits = x[:, :: histogram_stride(x.shape[1])].float().contiguous().view(torch.int32)
    exponents = ((bits >> 23) & 0xFF).long()
    bins = torch.zeros(len(x), _BINS, dtype=wide, device=x.device).scatter_add_(1, exponents, torch.ones_like(exponents, dtype=wide))
    return torch.cat([torch.stack([n.to(wide) for n in numbers], 1), bins], 1)


def _stats_of_row(count: int, row: Array) -> TensorStats:
    total, norm, low, high, zeros, nan, inf = row[:7].tolist()
    finite = count - int(nan) - int(inf)
    if not finite:
        return TensorStats(count, int(nan), int(inf))
    bins = row[7:].astype(np.int64)
    bins[-1] = 0  # NaN and Inf
    first, counts = trimmed(bins, 127)
    mean = total / finite
    variance = max(0.0, norm * norm / finite - mean * mean) if high > low else 0.0
    return TensorStats(count, int(nan), int(inf), mean, variance**0.5, norm, low, high, zeros / count, first, counts)
