"""Statistics of many tensors, gathered and computed together.

For small tensors a call costs more than reading them, so what can wait is done for many of them at once. On devices
other than the CPU every reduction is queued without a synchronisation, and `settle` brings all results to the host at once: four reads
of a tensor, or one where `fused_statistics` can run, and nothing of its size is made.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from gradcheck.instrument import fused_statistics
from gradcheck.instrument.tensor_statistics import (
    Array,
    Numbers,
    describe,
    exponents,
    flat_values,
    histogram_bits,
    histogram_stride,
    merge,
    numbers,
    of_sample,
    real_values,
)
from gradcheck.types.layers import TensorStats
from gradcheck.workload.device import ends, has_float64, on_host

SMALL = 1 << 16  # elements up to which a tensor is copied, to be reduced together with others
TOGETHER = 1 << 20  # elements that are reduced together at most
SLICE = 1 << 22  # elements of a tensor that are reduced at once: what is made on the way stays below 64 MB
_BINS = 256  # exponents of float32

Sink = Callable[[TensorStats], None]


@dataclass
class _Block:
    """Tensors of equal size on a device [tensors, count], reduced but not read."""

    sinks: Sequence[Sink]
    counts: list[int]  # entries of each slice
    slices: list[list[torch.Tensor]]  # of each: least, largest, not zero, sum and norm [tensors], see `_reduced`
    sample: torch.Tensor  # [tensors, some entries]
    count: int


@dataclass
class DeferredStatistics:
    """Pending statistics: `add` tensors, then `settle`."""

    read: list[tuple[Sink, Numbers]] = field(default_factory=list)  # CPU tensors: all but their histogram
    samples: list[Array] = field(default_factory=list)  # of the same tensors, for it: the bits of float32 numbers
    groups: dict[tuple[torch.device, torch.dtype, int], list[tuple[torch.Tensor, Sink]]] = field(default_factory=dict)  # copies
    blocks: list[_Block] = field(default_factory=list)
    riders: list[tuple[torch.Tensor, Callable[[torch.Tensor], None]]] = field(default_factory=list)

    def bring(self, tensor: torch.Tensor, receive: Callable[[torch.Tensor], None]) -> None:
        """Hands over a small tensor on the CPU, at the latest when settled."""
        if tensor.is_cpu:
            receive(tensor)
        else:
            self.riders.append((tensor, receive))

    def add(self, tensor: torch.Tensor, sink: Sink) -> None:
        """Hands the statistics to `sink`, at the latest when settled; never, when the tensor has none."""
        if not tensor.is_cpu:
            self.queue(tensor, sink)
            return
        values = flat_values(tensor)
        if values is None:
            return
        found = numbers(values) if values.dtype != np.float64 else None
        if found is not None:
            self.read.append((sink, found))
            self.samples.append(histogram_bits(values))
        elif (stats := describe(tensor)) is not None:
            sink(stats)

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
        """block: [tensors, count]."""
        fused = fused_statistics.reduced(block)
        parts = [block] if fused is not None else block.split(SLICE, 1)
        results = [fused] if fused is not None else [_reduced(part) for part in parts]
        sample = block[:, :: histogram_stride(block.shape[1])]
        wide = torch.float64 if block.dtype is torch.float64 else torch.float32
        sample = sample.to(wide, copy=len(sinks) == 1)  # a group is a copy already
        self.blocks.append(_Block(sinks, [part.shape[1] for part in parts], results, sample, block.shape[1]))

    def settle(self) -> None:
        """Hands out everything that is still pending. Waits for other devices, once each."""
        if self.read:
            for (sink, found), histogram in zip(self.read, _histograms(self.samples), strict=True):
                sink(TensorStats(*found, *histogram))
            self.read.clear()
            self.samples.clear()
        for group in self.groups.values():
            self._reduce_group(group)
        self.groups.clear()
        blocks, riders, self.blocks, self.riders = self.blocks, self.riders, [], []
        tensors = [t for block in blocks for t in (block.sample, *(t for part in block.slices for t in part))]
        arrived = iter(on_host([*tensors, *(t for t, _ in riders)]))
        for block in blocks:
            sample = next(arrived).numpy()
            slices = [[next(arrived).tolist() for _ in part] for part in block.slices]
            _hand_out(block, sample, slices)
        for _, receive in riders:
            receive(next(arrived))


def _hand_out(block: _Block, sample: Array, slices: list[list[list[float]]]) -> None:
    for i, sink in enumerate(block.sinks):
        parts = [_stats(count, *(values[i] for values in part)) for count, part in zip(block.counts, slices, strict=True)]
        finite = [p for p in parts if p is not None]
        if len(finite) < len(parts):
            sink(of_sample(sample[i], block.count, [end[i] for part in slices for end in part[:2]]))
            continue
        stats = merge(finite)
        assert stats is not None
        first, counts = exponents(sample[i])
        sink(replace(stats, exponent_low=first, exponent_counts=counts))


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


def _reduced(block: torch.Tensor) -> list[torch.Tensor]:
    """Four reads of a block [tensors, count]: least, largest, number of entries but zero, sum and norm, [tensors] each.

    Where the device has no float64, sum and norm are those of (x - shift) / unit, and `shift` and `unit` follow: squares of tiny entries
    would vanish in float32, and digits be lost far from zero.
    """
    x = block if block.dtype in fused_statistics.READABLE else block.float()
    low, high = ends(x, 1)
    filled = torch.linalg.vector_norm(x, ord=0, dim=1, dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
    if has_float64(x.device):
        return [low, high, filled, x.sum(1, dtype=torch.float64), torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)]
    shift = (low.float() + high.float()) / 2
    unit = high.float() - shift
    unit = torch.where(unit > 0, unit, 1.0)
    x = (x - shift[:, None]) / unit[:, None]
    return [low, high, filled, x.sum(1), torch.linalg.vector_norm(x, dim=1), shift, unit]


def _stats(
    count: int, low: float, high: float, filled: float, total: float, norm: float, shift: float = 0.0, unit: float = 1.0
) -> TensorStats | None:
    """Without a histogram; None for what is not finite."""
    if not math.isfinite(low) or not math.isfinite(high):
        return None
    mean = total / count
    variance = max(0.0, norm * norm / count - mean * mean) if high > low else 0.0
    std, mean = variance**0.5 * unit, mean * unit + shift
    return TensorStats(count, 0, 0, mean, std, (count * (std * std + mean * mean)) ** 0.5, low, high, 1.0 - filled / count)
