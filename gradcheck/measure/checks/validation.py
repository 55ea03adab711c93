"""Training against validation loss, of the trained copy in evaluation mode."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.training.trainer import Trainer
from gradcheck.types.checks import Validation
from gradcheck.workload.lockstep import now
from gradcheck.workload.rng import preserve_rng, seed_all
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import TrainingCopy, cut, is_divisible, restored
from gradcheck.workload.training_mode import set_mode

MOST_BATCHES = 16  # of each side
PARTS = 16  # into which each side is cut at least, if it has the samples: the standard error is that of their mean
FEWEST_SAMPLES = 4  # in a part
CHECKPOINTS = 10  # points at which a training that ends with a gap is followed on the validation batches


def validation(context: CheckContext) -> Validation | None:
    """None when there are no validation batches."""
    batches = list(context.workload.val_batches[:MOST_BATCHES])
    if not batches:
        return None
    train, val = list(context.workload.batches[:MOST_BATCHES]), batches
    if is_divisible(context.workload):
        train, val = _parts(train), _parts(val)
    with restored(context.trained):
        on_train, on_val = (_losses(context.trained, parts, context.seed) for parts in (train, val))
    before = fmean(_losses(context.fork(), val, context.seed))
    error = math.hypot(_standard_error(on_train), _standard_error(on_val))
    gap = fmean(on_val) - fmean(on_train)
    lowest, step = _lowest(context, val, fmean(on_val)) if gap > 3 * error and not context.late else (None, None)
    return Validation(fmean(on_train), fmean(on_val), error, before, sum(batch_size(b) for b in batches), lowest, step)


def _lowest(context: CheckContext, val: Sequence[Any], end: float) -> tuple[float, int]:
    """The lowest validation loss on the way, and after how many steps: the probe's training again, evaluated now and then."""
    training, steps = Trainer(context.fork(), context.workload.batches), len(context.probe.losses)
    lowest, at = end, steps
    for checkpoint in sorted({max(1, round(steps * (i + 1) / (CHECKPOINTS + 1))) for i in range(CHECKPOINTS)}):
        training.train(checkpoint, max(context.deadline, now()), norms=False)
        if training.step < checkpoint:
            break
        with preserve_rng(), restored(training.copy):
            value = fmean(_losses(training.copy, val, context.seed))
        if value < lowest:
            lowest, at = value, checkpoint
    return lowest, at


def _losses(copy: TrainingCopy, parts: Sequence[Any], seed: int) -> list[float]:
    """Loss on each part, in evaluation mode. Raises Unmeasured when the training step gives none there."""
    set_mode(copy.model, False)
    seed_all(seed)
    values = []
    with torch.no_grad():
        for part in parts:
            try:
                values.append(float(copy.loss(part)))
            except Exception as error:
                raise Unmeasured("the training step raised an error in evaluation mode") from error
    return values


def _parts(batches: Sequence[Any]) -> list[Any]:
    """The batches, cut into smaller ones of equal size when they are few."""
    pieces = max(1, -(-PARTS // len(batches)))
    result: list[Any] = []
    for batch in batches:
        size = batch_size(batch)
        count = max(1, min(pieces, size // FEWEST_SAMPLES))
        each = size // count
        result += [cut(batch, size, slice(i * each, (i + 1) * each)) for i in range(count)] if count > 1 else [batch]
    return result


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
