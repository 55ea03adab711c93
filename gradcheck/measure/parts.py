"""Layers that are split by tensor parallelism: what each rank saw of their outputs, put together as if one process had the whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.kinds import WEIGHTED_KINDS
from gradcheck.instrument.tensor_statistics import merge
from gradcheck.types.layers import TensorStats
from gradcheck.workload.lockstep import everyone


@dataclass(frozen=True)
class _Part:
    """A call on one rank."""

    output: TensorStats | None
    gradients: list[TensorStats]
    saturated: torch.Tensor | None
    cosines: tuple[torch.Tensor | None, torch.Tensor | None]
    alive: torch.Tensor | None
    magnitudes: torch.Tensor | None
    samples: int


def put_together(calls: Sequence[Call]) -> frozenset[str]:
    """Fills in what the calls of a pass were as a whole; all ranks ask together. Returns the needs of which only a part is known.

    Ranks that have the same output count once.
    """
    own = [
        _Part(c.output, c.gradients, c.saturated, (c.token_cosine, c.sample_cosine), c.alive, c.magnitudes, c.effective_samples)
        for c in calls
    ]
    said = everyone(own)
    lacking: set[str] = set()
    widths: tuple[int, ...] = ()  # of the last weight, as a whole
    for i, call in enumerate(calls):
        weight = call.weight if call.module is None else getattr(call.module, "weight", None)
        if call.kind in WEIGHTED_KINDS and isinstance(weight, torch.Tensor):
            widths = tuple(weight.shape)
        different: list[_Part] = []
        for rank in said:
            if all(rank[i].output != known.output for known in different):
                different.append(rank[i])
        cosines = [rank[i].cosines for rank in said]
        if not all(torch.equal(a, b) for ours in cosines for a, b in zip(ours, cosines[0], strict=True) if a is not None and b is not None):
            call.token_cosine = call.sample_cosine = None  # of a part of the features, or of the tokens
            lacking.add("similarity")
        if len(different) > 1:
            _join(call, different)
            if not _join_units(call, different, widths):
                lacking.add("units")
    return frozenset(lacking)


def _join(call: Call, parts: Sequence[_Part]) -> None:
    call.output = merge([p.output for p in parts if p.output is not None])
    together = (merge(of_ranks) for of_ranks in zip(*(p.gradients for p in parts), strict=False))
    call.gradients = [g for g in together if g is not None]
    shares = [p.saturated for p in parts if p.saturated is not None]
    call.saturated = torch.stack(shares).mean(0) if shares else None


def _join_units(call: Call, parts: Sequence[_Part], widths: tuple[int, ...]) -> bool:
    """Units of all ranks; where each has all units and a part of the samples, what any of them saw. False where that cannot be told."""
    sizes, masks = [p.magnitudes for p in parts if p.magnitudes is not None], [p.alive for p in parts if p.alive is not None]
    if not sizes:
        return True
    split, units = sum(map(len, sizes)) in widths, len(sizes[0])
    if not split and units not in widths:
        call.magnitudes = call.alive = None
        return False
    call.magnitudes = torch.cat(sizes) if split else torch.stack(sizes).mean(0)
    call.alive = None if not masks else torch.cat(masks) if split else torch.stack(masks).any(0)
    if not split:
        call.effective_samples = sum(p.samples for p in parts)
    return True
