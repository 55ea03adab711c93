"""Adversarial trainings: the loss of one goes through the weights of the other; and how far each has got."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

import torch

from gradcheck.capture.events import OptimizerTrace
from gradcheck.types.loop import LoopAdversary
from gradcheck.workload.dtensor import local

FEWEST_STEPS = 30  # of each; a slow script is followed for 40 of the one that steps first
EDGE = 10  # steps at either end that are compared
TENSORS = 4  # whose gradients are sampled,
ENTRIES = 1024  # at so many entries each


def gradient_size(parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Norm of entries of some of the gradients, as they are before a step."""
    given = [local(p.grad) for p in parameters if p.grad is not None and p.grad.layout is torch.strided]
    chosen = given[:: max(1, len(given) // TENSORS)][:TENSORS]
    if not chosen:
        return None
    parts = [g.detach().reshape(-1)[:: max(1, g.numel() // ENTRIES)][:ENTRIES].float().norm() for g in chosen]
    return torch.stack([p.to(parts[0].device) for p in parts]).norm()


def adversary(watched: OptimizerTrace, others: Iterable[OptimizerTrace]) -> LoopAdversary | None:
    """The training whose weights this one's loss goes through; None if there is none, or too little was seen."""
    losses, sizes = _losses(watched), [float(s.gradient) for s in watched.steps if s.gradient is not None]
    if len(losses) < FEWEST_STEPS or len(sizes) < FEWEST_STEPS:
        return None
    for other in opponents(watched, others):
        theirs = _losses(other)
        if len(theirs) < FEWEST_STEPS:
            continue
        return LoopAdversary(
            other.label,
            *_ends(theirs),
            *_ends(losses),
            max(sizes[:EDGE]),  # the other one may win within these steps
            median(sizes[-EDGE:]),
            max(len(losses), len(theirs)),
        )
    return None


def opponents(watched: OptimizerTrace, others: Iterable[OptimizerTrace]) -> Iterator[OptimizerTrace]:
    """Trainings whose weights this one's loss goes through, but not the other way round."""
    return (other for other in others if _against(watched, other))


def is_played_against(watched: OptimizerTrace, others: Iterable[OptimizerTrace]) -> bool:
    """Whether the loss of another training goes through the weights of this one."""
    return any(_against(other, watched) for other in others)


def _against(one: OptimizerTrace, other: OptimizerTrace) -> bool:
    return one is not other and _goes_through(one, other) and not _goes_through(other, one)


def _losses(watched: OptimizerTrace) -> list[float]:
    return [float(sum(float(p.loss.float().sum()) for p in s.passes)) for s in watched.steps if s.passes]


def _goes_through(one: OptimizerTrace, other: OptimizerTrace) -> bool:
    passes = [p for s in one.steps for p in s.passes]
    return bool(passes) and 2 * sum(bool(p.reached & other.ids) for p in passes) > len(passes)


def _ends(series: Sequence[float]) -> tuple[float, float]:
    return median(series[:EDGE]), median(series[-EDGE:])
