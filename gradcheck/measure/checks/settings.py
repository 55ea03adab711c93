"""Checks of the optimizer's settings: the first step in function space, Adam's epsilon, the clipping of gradients."""

import re
from typing import Any

import torch
from torch import nn

from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.without_regularization import recording
from gradcheck.measure.facts import is_adaptive
from gradcheck.training.trainer import Trainer, needs_closure, take_step
from gradcheck.types.checks import Clip
from gradcheck.types.training import Run
from gradcheck.workload.device import wide
from gradcheck.workload.rng import seed_all
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.training_copy import TrainingCopy, restored, some_samples

SAMPLES = 32
LEAST_SPREAD = 0.1  # of the output: without it, a model that starts at zero would move infinitely far
USUAL_EPSILON, LARGE_EPSILON = 1e-8, 1e-6
COMPARED_STEPS = 100
SETTLED = 20  # steps before which clipping does not count

# Those that add epsilon to the root of the mean squared gradient.
_EPSILON_OF_GRADIENT = re.compile(r"adam|adamax|rms|radam|nadam|adabelief|lamb|yogi", re.IGNORECASE)


def functional_step(context: CheckContext) -> float | None:
    """How far the first update moves the output: rms(change) / max(std(output), 0.1). None unless the user chose an adaptive optimizer."""
    optimizer = context.workload.optimizer
    if not context.workload.optimizer_given or not is_adaptive(optimizer) or needs_closure(optimizer):
        return None
    copy = context.fork()
    batch = some_samples(context.workload, SAMPLES)
    seed_all(context.seed)
    before, loss = _output(copy, batch)
    copy.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    take_step(copy, batch)
    seed_all(context.seed)  # the same dropout
    with torch.no_grad():
        after, _ = _output(copy, batch)
    spread = before.std(correction=0).item()
    return (after - before).square().mean().sqrt().item() / max(spread, LEAST_SPREAD)


def _output(copy: TrainingCopy, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The first floating-point tensor of what the model returns that is more than a number, and the loss."""
    outputs: list[Any] = []
    with recording(copy.model, outputs):
        loss = copy.loss(batch)
    found = (t for output in outputs for t in tensors_of(output) if t.is_floating_point() and t.numel() > 1)
    output = next(found, None)
    if output is None:
        raise Unmeasured("the training step does not call the model as a whole, or gets no tensor from it")
    return output.float(), loss


def small_epsilon(context: CheckContext) -> Run | None:
    """The probe again with epsilon 1e-8; None unless the user's is much larger."""
    groups = context.trained.optimizer.param_groups
    epsilons = [g["eps"] for g in groups if isinstance(g.get("eps"), float)]
    if not epsilons or max(epsilons) < LARGE_EPSILON or not _EPSILON_OF_GRADIENT.search(type(context.trained.optimizer).__name__):
        return None
    copy = context.fork()
    for group in copy.optimizer.param_groups:
        group["eps"] = USUAL_EPSILON
    training = Trainer(copy, context.workload.batches)
    training.train(min(COMPARED_STEPS, len(context.probe.losses)), context.deadline, norms=False)
    return training.record(f"epsilon {USUAL_EPSILON:g}")


def clipping(context: CheckContext) -> Clip | None:
    """How often the user's clipping acted in the probe, or, by value, on how much of the gradients; None when there is none."""
    given = context.workload.clip
    if given is None:
        return None
    if given.kind == "norm":
        norms = context.probe.gradient_norms[SETTLED:]
        share = sum(n > given.threshold for n in norms) / len(norms) if norms else None
        return Clip("norm", given.threshold, share, site=given.site)
    if given.kind == "adaptive":
        return Clip("adaptive", given.threshold, site=given.site)
    first = _clipped_by_value(context.fork(), context.workload.batches[0], given.threshold)
    with restored(context.trained):
        last = _clipped_by_value(context.trained, context.workload.batches[-1], given.threshold)
    return Clip("value", given.threshold, None, (first[0] + last[0]) / 2, (first[1] + last[1]) / 2, given.site)


def _clipped_by_value(copy: TrainingCopy, batch: Any, threshold: float) -> tuple[float, float]:
    """Share of the gradient's entries beyond the threshold, and the cosine of the clipped gradient with the whole one."""
    copy.optimizer.zero_grad(set_to_none=True)
    copy.loss(batch).backward()
    gradients = [wide(p.grad.detach()).reshape(-1) for p in _parameters(copy.model) if p.grad is not None and not p.grad.is_sparse]
    if not gradients:
        raise Unmeasured("there are no gradients, or all of them are sparse")
    whole = torch.cat(gradients)
    cut = whole.clamp(-threshold, threshold)
    cosine = torch.nn.functional.cosine_similarity(whole, cut, dim=0).item() if bool(whole.any()) else 1.0
    return wide(whole.abs() > threshold).mean().item(), cosine


def _parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if not p.is_complex()]
