"""How good batch normalization's running statistics are after the probe: the loss with them against the loss without."""

import math
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradcheck.instrument.recorded_calls import BATCH_NORMS, named
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.types.structure import Statistics
from gradcheck.workload.training_copy import restored, set_mode

BATCHES = 4  # of the probe's, at most


class _BatchNorms(TorchFunctionMode):
    """Batch normalizations in evaluation mode: recorded as they are, or run with the statistics of the batch."""

    def __init__(self, of_batch: bool) -> None:
        super().__init__()
        self.of_batch = of_batch
        self.shifts: list[float] = []  # running variance / variance of the input, the median over features, in order of calls
        self.running = 0  # calls that used running statistics

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in BATCH_NORMS:
            return function(*args, **kwargs or {})
        given = named(function, args, kwargs or {})
        mean, variance, x = given.get("running_mean"), given.get("running_var"), given["input"]
        running = mean is not None and not given["training"]
        self.running += running
        if self.of_batch and running and x.numel() > x.shape[1]:
            return torch.nn.functional.batch_norm(x, None, None, given["weight"], given["bias"], True, 0.0, given["eps"])
        if not self.of_batch:
            self.shifts.append(_shift(x, variance) if running and variance is not None else math.nan)
        return function(*args, **kwargs or {})


def _shift(x: torch.Tensor, running: torch.Tensor) -> float:
    here = x.detach().transpose(0, 1).flatten(1).var(1, correction=0)
    known = here > 1e-12 * here.max()
    return float((running[known] / here[known]).median()) if bool(known.any()) else math.nan


def statistics(context: CheckContext) -> Statistics | None:
    """Two forward passes per batch on the trained copy, which is left as it was. None without running statistics."""
    model = context.trained.model
    if not any(b.dim() == 1 for b in model.buffers()):
        return None
    evaluated: list[float] = []
    batch_wise: list[float] = []
    initial: list[float] = []
    shifts: list[list[float]] = []
    with restored(context.trained), torch.no_grad():
        set_mode(model, False)
        for batch in context.workload.batches[:BATCHES]:
            with _BatchNorms(of_batch=False) as seen:
                evaluated.append(float(context.trained.loss(batch)))
            if not seen.running:
                return None
            shifts.append(seen.shifts)
            with _BatchNorms(of_batch=True):
                batch_wise.append(float(context.trained.loss(batch)))
            if context.late:
                break
        _start_again(model, context.workload.model)
        for batch in context.workload.batches[: len(evaluated)]:
            initial.append(float(context.trained.loss(batch)))
    if not all(map(math.isfinite, batch_wise)):
        raise Unmeasured("the loss is NaN or infinite after the short training")
    same = len({len(s) for s in shifts}) == 1
    means = tuple(fmean(column) for column in zip(*shifts, strict=True)) if same else ()
    return Statistics(fmean(evaluated), fmean(batch_wise), means, fmean(initial))


def _start_again(model: nn.Module, start: nn.Module) -> None:
    """Gives the buffers the values that they had before training."""
    known = dict(start.named_buffers())
    for name, buffer in model.named_buffers():
        if name in known and known[name].shape == buffer.shape:
            buffer.copy_(known[name])
