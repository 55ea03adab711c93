"""Whether the parameters that all ranks should share are still equal: told from some entries and norms, which each rank says."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from gradcheck.types.gauges import RankStep
from gradcheck.workload.dtensor import is_spread

COMPARED = 64  # entries of each parameter that are compared between the ranks
ROUNDING = 1e-6  # relative: replicas of a sound training are equal to the last bit
NAMED = 3  # parameters


@dataclass(frozen=True)
class Replica:
    """A parameter on one rank, before a step."""

    sample: npt.NDArray[np.float64]  # some entries
    norm: float
    gradient_norm: float | None


@torch.no_grad()
def replicas(parameters: Sequence[torch.Tensor]) -> list[Replica | None]:
    """None for those that are spread over several processes, and for those that are not plain numbers. Waits for the device once."""
    kept = [p for p in parameters if not is_spread(p) and p.layout is torch.strided and p.is_floating_point()]
    graded = {id(p): p.grad for p in kept if p.grad is not None and p.grad.layout is torch.strided}
    samples = [p.detach().reshape(-1)[:: max(1, p.numel() // COMPARED)][:COMPARED] for p in kept]
    parts = [*samples, *(p.detach().norm() for p in kept), *(graded[id(p)].norm() for p in kept if id(p) in graded)]
    flat = torch.cat([x.reshape(-1).to(kept[0].device, torch.float32) for x in parts]).cpu().double().numpy() if kept else np.zeros(0)
    cuts = np.split(flat, list(itertools.accumulate(map(len, samples))))
    norms, gradients = iter(cuts[-1][: len(kept)].tolist()), iter(cuts[-1][len(kept) :].tolist())
    found = {id(p): Replica(x, next(norms), next(gradients) if id(p) in graded else None) for p, x in zip(kept, cuts, strict=False)}
    return [found.get(id(p)) for p in parameters]


def are_divided(count: int) -> bool:
    """Whether some of so many ranks have a process group of their own."""
    groups: Mapping[Any, Any] = getattr(getattr(dist.distributed_c10d, "_world", None), "pg_map", {})
    return any(1 < _size(group) < count for group in list(groups))


def _size(group: Any) -> int:
    try:
        return int(group.size())
    except RuntimeError:  # one that was taken down
        return 0


def compare(step: int, shares: Sequence[Mapping[str, Replica]], names: frozenset[str]) -> RankStep | None:
    """`shares`: of each rank. None if there is nothing to compare."""
    worst, name, rank = 0.0, "", 0
    differing = compared = 0
    gradients, one_sided = 0.0, []
    for key, first in shares[0].items():
        others = [(r, s[key]) for r, s in enumerate(shares[1:], 1) if key in s]
        same = [(r, o) for r, o in others if len(o.sample) == len(first.sample)]
        if key not in names or not same:
            continue
        compared += 1
        far, where = max((_distance(first, o), r) for r, o in same)
        differing += far > ROUNDING
        if far > worst or not name:
            worst, name, rank = far, key, where
        norms = [first.gradient_norm, *(o.gradient_norm for _, o in same)]
        if None in norms and any(n is not None for n in norms):
            one_sided.append(key)
        gradients = max(gradients, _spread([n for n in norms if n is not None]))
    if not compared:
        return None
    return RankStep(step, worst, name, rank, differing, compared, gradients, tuple(one_sided[:NAMED]))


def _distance(first: Replica, other: Replica) -> float:
    """The larger of the relative distances of the samples and of the norms: entries outside the sample show in the norm alone."""
    return max(_apart(first.sample, other.sample), _spread([first.norm, other.norm]))


def _apart(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    fine, also = np.isfinite(a), np.isfinite(b)
    if not np.array_equal(fine, also):
        return math.inf
    distance, norm = float(np.linalg.norm((a - b)[fine])), float(np.linalg.norm(a[fine]))
    return distance / norm if norm > 0 else math.inf if distance > 0 else 0.0


def _spread(norms: Sequence[float]) -> float:
    """Largest distance of two norms over the largest. Where all are not finite there is nothing to compare."""
    finite = [n for n in norms if math.isfinite(n)]
    if len(finite) < len(norms):
        return math.inf if finite else 0.0
    top = max(finite, default=0.0)
    return (top - min(finite)) / top if top > 0 else 0.0
