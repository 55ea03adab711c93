"""What a fix gives back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.training.clip import clip_gradients
from gradcheck.types.fix import Outcome
from gradcheck.types.report import Report
from gradcheck.workload.step import own_loss_of
from gradcheck.workload.treated import TreatedWorkload
from gradcheck.workload.workload import Batch


@dataclass
class Fixed:
    """A treated copy of the workload, and how it was found. Without any fix it is a plain copy.

    for batch in loader:
        x, y = fixed.prepare(batch)
        fixed.optimizer.zero_grad()
        fixed.loss(fixed.model(x), y).backward()
        fixed.clip(fixed.model.parameters())
        fixed.optimizer.step()
    """

    copy: TreatedWorkload | None  # None: a script was treated, and runs by itself
    report: Report  # of the untreated workload, with the outcomes
    after: Report | None  # a scan of the treated one; None: no fix was proposed, or there was no time
    source: SourcePlan | None  # the edits; None: the model was made of objects that have no file, or no fix was proposed
    why_no_source: str = ""
    interrupted: bool = False

    def _repr_html_(self) -> str:
        """What a notebook shows: the report, with what was tried and proved."""
        return self.report._repr_html_()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.report.outcomes

    @property
    def treated(self) -> TreatedWorkload:
        """Raises TargetError when there is no treated copy."""
        if self.copy is None:
            raise TargetError("of a script there is no treated copy", hint="write the edits, and run the script")
        return self.copy

    @property
    def model(self) -> nn.Module:
        return self.treated.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.treated.optimizer

    @property
    def loss(self) -> Callable[[Any, Any], torch.Tensor]:
        """`loss(output, target)`; for a model that computes its own loss, a function that reads it from the output."""
        return self.treated.workload.loss or _own_loss

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of a prepared batch: the user's `training_step` where one was given, else model and loss."""
        return self.treated.workload.training_step(model, batch)

    def clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clips the gradients before the optimizer's step; does nothing if neither the fix nor the user clips."""
        clip_gradients(self.treated.workload.clip, self.treated.model, parameters)

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the model and the loss should get it."""
        return self.treated.prepare(batch)


def _own_loss(output: Any, target: Any = None) -> torch.Tensor:
    found = own_loss_of(output)
    if found is None:
        raise TargetError("the model returned no loss of its own", hint="use fixed.training_step(fixed.model, batch)")
    return found
