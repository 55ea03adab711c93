"""Early stopping, judged fairly: the step is chosen on one half of the validation batches and judged on the other, and the other way round.

The lowest of many noisy validation losses is below the last one for any model, so choosing and judging need separate samples.
"""

from collections.abc import Sequence

from gradcheck.training.trainer import sample_mean
from gradcheck.types.fix import Fix
from gradcheck.workload.workload import Batch

NAME = "early-stopping"


def stops_early(fixes: Sequence[Fix], *, only: bool = False) -> bool:
    """Whether the training stops early; with `only`, whether that is all that is done."""
    found = [p.treatment == NAME for p in fixes]
    return all(found) if only else any(found)


def stopped_early(checkpoints: Sequence[Sequence[float]], batches: Sequence[Batch]) -> tuple[float, ...]:
    """Loss on each validation batch at the step that was chosen on the batches of the other half. `checkpoints`: losses, step by step."""
    places = range(len(batches))
    if len(batches) < 2:
        return tuple(checkpoints[-1])
    chosen = []
    for half in (0, 1):
        others = [i for i in places if i % 2 != half]
        losses = [sample_mean([parts[i] for i in others], [batches[i] for i in others]) for parts in checkpoints]
        chosen.append(losses.index(min(losses)))
    return tuple(checkpoints[chosen[i % 2]][i] for i in places)
