"""How well a linear model fits the same data: this distinguishes a model that cannot learn from data without anything to learn."""

from collections.abc import Collection, Sequence

import torch
from torch.nn import functional as F

from gradcheck.analysis.convergence import outcome
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.types.checks import Baseline
from gradcheck.workload.tensors import named_tensors

MOST_SAMPLES = 1200
FEWEST_SAMPLES = 100
MOST_FEATURES = 20_000
MOST_VALUES = 512  # of a whole-number input, which becomes one column a value
MOST_CLASSES = 1000
PENALTIES = (1e-3, 1e-1, 1e1)  # of the mean squared norm of a sample
SHARES = (0.6, 0.8)  # the first part fits, the second chooses the penalty, the rest judges


@torch.no_grad()
def baseline(context: CheckContext) -> Baseline | None:
    """Ridge regression of the targets on the flattened inputs, judged on samples that it has not seen; None when the probe learned.

    Raises Unmeasured when inputs or targets cannot be laid out as a table of at least FEWEST_SAMPLES different samples.
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
    if int(good.sum()) < FEWEST_SAMPLES:
        raise Unmeasured(f"the batches hold fewer than {FEWEST_SAMPLES} different samples")
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
