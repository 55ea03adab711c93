"""The least rate at which the loss rises along the optimizer's own update, for the first steps of a copy."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.training.clip import as_real, gradient_of, norms_of
from gradcheck.training.trainer import Trainer, needs_closure, take_step
from gradcheck.types.checks import CriticalRate
from gradcheck.workload.rng import seed_all
from gradcheck.workload.training_copy import TrainingCopy

AGAIN = 3  # steps after which it is measured again if the first update raises the loss: Adam's first one is larger than the later ones
GROWTH, FARTHEST = 4.0, 4  # factor between multiples of the update, and how many of them: 1/256 to 256 of the rate


def critical_rate(context: CheckContext) -> CriticalRate | None:
    """None if the level of the loss says nothing, or the optimizer evaluates the loss itself.

    Raises Unmeasured when the loss is not finite, or no step changes the weights.
    """
    if context.probe.surrogate or context.probe.beside or needs_closure(context.workload.optimizer):
        return None
    copy, untrained = context.fork(), dict(context.workload.model.named_parameters())
    training = Trainer(copy, context.workload.batches)
    found: list[float] = []
    while training.ended == "done" and training.step <= AGAIN:
        share = _look(copy, context.workload.batches[training.step % len(context.workload.batches)], context.seed, untrained)
        if share is not None:
            found.append(share)
        if share is not None and share <= 1:
            break
        training.train(training.step + AGAIN, norms=False)
    if not found:
        raise Unmeasured("no step of the optimizer changes a finite loss")
    return CriticalRate(tuple(found))


def _look(copy: TrainingCopy, batch: Any, seed: int, untrained: Mapping[str, torch.Tensor]) -> float | None:
    """The rate over the critical one, at the present weights, which are put back; the optimizer's state is one step on.

    `untrained`: the original's weights, by name. Where they are the present ones they need not be kept a second time.
    """
    copy.optimizer.zero_grad(set_to_none=True)
    seed_all(seed)
    start = copy.loss(batch)
    if not math.isfinite(float(start.detach())) or not start.requires_grad:
        return None
    start.backward()
    named = [(name, p) for name, p in copy.model.named_parameters() if p.requires_grad and gradient_of(p) is not None]
    weights = [p for _, p in named]
    before = [_kept(p, untrained.get(name)) for name, p in named]
    take_step(copy, batch)
    copy.optimizer.zero_grad(set_to_none=True)  # their memory is that of the update
    update = [p.detach() - x for p, x in zip(weights, before, strict=True)]
    lengths = norms_of([as_real(u) for u in update])
    if not any(lengths) or not all(map(math.isfinite, lengths)):
        return None

    @torch.no_grad()
    def rises(factor: float) -> bool:
        """Whether the loss, with the same random numbers, is above its start so many updates ahead."""
        for p, x, u in zip(weights, before, update, strict=True):
            p.copy_(x).add_(u, alpha=factor)
        seed_all(seed)
        return not float(copy.loss(batch)) <= float(start.detach())

    try:
        return 1 / _least(rises)
    finally:
        with torch.no_grad():
            for p, x in zip(weights, before, strict=True):
                p.copy_(x)


def _kept(weight: torch.Tensor, original: torch.Tensor | None) -> torch.Tensor:
    """What the weight is now, in memory that no step of the copy writes to."""
    if original is None or original is weight or not torch.equal(original, weight):
        return weight.detach().clone()
    return original.detach()


def _least(rises: Callable[[float], bool]) -> float:
    """The least factor at which it rises, to within a factor of sqrt(2), if there is one in reach."""
    up = rises(1.0)
    step = 1 / GROWTH if up else GROWTH
    factor = 1.0
    for _ in range(FARTHEST):
        if rises(factor * step) != up:
            break
        factor *= step
    else:
        return factor
    low, high = sorted((factor, factor * step))
    middle = math.sqrt(low * high)
    return math.sqrt(low * middle) if rises(middle) else math.sqrt(middle * high)
