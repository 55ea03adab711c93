"""A Workload from Python objects, which stay untouched."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading import optimizers
from gradcheck.loading.assemble import assemble, is_lazy
from gradcheck.loading.load import loss_or_step
from gradcheck.loading.models import unwrapped
from gradcheck.types.measurement import Assumption
from gradcheck.workload.batches import Data, collates, collect
from gradcheck.workload.copying import memo_for
from gradcheck.workload.device import choose_device, choose_dtype
from gradcheck.workload.losses import loss_by_name
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.sharding import class_of
from gradcheck.workload.source_sites import display_path, origin_of
from gradcheck.workload.step import make_user_step
from gradcheck.workload.training_copy import copy_training
from gradcheck.workload.trial_pass import Maker, Parts
from gradcheck.workload.workload import Batch, Workload


def from_objects(
    model: nn.Module,
    data: Any = None,
    *,
    loss: Callable[..., Any] | str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    val_data: Any = None,
    training_step: Callable[[nn.Module, Batch], Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batches: int = 32,
    seed: int = 0,
) -> Workload:
    """`data` is one batch or an iterable of batches; without it, random inputs are made up, with a note. Raises TargetError.

    The workload holds the caller's own model unless it must be moved, converted or sized: then it holds a copy.
    """
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"the model is a {type(model).__name__}, not a torch.nn.Module", hint="gradcheck.scan(model, data) takes an instance"
        )
    if loss is not None and training_step is not None:
        raise TargetError("loss and training_step exclude each other", hint="training_step(model, batch) returns the loss itself")
    inner, said = unwrapped(model)
    here = next((t.device for t in (*inner.parameters(), *inner.buffers())), torch.device("cpu"))
    there, wanted = choose_device(device) if device else here, choose_dtype(dtype)
    if there.type == here.type and there.index is None:
        there = here
    step = make_user_step(training_step) if training_step is not None else None
    judged: Any = loss_by_name(loss) if isinstance(loss, str) else loss
    if judged is not None:
        judged, step = loss_or_step(judged, "", "loss", [])
    if there != here or wanted is not None or is_lazy(inner):
        inner, optimizer, step, judged = copy_training(inner, optimizer, step, judged, memo_for(inner))
    with preserve_rng():
        parts = Parts(
            name=class_of(inner).__name__,
            model=inner,
            optimizer=_maker(optimizer),
            optimizer_given=optimizer is not None,
            device=there,
            data=Data(collect(data, batches, seed, "data"), "data", collated=collates(data)) if data is not None else None,
            loss=judged,
            step=step,
            val=Data(collect(val_data, batches, seed, "val_data"), "val_data") if val_data is not None else None,
            dtype=wanted,
            seed=seed,
            said=said,
        )
        workload = assemble(parts)
    workload.files = _files_of(inner)
    return workload


def _maker(optimizer: torch.optim.Optimizer | None) -> Maker:
    if optimizer is None:
        return optimizers.assumed_optimizer(None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TargetError(f"the optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer", hint="pass an instance")
    text = f"optimizer: {type(optimizer).__name__}, lr {optimizers.rate_of(optimizer):g}"
    return lambda model: (optimizer, Assumption("optimizer", text, given=True))


def _files_of(model: nn.Module) -> tuple[str, ...]:
    """The user's files that define the classes of the model."""
    files: list[str] = []
    for kind in dict.fromkeys(map(class_of, model.modules())):
        try:
            file = inspect.getsourcefile(kind)
        except (TypeError, OSError):
            continue
        if file and origin_of(file) == "user":
            files.append(display_path(file))
    return tuple(dict.fromkeys(files))
