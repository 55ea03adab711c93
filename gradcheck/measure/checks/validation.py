"""Training against validation loss, of the trained copy in evaluation mode; and how well a linear model fits the same data."""

import math
from collections.abc import Collection, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.analysis.convergence import outcome
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.training.trainer import Trainer
from gradcheck.types.checks import Baseline, Validation
from gradcheck.workload.lockstep import now
from gradcheck.workload.rng import preserve_rng, seed_all
from gradcheck.workload.tensors import batch_size, named_tensors
from gradcheck.workload.training_copy import TrainingCopy, cut, is_divisible, restored, set_mode

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


MOST_SAMPLES = 1200
FEWEST_ROWS = 100
MOST_FEATURES = 20_000
MOST_VALUES = 512  # of a whole-number input, which becomes one column a value
MOST_CLASSES = 1000
PENALTIES = (1e-3, 1e-1, 1e1)  # of the mean squared norm of a sample
SHARES = (0.6, 0.8)  # the first part fits, the second chooses the penalty, the rest judges


@torch.no_grad()
def baseline(context: CheckContext) -> Baseline | None:
    """Ridge regression of the targets on the flattened inputs, judged on samples that it has not seen; None when the probe learned.

    Raises Unmeasured when inputs or targets cannot be laid out as a table of at least FEWEST_ROWS different samples.
    """
    if outcome(context.probe, context.chance) not in ("stalls", "diverges"):
        return None
    if not context.targets:
        raise Unmeasured("the loss takes no tensor of the batch as its target")
    x, y = table(context.workload.batches, context.targets, context.workload.inputs)
    generator = torch.Generator().manual_seed(context.seed)
    order = torch.randperm(len(x), generator=generator, device="cpu")[:MOST_SAMPLES]
    x, y = x[order], y[order]
    shuffled = y[torch.randperm(len(y), generator=generator, device="cpu")]
    return Baseline(explained(x, y), explained(x, shuffled), len(x), x.shape[1])


def explained(x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of the variance of y [N, K] that ridge regression on x [N, F] explains on the last fifth of the samples.

    The dual form: with K = X X', predictions are K* (K + penalty I)^-1 Y.
    """
    fit, choose = (int(share * len(x)) for share in SHARES)
    mean, target_mean = x[:fit].mean(0), y[:fit].mean(0)
    x, y = x - mean, y - target_mean
    kernel = x @ x[:fit].T
    size = float(kernel[:fit].diagonal().mean()) or 1.0
    best, result = -float("inf"), 0.0
    for penalty in PENALTIES:
        weights = torch.linalg.solve(kernel[:fit] + penalty * size * torch.eye(fit, dtype=x.dtype, device="cpu"), y[:fit])
        skill = _skill(kernel[fit:choose] @ weights, y[fit:choose])
        if skill > best:
            best, result = skill, _skill(kernel[choose:] @ weights, y[choose:])
    return result


def _skill(predicted: torch.Tensor, y: torch.Tensor) -> float:
    return float(1 - (predicted - y).square().sum() / (y - y.mean(0)).square().sum().clamp_min(1e-12))


def table(
    batches: Sequence[object], targets: Sequence[torch.Tensor], names: Collection[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x [N, F], y [N, K]) in float64, equal samples once. A label for each token makes each token a sample. `names`: of the inputs."""
    places = {id(t) for t in targets}
    rows: list[torch.Tensor] = []
    for batch, target in zip(batches, targets, strict=False):
        given = [(name, t) for name, t in named_tensors(batch) if names is None or name in names]
        inputs = [t for _, t in given if id(t) not in places] or [target]
        rows.append(_features(inputs, target))
    if len({r.shape[1] for r in rows}) > 1:
        raise Unmeasured("the inputs of the batches differ in length")
    x, y = torch.cat(rows), torch.cat([_answers(t) for t in targets[: len(rows)]])
    if len(x) != len(y):
        raise Unmeasured("inputs and targets differ in their number of samples")
    if y.shape[1] == 1 and not targets[0].is_floating_point():
        classes = int(y.max()) + 1
        known = y[:, 0] >= 0  # negative labels are ignored ones
        x, y = x[known], y[known]
        if not 2 <= classes <= MOST_CLASSES:
            raise Unmeasured(f"a linear model of {classes} classes says nothing")
        y = F.one_hot(y[:, 0].long(), classes).double()
    if not targets[0].is_floating_point() and targets[0].dim() == 2:
        return _finite(x, y)
    _, first = _unique_rows(x)
    return _finite(x[first], y[first])


def _finite(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    good = x.isfinite().all(1) & y.isfinite().all(1)
    if int(good.sum()) < FEWEST_ROWS:
        raise Unmeasured(f"the batches hold fewer than {FEWEST_ROWS} different samples")
    return x[good], y[good]


def _features(inputs: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    columns = []
    for tensor in inputs:
        tensor = tensor.detach().cpu()
        per_token = not target.is_floating_point() and target.dim() == 2 and tensor.shape[:2] == target.shape
        lead = 2 if per_token else 1
        if tensor.dim() < 1 or tensor.shape[0] != target.shape[0]:
            continue
        if not tensor.is_floating_point() and not tensor.is_complex():
            low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 0)
            if low < 0 or high >= MOST_VALUES:
                raise Unmeasured(f"an input holds whole numbers up to {high}, too many for a linear model")
            tensor = F.one_hot(tensor.long(), MOST_VALUES if high > 64 else 64)
        columns.append(tensor.reshape(-1, *tensor.shape[lead:]).flatten(1) if per_token else tensor.flatten(1))
    if not columns:
        raise Unmeasured("no input has a row for each target")
    x = torch.cat([c.double() for c in columns if len(c) == len(columns[0])], 1)
    if x.shape[1] > MOST_FEATURES:
        x = x[:, torch.linspace(0, x.shape[1] - 1, MOST_FEATURES, device="cpu").long()]
    return x


def _answers(target: torch.Tensor) -> torch.Tensor:
    target = target.detach().cpu()
    return (target.flatten(1) if target.is_floating_point() and target.dim() > 1 else target.reshape(-1, 1)).double()


def _unique_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The different rows of x, told by a random projection, and the place of the first of each, in their order."""
    key = x @ torch.randn(x.shape[1], dtype=x.dtype, generator=torch.Generator().manual_seed(0), device="cpu")
    _, where = torch.unique(key, return_inverse=True)
    places = torch.full((int(where.max()) + 1,), len(x), device="cpu")
    first = places.scatter_reduce(0, where, torch.arange(len(x), device="cpu"), "amin").sort().values
    return x[first], first
