"""How well a trained copy predicts: accuracy, or explained variance, compared with a constant prediction; and the metrics of its task,
which scikit-learn computes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradcheck.errors import ConfigError
from gradcheck.instrument.loss_calls import LOSSES, SeenLoss, seen
from gradcheck.types.trial import Task
from gradcheck.workload.device import wide
from gradcheck.workload.step import classes_are_last, first_tensor, loss_name, run
from gradcheck.workload.step import run as forward
from gradcheck.workload.workload import Batch, TrainingStep, Workload

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


LOWER_IS_BETTER = frozenset({"MAE", "perplexity", "generalization gap", "validation loss", "training loss"})
MOST_CLASSES = 20  # whose own scores are given
_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "bceloss", "bcewithlogitsloss")

Array = npt.NDArray[Any]


def require_scikit_learn() -> None:
    """Raises ConfigError when the extra is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError("a trial needs scikit-learn, which is not installed", hint="pip install 'gradcheck[trial]'") from error


@dataclass(frozen=True)
class Predictions:
    """Outputs and targets of the validation batches, joined."""

    output: torch.Tensor
    target: torch.Tensor


@torch.no_grad()
def predictions(model: nn.Module, batches: Sequence[Batch]) -> Predictions | None:
    """The metrics of a model in evaluation mode; None when the batches do not give one target tensor for one output tensor."""
    outputs, targets = [], []
    for batch in batches:
        output, target = run(model, batch)
        if target is None and isinstance(batch, (tuple, list)) and len(batch) > 1:
            target = batch[-1]
        if not isinstance(target, torch.Tensor):
            return None
        prediction = first_tensor(output)
        outputs.append(prediction.movedim(-1, 1) if classes_are_last(prediction, target) else prediction)
        targets.append(target)
    try:
        return Predictions(torch.cat(outputs).float().cpu(), torch.cat(targets).cpu())
    except RuntimeError:  # batches of unequal trailing shapes
        return None


def task_of(workload: Workload, found: Predictions | None) -> Task:
    """Told from the loss and the shapes of outputs and targets; "other" when only the loss can be compared."""
    if found is None or workload.loss is None:
        return "other"
    output, target, name = found.output, found.target, loss_name(workload.loss).lower()
    whole = not (target.is_floating_point() or target.is_complex())
    if name in _BINARY:
        return "multilabel" if output.ndim > 1 and output.shape[1] > 1 else "binary"
    if whole and output.ndim >= 2 and target.ndim == output.ndim - 1 and output.shape[1] > 1:
        return "language" if target.ndim > 1 else "classification"
    return "regression" if output.numel() == target.numel() else "other"


def scores(task: Task, found: Predictions, loss: float, workload: Workload) -> dict[str, float]:
    """Metric -> value; {} where the output holds numbers that are not finite."""
    if not bool(torch.isfinite(found.output).all()):
        return {}
    compute: dict[Task, Callable[[], dict[str, float]]] = {
        "classification": lambda: _of_classes(found.target.numpy(), found.output.argmax(1).numpy()),
        "language": lambda: _of_tokens(found, loss),
        "binary": lambda: _of_classes(_whole(found.target), (found.output.reshape(-1) > _threshold(workload)).long().numpy()),
        "multilabel": lambda: _of_labels(found.target.numpy(), (found.output > _threshold(workload)).numpy()),
        "regression": lambda: _of_values(found),
    }
    return compute[task]() if task in compute else {}


def _whole(target: torch.Tensor) -> Array:
    return (target.reshape(-1) > 0.5).long().numpy()


def _threshold(workload: Workload) -> float:
    assert workload.loss is not None
    return 0.0 if "logits" in loss_name(workload.loss).lower() else 0.5


def _of_classes(target: Array, predicted: Array) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(target, predicted, average="macro", zero_division=0)
    result = {"accuracy": accuracy_score(target, predicted), "precision": precision, "recall": recall, "F1": f1}
    classes = np.unique(target)
    if len(classes) <= MOST_CLASSES:
        each = precision_recall_fscore_support(target, predicted, labels=classes, average=None, zero_division=0)[2]
        result |= {f"F1 of class {label}": value for label, value in zip(classes, each, strict=True)}
    return {name: float(value) for name, value in result.items()}


def _of_labels(target: Array, predicted: Array) -> dict[str, float]:
    from sklearn.metrics import f1_score

    wanted = target > 0.5
    return {"accuracy": float((wanted == predicted).mean()), "F1": float(f1_score(wanted, predicted, average="macro", zero_division=0))}


def _of_tokens(found: Predictions, loss: float) -> dict[str, float]:
    """Perplexity is exp(loss): the loss must be a mean cross entropy in nats."""
    counted = found.target != -100
    right = (found.output.argmax(1) == found.target) & counted
    return {"accuracy": float(right.sum() / counted.sum()), "perplexity": math.exp(min(loss, 700.0))}


def _of_values(found: Predictions) -> dict[str, float]:
    from sklearn.metrics import mean_absolute_error, r2_score

    target = found.target.reshape(len(found.target), -1).float().numpy()
    predicted = found.output.reshape(target.shape).numpy()
    return {"R2": float(r2_score(target, predicted)), "MAE": float(mean_absolute_error(target, predicted))}
