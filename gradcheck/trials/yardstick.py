"""What runs are compared by where the user's own loss cannot say which is better: it is least where the training has failed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.measure.checks.balance import traded
from gradcheck.measure.checks.embeddings import is_embedding, outermost, spread_of
from gradcheck.remedies.loss.stopped_gradient import STOP_GRADIENT
from gradcheck.remedies.loss.term_weight import KL_WEIGHT
from gradcheck.types.checks import LossTerm
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.workload import Batch, TrainingStep


@dataclass(frozen=True)
class Yardstick:
    """`made(step)`: the number that takes the place of the validation loss, from the untreated step; less is better."""

    name: str
    made: Callable[[TrainingStep], TrainingStep]
    said: str  # to the user


def yardstick_of(fixes: Iterable[Fix], m: Measurement) -> Yardstick | None:
    """For the first remedy that mends a loss by which a failed training looks best."""
    for fix in fixes:
        if fix.treatment == KL_WEIGHT.name and m.imbalance is not None:
            how = "the error, times e to twice the divergence for each of its entries (a cross entropy: plus the divergence)"
            pair = m.imbalance
            made = functools.partial(_Together, strong=pair.strong, weak=pair.weak)
            return Yardstick("error and divergence", made, f"{how}: the loss is least where the divergence wins")
        if fix.treatment == STOP_GRADIENT.name:
            how = "how far the normalised embeddings are from lying all around (0; one point: 1)"
            return Yardstick("lack of spread", _LackOfSpread, f"{how}: the loss is least where they are one point")
    return None


@dataclass(frozen=True)
class _Together:
    step: TrainingStep
    strong: LossTerm
    weak: LossTerm

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        found = traded(lambda: self.step(model, batch), self.strong, self.weak)
        return torch.tensor(found.together if found is not None else math.nan, device="cpu")


@dataclass(frozen=True)
class _LackOfSpread:
    step: TrainingStep

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        outputs: dict[int, list[torch.Tensor]] = {}

        def look(module: nn.Module, output: Any) -> Any:
            if is_embedding(output):
                outputs.setdefault(id(module), []).append(output)
            return output

        with outermost(look):
            self.step(model, batch)
        return torch.tensor(1 - min((spread_of(torch.cat(x)) for x in outputs.values()), default=0.0), device="cpu")
