"""What runs are compared by: losses in the units of the untreated target, or what is least where training has failed."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.measure.checks.balance import traded
from gradcheck.measure.checks.embeddings import is_embedding, outermost, spread_of
from gradcheck.remedies.loss.term_weight import kl_weight, stop_gradient
from gradcheck.types.checks import LossTerm
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.device import wide
from gradcheck.workload.step import call, first_tensor, split
from gradcheck.workload.treated import TreatedWorkload, replaced, target_index, tensor_at
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
        if fix.treatment == kl_weight.name and m.imbalance is not None:
            how = "the error, times e to twice the divergence for each of its entries (a cross entropy: plus the divergence)"
            pair = m.imbalance
            made = functools.partial(_Together, strong=pair.strong, weak=pair.weak)
            return Yardstick("error and divergence", made, f"{how}: the loss is least where the divergence wins")
        if fix.treatment == stop_gradient.name:
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


SAME = 1e-6  # relative difference below which targets count as untouched
FITTED = 1e-3  # and below which a straight line gives them back


def in_untreated_units(judge: TrainingStep, base: TreatedWorkload, treated: TreatedWorkload) -> TrainingStep:
    """`judge` on outputs and targets in the original units, where the remedy scaled the targets."""
    line = target_line(base.workload.batches, treated.workload.batches, base.model)
    return judge if line is None else functools.partial(_judge_on_line, judge, *line)


def target_line(before: Sequence[Batch], after: Sequence[Batch], model: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(slope, offset), one of each a target column, that give the targets back; None when they are as they were."""
    pair = _targets(before, model), _targets(after, model)
    if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
        return None
    old, new = wide(pair[0]), wide(pair[1])
    if float((old - new).abs().max()) <= SAME * float(old.abs().max() + 1e-12):
        return None
    centred = new - new.mean(0)
    slope = (centred * (old - old.mean(0))).sum(0) / (centred**2).sum(0).clamp_min(1e-30)
    offset = old.mean(0) - slope * new.mean(0)
    if float((slope * new + offset - old).abs().max()) > FITTED * float(old.std() + 1e-12):
        return None
    return slope.float(), offset.float()


def _targets(batches: Sequence[Batch], model: nn.Module) -> torch.Tensor | None:
    """[samples, columns]; None when they are not floating-point numbers."""
    found = []
    for batch in batches:
        index = target_index(batch, model)
        target = tensor_at(batch, index) if index is not None else None
        if target is None or not target.is_floating_point() or not target.ndim:
            return None
        found.append(target.detach().reshape(target.shape[0], -1))
    return torch.cat(found) if found and len({t.shape[1] for t in found}) == 1 else None


class _Answer(nn.Module):
    """Stands for the model: returns an output that is already known."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        return self.output


def _judge_on_line(judge: TrainingStep, slope: torch.Tensor, offset: torch.Tensor, model: nn.Module, batch: Batch) -> torch.Tensor:
    index = target_index(batch, model)
    assert index is not None
    output = first_tensor(call(model, split(batch, model)[0]))
    target = tensor_at(batch, index)
    shaped = [(slope.to(t) * t.reshape(t.shape[0], -1) + offset.to(t)).reshape(t.shape) for t in (output, target)]
    return judge(_Answer(shaped[0]), replaced(batch, {index: shaped[1]}))
