"""From the parts of a training to a Workload."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading.objective import decide_objective
from gradcheck.loading.synthesize import BATCHES, find_inputs, requested_inputs
from gradcheck.types.measurement import Assumption
from gradcheck.workload.batches import Data
from gradcheck.workload.borrowing import stand_in
from gradcheck.workload.device import place_module, place_optimizer
from gradcheck.workload.process_state import fewer_collections
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.step import Inputs, call
from gradcheck.workload.training_copy import set_mode
from gradcheck.workload.trial_pass import Parts, could_not_run, inputs_of, placed
from gradcheck.workload.workload import Batch, Workload

# Random inputs come from a stream of their own, apart from the one that weights are drawn from.
_INPUT_STREAM = 7919


def assemble(parts: Parts) -> Workload:
    """Raises TargetError when the model has nothing to train, runs on no input, or has no loss."""
    _refuse_without_parameters(parts.model)
    moved = place_module(parts.model, parts.device, parts.dtype)
    if isinstance(parts.loss, nn.Module):
        moved |= place_module(parts.loss, parts.device, parts.dtype)
    with preserve_rng(), fewer_collections(parts.model):
        data, output = _data(parts)
        val = [placed(parts, batch) for batch in parts.val.batches] if parts.val else []
        _initialize_lazy(parts, data)
        objective = decide_objective(parts, data, val, output)
    optimizer, said = parts.optimizer(parts.model)
    place_optimizer(optimizer, moved)
    return Workload(
        name=parts.name,
        model=parts.model,
        batches=objective.batches,
        training_step=objective.step,
        optimizer=optimizer,
        loss=objective.loss,
        val_batches=objective.val_batches,
        data_given=data.given,
        collated=data.collated,
        loss_given=parts.loss is not None or parts.step is not None,
        optimizer_given=parts.optimizer_given,
        assumptions=[*parts.said, *objective.said, said],
        device=parts.device,
    )


def _refuse_without_parameters(model: nn.Module) -> None:
    try:
        parameters, modules = list(model.parameters()), list(model.modules())
    except TypeError:  # what they return is no iterable
        parameters, modules = [], []
    if not modules or not all(isinstance(p, torch.Tensor) for p in parameters) or not all(isinstance(m, nn.Module) for m in modules):
        hint = "torch asks them, too: leave them to nn.Module"
        raise TargetError(f"parameters() or modules() of the model ({type(model).__name__}) return something else", hint=hint)
    if not any(p.requires_grad for p in parameters):
        what = "has no parameters" if not parameters else f"has no trainable parameters: all {len(parameters)} are frozen"
        hidden = "are its layers in a plain list or dict? use nn.ModuleList or nn.ModuleDict"
        hint = "set requires_grad on what is trained" if parameters else hidden
        raise TargetError(f"the model ({type(model).__name__}) {what}", hint=hint)


def _data(parts: Parts) -> tuple[Data, Any]:
    """The user's batches on the device, or two random ones, with the output for the first one."""
    if parts.data is not None:
        return replace(parts.data, batches=[placed(parts, batch) for batch in parts.data.batches]), None
    first, output = _INPUT_STREAM * (parts.seed + 1), None
    if parts.inputs:
        make, text = requested_inputs(parts.inputs, parts.model), f"--input {' '.join(parts.inputs)}"
        parts.said.append(Assumption("data", f"data: {BATCHES} batches of random numbers, {text}", given=True))
    else:
        own = (p.dtype for p in parts.model.parameters() if p.is_floating_point())
        parts = replace(parts, dtype=parts.dtype or next(own, None))
        with stand_in(parts.model, parts.model) as model:
            make, text, output = find_inputs(model, lambda inputs: placed(parts, inputs), first)
        parts.said.append(Assumption("data", f"no data given: {BATCHES} batches of random numbers, {text}, which the layers suggest"))
    batches = [placed(parts, _as_batch(make(torch.Generator().manual_seed(first + number)))) for number in range(BATCHES)]
    return Data(batches, text, given=False, loose_targets=True), output


def _as_batch(inputs: Inputs) -> Batch:
    return inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs


def is_lazy(model: nn.Module) -> bool:
    """Whether some of its layers have no sizes yet."""
    return any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers())))


def _initialize_lazy(parts: Parts, data: Data) -> None:
    """Gives lazy layers their sizes, in evaluation mode so that normalization statistics stay as they are."""
    if not is_lazy(parts.model):
        return
    modes = {module: module.training for module in parts.model.modules()}
    set_mode(parts.model, False)
    try:
        with torch.no_grad():
            call(parts.model, inputs_of(parts, data, data.batches[0]))
    except Exception as error:
        raise could_not_run(parts, data, error) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
