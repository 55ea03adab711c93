"""What one rank reports of a measured step, and how the reports of all are merged: counts, sums, extremes and histograms add up."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradcheck.instrument.tensor_statistics import merge
from gradcheck.live.record import Record
from gradcheck.measure.layers import LayerAccumulator
from gradcheck.measure.parameters import StepWatch, Watched
from gradcheck.types.layers import Snapshot
from gradcheck.types.parameters import ParameterStep
from gradcheck.types.training import NonFinite
from gradcheck.workload.dtensor import local, multiplicity
from gradcheck.workload.lockstep import root
from gradcheck.workload.replicas import COMPARED


@dataclass
class ParameterShare:
    """A parameter on one rank: the shard, where it is sharded."""

    step: ParameterStep
    count: int
    mean: float  # at the start, as `std`
    std: float
    sample: npt.NDArray[np.float64]  # some entries, before the step


@dataclass
class LayerShare:
    snapshot: Snapshot
    alive: torch.Tensor | None
    samples: int


@dataclass
class Share:
    """One rank at one measured step, or at its end."""

    losses: list[float]  # of its steps since it spoke last
    non_finite: tuple[NonFinite, ...] = ()
    parameters: dict[str, ParameterShare] = field(default_factory=dict)
    layers: dict[str, LayerShare] = field(default_factory=dict)


def share_of(record: Record, watching: StepWatch | None, losses: list[float], step: int) -> Share:
    """`watching`: of the step, once its end was filed; None when nothing was measured on this rank."""
    share = Share(losses, tuple(record.non_finite))
    if watching is None:
        return share
    ends = itertools.accumulate(w.sampled().numel() for w in watching.watched)
    for w, end in zip(watching.watched, ends, strict=True):
        sample = watching.before[end - w.sampled().numel() : end]
        sample = sample[:: max(1, len(sample) // COMPARED)][:COMPARED]
        share.parameters[w.name] = ParameterShare(w.steps[-1], local(w.tensor).numel(), w.mean, w.std, sample.copy())
    for name, layer in record.layers.layers.items():
        if layer.snapshots and layer.snapshots[-1].step == step:
            alive = layer.alive[-1] if layer.alive else None
            share.layers[name] = LayerShare(layer.snapshots[-1], alive, layer.samples[-1] if layer.samples else 0)
    return share


# -------------------------------------------------------------------------- merging


def merge_losses(shares: Sequence[Sequence[float]]) -> list[float]:
    """Mean over the ranks that took the step, for the steps that the first of them took."""
    own = range(len(shares[0]))
    taken = ([losses[i] for losses in shares if i < len(losses)] for i in own)
    return [math.fsum(x) / len(x) if all(map(math.isfinite, x)) else _broken(x) for x in taken]


def _broken(values: Sequence[float]) -> float:
    return next((x for x in values if math.isnan(x)), next(x for x in values if not math.isfinite(x)))


def merge_layers(record: Record, shares: Sequence[Share], step: int) -> list[str]:
    """Puts the statistics of all ranks in place of rank 0's. Returns the layers that ran on other ranks only."""
    for name, layer in record.layers.layers.items():
        said = [s.layers[name] for s in shares if name in s.layers]
        if len(said) > 1 and layer.snapshots and layer.snapshots[-1].step == step:
            _merge_layer(layer, said)
    return sorted({name for s in shares for name in s.layers} - set(record.layers.layers))


def _merge_layer(layer: LayerAccumulator, said: Sequence[LayerShare]) -> None:
    snapshots = [s.snapshot for s in said]
    layer.snapshots[-1] = Snapshot(
        snapshots[0].step,
        merge([s.output for s in snapshots if s.output is not None]),
        merge([s.gradient for s in snapshots if s.gradient is not None]),
        _mean([s.saturated for s in snapshots]),
        _mean([s.sample_cosine for s in snapshots]),
        _mean([s.token_cosine for s in snapshots]),
    )
    masks = [s.alive for s in said if s.alive is not None]
    if layer.alive and masks and all(m.shape == layer.alive[-1].shape for m in masks):
        layer.alive[-1] = torch.stack(masks).any(0)
        layer.samples[-1] = sum(s.samples for s in said)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def merge_parameters(record: Record, shares: Sequence[Share], step: int) -> None:
    """The sharded parameters as if they were whole, and the norm of all gradients. Replicas stay as rank 0 has them."""
    sharded = False
    for w in record.watched:
        copies = multiplicity(w.tensor, len(shares))
        if copies is None or not w.steps or w.steps[-1].step != step:
            continue
        sharded = True
        parts = [s.parameters[w.name] for s in shares if w.name in s.parameters]
        if len(w.steps) == 1:
            _merge_start(w, parts)
        w.steps[-1] = merged_step([p.step for p in parts], copies)
    if sharded and record.norms and record.measured[-1] == step:
        known = [w.steps[-1].gradient_norm for w in record.watched if w.steps and w.steps[-1].step == step]
        record.norms[-1] = root([n for n in known if n is not None])


def _merge_start(w: Watched, parts: Sequence[ParameterShare]) -> None:
    total = sum(p.count for p in parts)
    mean = math.fsum(p.count * p.mean for p in parts) / total
    w.std = (math.fsum(p.count * (p.std**2 + (p.mean - mean) ** 2) for p in parts) / total) ** 0.5
    w.mean = mean


def merged_step(parts: Sequence[ParameterStep], copies: float) -> ParameterStep:
    """Norms over shards of which there are so many equal copies: ||w||^2 is the sum over the different ones. An update ratio is that
    of the whole: ||dw||^2 is the sum of (ratio ||w||)^2."""
    norms = [p.norm for p in parts]
    gradients = [p.gradient_norm for p in parts if p.gradient_norm is not None]
    moved = [p.update_ratio * p.norm for p in parts if p.update_ratio is not None]
    based = [p.norm for p in parts if p.update_ratio is not None]
    base = root(based)
    return replace(
        parts[0],
        norm=root(norms) / copies**0.5,
        gradient_norm=root(gradients) / copies**0.5 if gradients else None,
        gradient_max=max((p.gradient_max for p in parts if p.gradient_max is not None), default=None),
        gradient_finite=all(p.gradient_finite for p in parts),
        update_ratio=root(moved) / base if base > 0 else None,
        duplicate_units=None,  # rows of one shard may be whole or not
        constant=all(p.constant for p in parts),
        unchanged=_mean([p.unchanged for p in parts]),
    )


def merge_events(record: Record, shares: Sequence[Any], ranks: Sequence[int]) -> None:
    """The first layer that was not finite, with the rank that it was on."""
    said = [replace(e, rank=rank) for rank, share in zip(ranks, shares, strict=True) for e in share.non_finite if e.rank is None]
    known = [e for e in record.non_finite if e.rank is not None]
    record.non_finite = sorted((*known, *said), key=lambda e: e.step)[: max(1, len(known))] if known or said else []
