"""How strong the regularization is, and whether a training that fails with it learns without it."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from gradcheck.analysis.convergence import CLEAR_FALL, outcome, relative_decrease
from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.dependence import evaluating
from gradcheck.measure.checks.without_regularization import (
    DECAY,
    DROPOUT,
    OUTSIDE,
    PENALTY,
    SMOOTHING,
    Noise,
    answering,
    lift,
    recording,
    seen_noise,
    told,
    without_weights,
)
from gradcheck.measure.experiments import clearly_fallen
from gradcheck.training.clip import total_norm
from gradcheck.training.trainer import Trainer
from gradcheck.types.checks import Dropout, Penalty
from gradcheck.types.training import Regularization, Run
from gradcheck.workload.lockstep import now
from gradcheck.workload.rng import seed_all
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.training_copy import TrainingCopy, restored, some_samples

SAMPLES = 16  # of a batch, where one look is enough
BATCHES = 4  # that a loss is averaged over
WEAK_FALL = 0.3  # a probe whose loss fell less is looked at again
# Strong enough to be worth a training without it: all of these are unusual in trainings that work.
RATE = 0.3  # of dropout
LOUD_RATE = 0.5
DECAY_STEPS = 500  # time in which weight decay alone shrinks a weight by e
SHARE = 0.3  # of a penalty, of the data's loss
SMOOTHED = 0.4
# And those that are lifted along with the strong ones.
SOME_RATE, SOME_STEPS = 0.1, 5000
LEAST_STEPS = 100
LONGER = 3


@dataclass(frozen=True)
class Strengths:
    """What can be lifted: the strong kinds, and all of them."""

    strong: tuple[str, ...]
    all: tuple[str, ...]


def regularization(context: CheckContext) -> Regularization | None:
    """None when the training step is not regularized at all."""
    batch = some_samples(context.workload, SAMPLES)
    with restored(context.trained):
        seed_all(context.seed)
        dropouts, smoothing = seen_noise(context.trained, batch, lambda name: context.sites.get(name))
        penalized = _penalizes(context.trained, batch)
    decays = any(group.get("weight_decay") for group in context.trained.optimizer.param_groups)
    if not (dropouts or smoothing or penalized or decays):
        return None
    penalty = _penalty(context.fork(), batch) if penalized else None
    result = _staying(context, batch, Regularization(dropouts, penalty, smoothing))
    weighty = penalty is not None and penalty.value > SHARE * penalty.data
    failed = outcome(context.probe, context.chance) in ("stalls", "diverges")
    if not weighty and not failed and relative_decrease(context.probe, context.chance) >= WEAK_FALL:
        return result
    kinds = _strengths(context, dropouts, penalty, smoothing, batch)
    if not kinds.strong:
        return result
    chance = None if penalty is not None else context.chance
    start = _data_loss(context, context.fork(), penalty is not None)
    with restored(context.trained):
        trained = _data_loss(context, context.trained, penalty is not None)
    reference = start if chance is None else min(start, chance)
    learned = trained < (1 - CLEAR_FALL) * reference
    if not learned and not failed:  # the probe was ended early, since the penalty fell
        trained = _trained_longer(context)
        learned = trained < (1 - CLEAR_FALL) * reference
    result = replace(result, kinds=kinds.strong, start_loss=start, trained_loss=trained, chance=chance)
    if learned:
        if failed and max((d.rate for d in dropouts), default=0.0) > LOUD_RATE:  # learned behind the noise, but how slowly?
            return replace(result, runs=(_without(context, (DROPOUT,), chance),))
        return result
    return replace(result, runs=tuple(_runs(context, kinds, chance)))


def _staying(context: CheckContext, batch: Any, found: Regularization) -> Regularization:
    """With the dropouts of the model that evaluation mode does not switch off, and what they do to the loss there."""
    if not any(":" in d.layer for d in found.dropouts):
        return found
    copy, batches = context.trained, context.workload.batches[:BATCHES]
    with evaluating(copy), torch.no_grad():
        seed_all(context.seed)
        seen, _ = seen_noise(copy, batch, lambda _: None)
        own = [d for d in seen if d.site is not None and d.site.detail is None]  # in a package (Keras), an argument may have said so
        staying = tuple(d for d in own if d.layer.partition(":")[0] != OUTSIDE and not told(d.site))
        if not staying:
            return found
        noisy = fmean(float(copy.loss(batch)) for batch in batches)
        with Noise((DROPOUT,)):
            quiet = fmean(float(copy.loss(batch)) for batch in batches)
    return replace(found, staying=staying, staying_loss=noisy, quiet_loss=quiet)


# ------------------------------------------------------------------- what there is


def _plain(outputs: Sequence[Any]) -> bool:
    """Whether the outputs' graphs could be cut: no objects of the user that hide tensors."""
    return bool(outputs) and all(isinstance(o, (torch.Tensor, dict, list, tuple)) and any(True for _ in tensors_of(o)) for o in outputs)


def _answers(copy: TrainingCopy, batch: Any) -> list[Any]:
    outputs: list[Any] = []
    with torch.no_grad(), recording(copy.model, outputs):
        copy.loss(batch)
    return outputs if _plain(outputs) else []


