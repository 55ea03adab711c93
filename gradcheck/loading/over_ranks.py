"""The workloads of all processes of a distributed training, joined: their batches of a step become one, as they are for the training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from gradcheck.types.measurement import Assumption
from gradcheck.workload.lockstep import agreed, everyone
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.treated import Inapplicable, joined, replaced
from gradcheck.workload.workload import Batch, Workload

Tensors = list[torch.Tensor]  # of one batch
NEAR = 0.2  # relative distance of the loss of joined batches from the mean of the ranks' own, which dropout and batch norms leave

FirstLoss = Callable[[Workload], float]


def over_ranks(workload: Workload, first_loss: FirstLoss | None = None) -> tuple[Workload, int]:
    """The same workload with the batches of all ranks that are in step, on each of them; and how many are the same on all, with the
    same losses: 0 unless all are. Raises OutOfStep.

    `first_loss`: computes that of a workload whose step was made for batches of one rank; it must come near the ranks' own.
    """
    said = everyone(([_on_cpu(b) for b in workload.batches], [_on_cpu(b) for b in workload.val_batches], list(workload.own_losses)))
    steps = min(len(losses) for _, _, losses in said)
    own = [math.fsum(losses[i] for _, _, losses in said) / len(said) for i in range(steps)]
    batches, how = _together(workload, [batches for batches, _, _ in said])
    validation, _ = _together(replace(workload, batches=workload.val_batches), [x for _, x, _ in said])
    whole = replace(workload, batches=batches, val_batches=validation, own_losses=own)
    if first_loss is not None and how == JOINED and not _near(whole, first_loss):
        whole.batches = [_with_tensors(workload, b, i) for i, b in enumerate(said[0][0][: len(batches)])]
        how = f"{OF_RANK_0}, since the step computes a different loss when they are joined"
    whole.assumptions = [*workload.assumptions, Assumption("ranks", f"{len(said)} processes train together: {how}", given=True)]
    alike = how == SAME and (_draws(workload.model) or all(losses[:steps] == said[0][2][:steps] for _, _, losses in said))
    return whole, len(batches) if alike else 0


def _draws(model: nn.Module) -> bool:
    """Whether the losses of two passes differ by chance."""
    return any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules())


SAME = "each has the same batches"
JOINED = "their batches of a step are measured as one"
OF_RANK_0 = "the batches of rank 0 are measured"


def _near(whole: Workload, first_loss: FirstLoss) -> bool:
    try:
        value = first_loss(whole)
    except Exception:  # the step may take batches of one size only
        value = math.nan
    wanted = whole.own_losses[0] if whole.own_losses else value
    return agreed(abs(value - wanted) <= NEAR * abs(wanted))


def _on_cpu(batch: Batch) -> Tensors:
    return [t.detach().cpu() for t in tensors_of(batch)]


def _together(workload: Workload, of_ranks: Sequence[Sequence[Tensors]]) -> tuple[list[Batch], str]:
    """One batch for each step, and how it was made."""
    first, steps = of_ranks[0], min(map(len, of_ranks))
    different = list[Sequence[Tensors]]()  # under tensor parallelism, several ranks have the same ones
    for batches in of_ranks:
        if not any(_equal(batches, known) for known in different):
            different.append(batches)
    if len(different) == 1:
        found, how = list(first), SAME
    else:
        try:
            found, how = [joined([batches[i] for batches in different]) for i in range(steps)], JOINED
        except Inapplicable as why:
            found, how = list(first[:steps]), f"{OF_RANK_0}, since {why}"
    return [_with_tensors(workload, tensors, i) for i, tensors in enumerate(found[: len(workload.batches)])], how


def _with_tensors(workload: Workload, tensors: Tensors, step: int) -> Batch:
    """This rank's batch of a step with other tensors."""
    return replaced(workload.batches[step], {i: t.to(workload.device) for i, t in enumerate(tensors)})


def _equal(one: Sequence[Tensors], other: Sequence[Tensors]) -> bool:
    return len(one) == len(other) and all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True))
