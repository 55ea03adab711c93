"""The result of a training of a copy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradcheck.training.paired import training_loss
from gradcheck.training.skill import RelativeScore
from gradcheck.types.training import Run


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
