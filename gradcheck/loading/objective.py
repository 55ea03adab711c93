"""The loss, and targets where the data have none: the user's, the model's own, or inferred from one forward pass."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading import infer
from gradcheck.loading.transformers_inputs import is_transformer, transformer_labels
from gradcheck.types.measurement import Assumption
from gradcheck.workload.batches import Data
from gradcheck.workload.borrowing import stand_in
from gradcheck.workload.step import (
    Loss,
    first_tensor,
    is_class_loss,
    is_torch_loss,
    loss_name,
    make_training_step,
    own_loss_of,
    takes_only_output,
)
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.training_copy import few_samples
from gradcheck.workload.trial_pass import Parts, as_tuple, forward_once, inputs_of, placed, split_batch, try_step
from gradcheck.workload.workload import Batch, TrainingStep

# Random targets come from their own stream, apart from those of weights and inputs.
_TARGET_STREAM = 104729
LARGE, FEW = 50_000_000, 2  # parameters, samples: a forward pass of 354 million on 8 times 128 tokens took 5 s on two cores


@dataclass(frozen=True)
class Objective:
    step: TrainingStep
    loss: Loss | None
    batches: list[Batch]
    val_batches: list[Batch]
    said: list[Assumption] = field(default_factory=list)


def decide_objective(parts: Parts, data: Data, val: list[Batch], output: Any) -> Objective:
    """`output`: that for the first batch, if known."""
    if parts.step is not None:
        try_step(parts, data, parts.step)
        return Objective(parts.step, None, data.batches, val)
    output = _first_output(parts, data) if output is None else output
    if parts.loss is not None:
        return _with_loss(parts, data, val, parts.loss, output)
    if own_loss_of(output) is not None:
        said = Assumption("loss", "loss: the model's own", given=True)
        return Objective(make_training_step(None), None, data.batches, val, [said])
    return _own_labels(parts, data, output) or _inferred(parts, data, val, output)


def _first_output(parts: Parts, data: Data) -> Any:
    """Of the model on the first batch. Where all that matters is that it runs, a large one gets a few samples of it."""
    batch = data.batches[0]
    large = sum(p.numel() for p in parts.model.parameters() if not nn.parameter.is_lazy(p)) >= LARGE
    if large and parts.loss is not None and data.given and not data.loose_targets and split_batch(parts, data, batch)[1] is not None:
        try:
            return forward_once(parts, data, few_samples(batch, FEW))
        except TargetError:  # perhaps it runs on whole batches only
            pass
    return forward_once(parts, data, batch, own_loss=parts.loss is None)


def _with_loss(parts: Parts, data: Data, val: list[Batch], loss: Loss, output: Any) -> Objective:
    """The user's loss; targets are invented when the data have none, and fitted when their file left dtype and shape open."""
    step, batches, said = make_training_step(loss), data.batches, []
    if takes_only_output(loss):
        return Objective(step, loss, batches, val)
    _, target = split_batch(parts, data, batches[0])
    if target is None and not (data.given and isinstance(batches[0], (tuple, list)) and len(batches[0]) > 1):
        prediction = first_tensor(output)
        first = next(tensors_of(batches[0]), None)
        if data.given and first is not None and first.is_floating_point() and first.shape == prediction.shape:
            batches = [_with_target(parts, data, b, next(tensors_of(b)).detach().clone()) for b in batches]
            said.append(Assumption("data", "the data have no targets: the input itself is the target, since the output has its shape"))
        else:
            outputs = [output if _shapes(b) == _shapes(batches[0]) else forward_once(parts, data, b) for b in batches]
            made = [infer.targets_for(loss_name(loss).lower(), first_tensor(o), _target_stream(parts, n)) for n, o in enumerate(outputs)]
            batches = [_with_target(parts, data, b, t) for b, t in zip(batches, made, strict=True)]
            said.append(Assumption("data", f"no targets given: random ones that {loss_name(loss)} accepts, fixed for each batch"))
        val = []
    elif data.loose_targets and is_torch_loss(loss) and not is_class_loss(loss) and isinstance(target, torch.Tensor):
        shape = first_tensor(output).shape
        fits = target.numel() == shape.numel()
        batches = [_fitted(b, shape, fits) for b in batches]
    return Objective(step, loss, batches, val, said)


def _fitted(batch: Batch, shape: torch.Size, fits: bool) -> Batch:
    """(x, y) of a data file with y as floating-point numbers, in the output's shape if it has as many."""
    if not isinstance(batch, tuple) or len(batch) != 2:
        return batch
    target = batch[1] if batch[1].is_floating_point() else batch[1].to(torch.get_default_dtype())
    return batch[0], target.reshape(-1, *shape[1:]) if fits else target


def _own_labels(parts: Parts, data: Data, output: Any) -> Objective | None:
    """Labels for a Transformers model that computes its loss from them."""
    if not is_transformer(parts.model) or not all(isinstance(b, dict) or hasattr(b, "keys") for b in data.batches):
        return None

    batches = []
    words = ""
    for number, batch in enumerate(data.batches):
        out = output if _shapes(batch) == _shapes(data.batches[0]) else forward_once(parts, data, batch)
        made = transformer_labels(parts.model, batch, out, _target_stream(parts, number))
        if made is None:
            return None
        batches.append({**batch, **placed(parts, made[0])})
        words = made[1]
    step = make_training_step(None)
    try:
        with stand_in(parts.model, parts.model) as model:
            step(model, batches[0])
    except Exception:  # the head needs other labels: use a loss on its outputs instead
        return None
    said = Assumption("loss", f"loss: the model's own, with {words}", given=data.given)
    return Objective(step, None, batches, [], [said])


def _inferred(parts: Parts, data: Data, val: list[Batch], output: Any) -> Objective:
    inputs, target = split_batch(parts, data, data.batches[0])
    prediction = first_tensor(output)
    if target is not None:
        chosen = infer.infer_loss(prediction, target)
        said = Assumption("loss", f"no loss given: {chosen.why}")
        return Objective(make_training_step(chosen.loss), chosen.loss, data.batches, val, [said])
    chosen = infer.invent_targets(prediction, as_tuple(inputs), data.given)
    batches = []
    for number, batch in enumerate(data.batches):
        alike = number == 0 or _shapes(batch) == _shapes(data.batches[0])  # then its output has the same shape
        out = prediction if alike else first_tensor(forward_once(parts, data, batch))
        here = infer.invent_targets(out, as_tuple(inputs_of(parts, data, batch)), data.given) if number else chosen
        make = here.targets or infer.random_values
        batches.append(_with_target(parts, data, batch, make(out.detach(), _target_stream(parts, number))))
    said = Assumption("loss", f"no loss given: {chosen.why}")
    return Objective(make_training_step(chosen.loss), chosen.loss, batches, [], [said])


def _shapes(batch: Batch) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_of(batch)]


def _with_target(parts: Parts, data: Data, batch: Batch, target: torch.Tensor) -> Batch:
    inputs: Any = split_batch(parts, data, batch)[0]
    if isinstance(inputs, tuple) and len(inputs) == 1 and not isinstance(inputs[0], (tuple, list, dict)):
        return inputs[0], target
    return inputs, target


def _target_stream(parts: Parts, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(_TARGET_STREAM * (parts.seed + 1) + number)
