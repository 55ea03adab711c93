"""How well a trained copy predicts: accuracy, or explained variance, compared with a constant prediction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradcheck.instrument.loss_calls import LOSSES, SeenLoss, seen
from gradcheck.workload.device import wide
from gradcheck.workload.step import first_tensor
from gradcheck.workload.step import run as forward
from gradcheck.workload.workload import Batch, TrainingStep

Score = tuple[str, float, float]  # metric, value, value of the best constant prediction

MOST_BATCHES = 8  # that accuracy and explained variance are taken over


@dataclass(frozen=True)
class RelativeScore:
    """Accuracy, or explained variance, of a trained copy on its training batches; `chance` is what a constant prediction has."""

    metric: str
    value: float
    chance: float

    @property
    def relative(self) -> float:
        """1: no better than a constant prediction; 0: perfect."""
        return (1 - self.value) / (1 - self.chance)


@torch.no_grad()
def skill(model: torch.nn.Module, batches: Sequence[Batch], step: TrainingStep | None = None) -> RelativeScore | None:
    """None if the targets are neither classes nor values of the prediction's size.

    `step`: shows output and target by the arguments of its loss function, where the model and the batch alone do not.
    """
    chosen = batches[:MOST_BATCHES]
    known = _known(_score_of_output(model, batch) for batch in chosen)
    if step is not None and len(known) < len(chosen):
        known = _known(_score_of_loss(model, batch, step) for batch in chosen)
    if not known or len(known) < len(chosen):
        return None
    metric, values, chances = known[0][0], [s[1] for s in known], [s[2] for s in known]
    chance = fmean(chances)
    return RelativeScore(metric, fmean(values), chance) if chance < 1 else None


class _LossArguments(TorchFunctionMode):
    """Records the arguments of every call of one of torch's loss functions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[SeenLoss] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in LOSSES and (call := seen(func, args, kwargs or {}, None)) is not None:
            self.seen.append(call)
        return func(*args, **(kwargs or {}))


def _known(scores: Iterable[Score | None]) -> list[Score]:
    """The values up to the first unknown one. The user's own code runs here; if it fails, only the loss is used."""
    try:
        return list(takewhile(lambda score: score is not None, scores))  # type: ignore[arg-type]
    except Exception:
        return []


def _score_of_output(model: torch.nn.Module, batch: Batch) -> Score | None:
    output, target = forward(model, batch)
    return _score(first_tensor(output), target)


def _score_of_loss(model: torch.nn.Module, batch: Batch, step: TrainingStep) -> Score | None:
    """Of a step that calls one loss function once."""
    with _LossArguments() as losses:
        step(model, batch)
    return _score(losses.seen[0].input, losses.seen[0].target) if len(losses.seen) == 1 else None


def _score(output: torch.Tensor, target: object) -> Score | None:
    """(metric, value, value of the best constant prediction) on one batch."""
    if not isinstance(target, torch.Tensor) or target.numel() == 0:
        return None
    output, target = wide(output.detach()), target.detach()
    if not bool(torch.isfinite(output).all()):
        return None
    binary = output.numel() == target.numel() and bool(((target == 0) | (target == 1)).all())
    if binary:
        limit = 0.5 if float(output.min()) >= 0 and float(output.max()) <= 1 else 0.0
        return _accuracy(output.reshape(-1) > limit, target.reshape(-1).bool())
    if not target.is_floating_point() and output.ndim == target.ndim + 1:
        axis = 1 if target.shape == (output.shape[0], *output.shape[2:]) else -1
        return _accuracy(output.argmax(axis).reshape(-1), target.reshape(-1))
    if output.shape == target.shape and output.ndim > 1 and _are_distributions(target):
        return _accuracy(output.argmax(1), target.argmax(1))
    if output.numel() == target.numel():
        wanted = wide(target).reshape(output.shape)
        variance = float(((wanted - wanted.mean(0)) ** 2).mean())
        return ("explained variance", 1 - float(((output - wanted) ** 2).mean()) / variance, 0.0) if variance > 0 else None
    return None


def _accuracy(predicted: torch.Tensor, target: torch.Tensor) -> Score:
    most = float(torch.unique(target, return_counts=True)[1].max()) / target.numel()
    return "accuracy", float(wide(predicted == target).mean()), most


def _are_distributions(target: torch.Tensor) -> bool:
    rows = target.sum(1)
    return bool((target >= 0).all()) and bool(torch.allclose(rows, torch.ones_like(rows), atol=1e-4))
