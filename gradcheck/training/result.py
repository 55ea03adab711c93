"""The result of a training of a copy, and early stopping, judged fairly."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradcheck.training.paired import training_loss
from gradcheck.training.skill import RelativeScore
from gradcheck.training.trainer import sample_mean
from gradcheck.types.fix import Fix
from gradcheck.types.training import Run
from gradcheck.workload.workload import Batch


@dataclass(frozen=True)
class Result:
    """One training with one seed."""

    run: Run
    comparable: bool = True  # its loss measures the same thing as the untreated one's
    skill: RelativeScore | None = None  # on the training batches
    value: float = math.nan  # the metric that a trial compares by; infinite when the run diverged or raised
    parts: tuple[float, ...] = ()  # the loss on each validation batch over the last fifth; `value` is their mean over samples
    checkpoints: tuple[tuple[float, ...], ...] = ()  # the same at every validation of the run
    scores: Mapping[str, float] = field(default_factory=dict)  # on the validation batches
    sparsity: float | None = None
    step_seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss over the last steps; infinite when it diverged."""
        return training_loss(self.run)

    @property
    def failed(self) -> bool:
        return self.run.ended in ("non-finite", "raised")

    @property
    def cut(self) -> bool:
        return self.run.ended == "budget"

    def relative(self, reference: float) -> float:
        """The loss in units of `reference`, the loss of the best constant prediction; if the loss is a different one, the skill's."""
        if self.failed or math.isnan(self.loss):
            return math.inf
        if self.comparable:
            return self.loss / reference if reference > 0 else math.inf
        if self.skill is not None:
            return self.skill.relative if math.isfinite(self.skill.relative) else math.inf
        return self.loss / self.run.losses[0] if self.run.losses[0] > 0 else math.inf


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
