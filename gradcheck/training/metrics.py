"""Metrics of a trained copy on its validation batches, by the kind of task; scikit-learn computes them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gradcheck.errors import ConfigError
from gradcheck.types.trial import Task
from gradcheck.workload.step import classes_are_last, first_tensor, loss_name, run
from gradcheck.workload.workload import Batch, Workload

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
    output, target, name = found.output, found.target, loss_name(workload.loss)
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
    return 0.0 if "logits" in loss_name(workload.loss) else 0.5


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