def _penalizes(copy: TrainingCopy, batch: Any) -> bool:
    """Whether the loss depends on weights other than through the model's output."""
    outputs = _answers(copy, batch)
    if not outputs:
        return False
    with answering(copy.model, outputs):
        return copy.loss(batch).requires_grad


def _penalty(copy: TrainingCopy, batch: Any) -> Penalty | None:
    """The penalty on the weights at the start; None if it is not a sum of powers 1 to 2 of them."""
    outputs = _answers(copy, batch)
    parameters = [p for p in copy.model.parameters() if p.requires_grad]
    with answering(copy.model, outputs):
        fixed = copy.loss(batch)
    data = float(without_weights(copy.training_step, copy.model, batch, outputs))
    value = float(fixed.detach()) - data
    gradients = torch.autograd.grad(fixed, parameters, allow_unused=True)
    product = sum(float((g * p.detach()).sum()) for g, p in zip(gradients, parameters, strict=True) if g is not None)
    degree = product / value if value > 0 else math.nan
    return Penalty(value, data, degree) if 0.9 <= degree <= 2.1 else None


def _strengths(context: CheckContext, dropouts: Sequence[Dropout], penalty: Penalty | None, smoothing: float, batch: Any) -> Strengths:
    rate = max((d.rate for d in dropouts), default=0.0)
    groups = context.trained.optimizer.param_groups
    speed = max((float(g.get("lr") or 0.0) * float(g.get("weight_decay") or 0.0) for g in groups), default=0.0)
    strong = {
        DROPOUT: rate >= RATE,
        DECAY: speed * DECAY_STEPS > 1 or _decay_outweighs(context.fork(), batch),
        PENALTY: penalty is not None and penalty.value > SHARE * penalty.data,
        SMOOTHING: smoothing >= SMOOTHED,
    }
    some = strong | {
        DROPOUT: rate >= SOME_RATE,
        DECAY: strong[DECAY] or speed * SOME_STEPS > 1,
        PENALTY: penalty is not None,
        SMOOTHING: smoothing > 0,
    }
    return Strengths(tuple(k for k, is_so in strong.items() if is_so), tuple(k for k, is_so in some.items() if is_so))


def _decay_outweighs(copy: TrainingCopy, batch: Any) -> bool:
    """Whether decay that is added to the gradient is larger than the gradient."""
    decay = max((float(g.get("weight_decay") or 0.0) for g in copy.optimizer.param_groups), default=0.0)
    decoupled = copy.optimizer.param_groups[0].get("decoupled_weight_decay", False)
    if not decay or decoupled:
        return False
    copy.loss(batch).backward()
    size = math.sqrt(sum(float(p.detach().norm()) ** 2 for p in copy.model.parameters()))
    return decay * size > total_norm(copy.model.parameters())


def _data_loss(context: CheckContext, copy: TrainingCopy, penalized: bool) -> float:
    """Mean loss over some batches: without dropout and penalty, labels not smoothed, normalization as in training."""
    step = copy.training_step
    drops = [(m, m.dropout) for m in copy.model.modules() if isinstance(m, (nn.MultiheadAttention, nn.RNNBase))]
    try:
        lift(copy, (DROPOUT, SMOOTHING, *([PENALTY] if penalized else [])))
        seed_all(context.seed)
        with torch.no_grad():
            return fmean(float(copy.loss(batch)) for batch in context.workload.batches[:BATCHES])
    finally:
        copy.training_step = step
        for module, rate in drops:
            module.dropout = rate


def _trained_longer(context: CheckContext) -> float:
    """The data's loss after a training like the user's, penalty included, of three times the probe's length."""
    training = Trainer(context.fork(), context.workload.batches)
    training.train(LONGER * len(context.probe.losses), context.deadline, norms=False)
    return _data_loss(context, training.copy, True)


# ------------------------------------------------------------------ trainings without


def _runs(context: CheckContext, kinds: Strengths, chance: float | None) -> Iterator[Run]:
    """Each strong kind lifted alone, then all together when none of them was it. A penalty hides the loss, so it is lifted first."""
    alone = [PENALTY] if PENALTY in kinds.strong else list(kinds.strong)
    learned = False
    for kind in alone:
        if context.late:
            return
        run = _without(context, (kind,), chance)
        learned |= outcome(run, chance) == "learns" and relative_decrease(run, chance) >= CLEAR_FALL
        yield run
    if not learned and len(kinds.all) > 1 and not context.late:
        yield _without(context, kinds.all, chance)


def _without(context: CheckContext, kinds: Collection[str], chance: float | None) -> Run:
    copy = context.fork()
    lift(copy, kinds)
    batches = context.workload.batches
    training = Trainer(copy, batches)
    steps = max(len(context.probe.losses), LEAST_STEPS)
    enough = lambda losses: clearly_fallen(losses, len(batches), chance)  # noqa: E731
    training.train(steps, max(context.deadline, now()), norms=False, enough=enough)
    return training.record(f"without {' and '.join(kinds)}", lifted=tuple(kinds))
