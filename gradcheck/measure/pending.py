"""Statistics of many tensors, on their way.

Small tensors cost calls, not reading: they are copied side by side, and one call reduces many of them. On devices other
than the CPU all reductions are queued without a synchronisation, and `settle` brings their results to the host at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gradcheck.measure.statistics import CANCELS, EXPONENT_BITS, HISTOGRAM_SAMPLES, TINY_SQUARE, describe, readable, real_values, spread, trimmed
from gradcheck.nouns.measurement import TensorStats

SMALL = 1 << 16  # elements up to which a tensor is copied, to be reduced together with others
BUFFER = 1 << 17  # elements that are reduced together: 512 KiB, within L2
_BINS = 256  # exponents of float32

Array = npt.NDArray[Any]
Sink = Callable[[TensorStats], None]
Look = Callable[[TensorStats | None, torch.Tensor], None]


class _Copied(NamedTuple):
    """A small tensor, copied to the buffer."""

    start: int
    count: int
    shape: torch.Size
    sink: Sink
    look: Look | None


@dataclass
class Pending:
    """Statistics on their way: `add` tensors, `flush` at the end of a pass, `settle` when the numbers are wanted."""

    buffer: Array = field(default_factory=lambda: np.empty(BUFFER, np.float32))  # small CPU tensors, one after the other
    size: int = 0
    copied: list[_Copied] = field(default_factory=list)
    groups: dict[tuple[torch.device, torch.dtype, int], list[tuple[torch.Tensor, Sink]]] = field(default_factory=dict)  # of other devices
    rows: list[torch.Tensor] = field(default_factory=list)  # results on other devices, [tensors, 7 + _BINS] each
    sinks: list[tuple[int, Sink]] = field(default_factory=list)  # count and receiver of each row

    def add(self, tensor: torch.Tensor, sink: Sink, look: Look | None = None) -> None:
        """Hands the statistics to `sink`, now or when settled; never, when the tensor has none.

        `look` gets the statistics, where they are known at that time, and the values: the tensor, or a copy of it.
        """
        if tensor.device.type != "cpu":
            self.queue(tensor, sink)
            if look is not None:
                look(None, tensor)
        elif tensor.numel() <= SMALL and tensor.dtype is not torch.float64:
            self._copy(tensor, sink, look)
        else:
            stats = describe(tensor)
            if stats is not None:
                sink(stats)
                if look is not None:
                    look(stats, tensor)

    def _copy(self, tensor: torch.Tensor, sink: Sink, look: Look | None) -> None:
        if tensor.dtype is torch.float32 and readable(tensor) and tensor.is_contiguous() and not tensor.is_neg():
            values = tensor.detach().numpy().reshape(-1)
        else:
            flat = real_values(tensor if look is None else tensor.contiguous())  # a look sees the shape: the order counts
            if flat is None:
                return
            values = flat.float().numpy()
        count = len(values)
        if not count:
            return
        if self.size + count > BUFFER:
            self.flush()
        self.buffer[self.size : self.size + count] = values
        self.copied.append(_Copied(self.size, count, tensor.shape, sink, look))
        self.size += count

    def queue(self, tensor: torch.Tensor, sink: Sink) -> None:
        """Statistics without waiting for the device: of small tensors together, when flushed."""
        flat = real_values(tensor)
        if flat is None or flat.numel() == 0:
            return
        if flat.numel() > SMALL:
            self._reduce(flat.unsqueeze(0), [sink])
            return
        group = self.groups.setdefault((flat.device, flat.dtype, flat.numel()), [])
        group.append((flat.clone(), sink))
        if len(group) * flat.numel() >= BUFFER:
            self._reduce_group(group)

    def flush(self) -> None:
        """Reduces the copies."""
        if self.copied:
            starts, counts = [c.start for c in self.copied], [c.count for c in self.copied]
            for each, stats in zip(self.copied, _describe_all(self.buffer[: self.size], starts, counts), strict=True):
                each.sink(stats)
                if each.look is not None:
                    values = torch.from_numpy(self.buffer[each.start : each.start + each.count])
                    each.look(stats, values.view(each.shape))
            self.copied.clear()
            self.size = 0
        for group in self.groups.values():
            self._reduce_group(group)
        self.groups.clear()

    def _reduce_group(self, group: list[tuple[torch.Tensor, Sink]]) -> None:
        if group:
            self._reduce(torch.stack([values for values, _ in group]), [sink for _, sink in group])
            group.clear()

    def _reduce(self, block: torch.Tensor, sinks: Sequence[Sink]) -> None:
        self.rows.append(_rows(block))
        self.sinks.extend((block.shape[1], sink) for sink in sinks)

    def settle(self) -> None:
        """Hands out all statistics that are still on their way. Waits for other devices, once each."""
        self.flush()
        if not self.rows:
            return
        devices = {r.device for r in self.rows}
        table = torch.cat([r.cpu() for r in self.rows] if len(devices) > 1 else self.rows).cpu().double().numpy()
        for (count, sink), row in zip(self.sinks, table, strict=True):
            sink(_stats_of_row(count, row))
        self.rows.clear()
        self.sinks.clear()


def _describe_all(values: Array, starts: list[int], counts: list[int]) -> list[TensorStats]:
    """Statistics of several float32 tensors that lie one after the other, none empty: each reduction is one call."""
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        totals, squares = np.add.reduceat(values, starts), np.add.reduceat(np.square(values), starts)
    is_zero = values == 0
    firsts, lasts, bins = _exponents_all(values, starts, counts)
    result = []
    numbers = zip(starts, counts, totals.tolist(), squares.tolist(), lows.tolist(), highs.tolist(), strict=True)
    for i, (start, count, total, square, low, high) in enumerate(numbers):
        mean, mean_square = total / count, square / count
        variance = mean_square - mean * mean
        if not (TINY_SQUARE < square < math.inf and variance > CANCELS * mean_square):  # False for NaN
            stats = describe(torch.from_numpy(values[start : start + count]))
            assert stats is not None
        else:
            zeros = int(np.count_nonzero(is_zero[start : start + count])) if low <= 0.0 <= high else 0
            found = tuple(bins[i, firsts[i] : lasts[i] + 1].tolist())
            lowest = firsts[i] - 127 if found else 0
            stats = TensorStats(count, 0, 0, mean, variance**0.5, square**0.5, low, high, zeros / count, lowest, found)
        result.append(stats)
    return result


def _exponents_all(values: Array, starts: list[int], counts: list[int]) -> tuple[list[int], list[int], Array]:
    """First and last exponent bin that is not empty, for each tensor, and the bins [tensors, _BINS]."""
    bits = values.view(np.int32)
    samples = [bits[start : start + count : spread(count, HISTOGRAM_SAMPLES)] for start, count in zip(starts, counts, strict=True)]
    exponents = np.concatenate(samples)
    exponents >>= 23
    exponents &= 0xFF
    exponents += np.repeat(np.arange(len(samples), dtype=np.int32) * _BINS, [len(s) for s in samples])
    bins = np.bincount(exponents, minlength=len(samples) * _BINS).reshape(-1, _BINS)
    bins[:, 0] = 0  # zeros, and subnormal numbers with them
    present = bins > 0
    firsts, lasts = present.argmax(1), _BINS - 1 - present[:, ::-1].argmax(1)
    lasts[~present.any(1)] = -1
    return firsts.tolist(), lasts.tolist(), bins


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
    bits = x[:, :: spread(x.shape[1], HISTOGRAM_SAMPLES)].float().contiguous().view(torch.int32)
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
