"""The parts of a training, and one trial forward pass of them on a copy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.types.measurement import Assumption
from gradcheck.workload.batches import Data
from gradcheck.workload.borrowing import stand_in
from gradcheck.workload.device import place_batch
from gradcheck.workload.source_sites import failure
from gradcheck.workload.step import Inputs, Loss, call, forward_of, split
from gradcheck.workload.tensors import tensors_of
from gradcheck.workload.training_copy import set_mode
from gradcheck.workload.workload import Batch, TrainingStep

# Builds the optimizer for the model that is measured; also says what it did.
Maker = Callable[[nn.Module], tuple[torch.optim.Optimizer, Assumption]]


@dataclass
class Parts:
    """The parts of a training that were found."""

    name: str
    model: nn.Module
    optimizer: Maker
    optimizer_given: bool
    device: torch.device
    data: Data | None = None
    inputs: Sequence[str] = ()  # shapes asked for with --input
    loss: Loss | None = None
    step: TrainingStep | None = None  # of the user; then there is no loss
    val: Data | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    said: list[Assumption] = field(default_factory=list)


def placed(parts: Parts, batch: Batch) -> Batch:
    return place_batch(batch, parts.device, parts.dtype)


def inputs_of(parts: Parts, data: Data, batch: Batch, own_loss: bool = False) -> Inputs:
    """Random inputs are all inputs; of the user's batches one may be the target."""
    if not data.given and isinstance(batch, tuple):
        return batch
    return split(batch, parts.model, own_loss=own_loss)[0]


def split_batch(parts: Parts, data: Data, batch: Batch) -> tuple[Inputs, Any]:
    return (batch, None) if not data.given and isinstance(batch, tuple) else split(batch, parts.model)


def as_tuple(inputs: Inputs) -> tuple[Any, ...]:
    return tuple(inputs.values()) if isinstance(inputs, dict) else inputs


def forward_once(parts: Parts, data: Data, batch: Batch, own_loss: bool = False) -> Any:
    """Output of a copy of the model in training mode. Raises TargetError, at the user's line, when it does not run on the batch."""
    inputs = inputs_of(parts, data, batch, own_loss)
    with stand_in(parts.model, parts.model) as model:
        if not model.training:
            set_mode(model, True)
        try:
            return call(model, inputs)
        except ValueError as error:
            if not refuses_the_batch(error):
                raise could_not_run(parts, data, error, inputs) from error
            set_mode(model, False)
            return call(model, inputs)
        except (TargetError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise could_not_run(parts, data, error, inputs) from error


def refuses_the_batch(error: Exception) -> bool:
    """Whether a batch normalization got a single value per feature: that is for a rule to report."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel when training")


class _Stop(BaseException):
    """Ends a trial step behind the model's forward pass. Not an Exception, so that the user's code does not catch it."""


def try_step(parts: Parts, data: Data, step: TrainingStep) -> None:
    """Runs the user's step on a copy up to the end of the model's first forward pass. What its loss raises is for the rules to judge."""
    with stand_in((parts.model, step), parts.model, unused=(parts.model,)) as (model, twin):
        if not model.training:
            set_mode(model, True)
        _try(parts, data, model, twin)


def _try(parts: Parts, data: Data, model: nn.Module, step: TrainingStep) -> None:
    def stop(*_: Any) -> None:
        raise _Stop

    try:
        handles = [model.register_forward_hook(stop)]
        if model is not parts.model:  # a step that calls the original by its global name must not run it, and so change it
            handles.append(parts.model.register_forward_pre_hook(stop, prepend=True))
    except RuntimeError:  # compiled modules take no hooks
        return
    try:
        step(model, data.batches[0])
    except (_Stop, KeyboardInterrupt) as ended:
        if isinstance(ended, KeyboardInterrupt):
            raise
    except TargetError:
        raise
    except Exception as error:
        if not refuses_the_batch(error):
            raise could_not_run(parts, data, error) from error
    finally:
        for handle in handles:
            handle.remove()


def could_not_run(parts: Parts, data: Data, error: BaseException, inputs: Inputs | None = None) -> TargetError:
    shown = as_tuple(inputs) if inputs is not None else (data.batches[0],)
    shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensors_of(list(shown)))
    forward = forward_of(parts.model)
    wanted = len(forward.required)
    advice = "pass other data" if data.given else "pass another --input, or data"
    takes = f"; its forward method needs {wanted} arguments" if isinstance(error, TypeError) and wanted != len(shown) else ""
    if forward.keywords and not forward.positional and not forward.any_positional:
        takes = f"; its forward method takes its inputs by name only, as in --input '{forward.keywords[0]}=float32[4,8]'"
    hint = f"the input came from {data.source} ({shapes}){takes}; {advice}: the batch must be one that the model is trained on"
    return failure(f"{parts.name} could not run", error, hint=hint)
