"""From what the user names to a Workload: model, data, loss and optimizer by flag, else by convention, else assumed with a note."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.instrument.initializers import Initializers
from gradcheck.loading import optimizers
from gradcheck.loading.assemble import assemble
from gradcheck.loading.data_files import SUFFIXES, read_data
from gradcheck.loading.importing import ImportSession, no_training, required_arguments, session, split_reference
from gradcheck.loading.models import FoundModel, find_model, unwrapped
from gradcheck.loading.optimizers import find_clipping
from gradcheck.loading.spec import TargetSpec
from gradcheck.types.measurement import Assumption
from gradcheck.workload.batches import Data, collates, collect
from gradcheck.workload.device import choose_device, choose_dtype
from gradcheck.workload.losses import loss_by_name
from gradcheck.workload.rng import seed_all
from gradcheck.workload.step import Loss, make_method_step, make_user_step
from gradcheck.workload.trial_pass import Maker, Parts
from gradcheck.workload.workload import TrainingStep, Workload


@dataclass(frozen=True)
class Outline:
    """`model` and the parameters of `optimizer` have shapes but no numbers; `draws` says how these would be drawn."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    optimizer_given: bool
    draws: Initializers
    said: tuple[Assumption, ...]
    files: tuple[str, ...]


def outline(spec: TargetSpec) -> Outline:
    """Raises TargetError if the file needs numbers to build its model."""
    home, name = split_reference(spec.target)
    draws = Initializers()
    with session(spec.seed) as current:
        try:
            with torch.device("meta"), draws:
                with nullcontext() if name else no_training(home):
                    module = current.open(home)
                found = find_model(module, home, name, spec.arguments, spec.seed)
                model, wrappers = unwrapped(found.model)
                maker, given = optimizer_of(spec, current, module, found, model, home)
                if spec.dtype is not None:
                    model.to(choose_dtype(spec.dtype))
                optimizer, said = maker(model)
        except TargetError as error:
            if "meta" not in error.message.lower():
                raise
            hint = "--init-only builds the model on torch's meta device: name a function that builds it from its configuration alone"
            raise TargetError(error.message, location=error.location, hint=hint) from error
        files = tuple(current.files)
    if not any(p.requires_grad for p in model.parameters()):
        raise TargetError(f"the model ({type(model).__name__}) has no trainable parameters", hint="set requires_grad on what is trained")
    return Outline(spec.target, model, optimizer, given, draws, (found.said, *wrappers, said), files)


DATA_NAMES = ("batch", "get_batch", "make_batch", "train_loader", "dataloader", "train_dataset", "batches")
VAL_NAMES = ("val_batch", "val_loader", "val_dataset")
LOSS_NAMES = ("loss_fn", "criterion", "compute_loss", "training_step")
OPTIMIZER_NAMES = ("optimizer", "make_optimizer", "configure_optimizers")
_MODEL_ARGUMENTS = ("model", "net", "network", "module")
# Data are drawn from a random stream of their own, not from the one that made the weights.
_DATA_STREAM = 1_000_003


def load(spec: TargetSpec) -> Workload:
    """Runs the user's file and assembles its training. Raises TargetError for everything that is unusable, with the next step."""
    device, dtype = choose_device(spec.device), choose_dtype(spec.dtype)
    home, name = split_reference(spec.target)
    with session(spec.seed) as current:
        with nullcontext() if name else no_training(home):
            module = current.open(home)
        found = find_model(module, home, name, spec.arguments, spec.seed)
        model, wrappers = unwrapped(found.model)
        said = [found.said, *wrappers]
        loss, step = _objective(spec, current, module, model, home, said)
        maker, given = optimizer_of(spec, current, module, found, model, home)
        parts = Parts(
            name=spec.target,
            model=model,
            optimizer=maker,
            optimizer_given=given,
            device=device,
            data=_data(spec, current, module, home, said),
            inputs=spec.inputs,
            loss=loss,
            step=step,
            val=_val_data(spec, current, module, home, said),
            dtype=dtype,
            seed=spec.seed,
            said=said,
        )
        if _is_scheduler(vars(module).get("scheduler")):
            said.append(Assumption("scheduler", f"`scheduler` in {home} is left out: the scan trains with a constant rate"))
        clip = find_clipping(module, home, said)
        workload = assemble(parts)
        sites = current.sites.living()
    return replace(workload, clip=clip, sites=sites, files=tuple(current.files), rebuild=lambda seed: load(replace(spec, seed=seed)))


def _data(spec: TargetSpec, current: ImportSession, module: ModuleType, home: str, said: list[Assumption]) -> Data | None:
    seed_all(spec.seed + _DATA_STREAM)
    if spec.data is not None and spec.inputs:
        raise TargetError("--data and --input exclude each other", hint="give the one that the model is to run on")
    if spec.inputs:
        return None
    if spec.data is not None:
        return _named_data(spec.data, "--data", spec, current, said)
    return _conventional_data(DATA_NAMES, "data", spec, module, home, said)


def _val_data(spec: TargetSpec, current: ImportSession, module: ModuleType, home: str, said: list[Assumption]) -> Data | None:
    if spec.val_data is not None:
        return _named_data(spec.val_data, "--val-data", spec, current, said)
    return _conventional_data(VAL_NAMES, "validation", spec, module, home, said)


def _conventional_data(
    names: tuple[str, ...], about: str, spec: TargetSpec, module: ModuleType, home: str, said: list[Assumption]
) -> Data | None:
    for name in names:
        value = vars(module).get(name)
        if value is None or isinstance(value, (ModuleType, nn.Module)):
            continue
        where = f"`{name}` in {home}"
        batches = collect(value, spec.batches, spec.seed, where, samples=name.endswith("dataset"))
        said.append(Assumption(about, f"{about}: {_count(batches)} from {where}", given=True))
        return Data(batches, where, collated=collates(value))
    return None


def _named_data(text: str, flag: str, spec: TargetSpec, current: ImportSession, said: list[Assumption]) -> Data:
    _, name = split_reference(text)
    if name and not text.endswith(SUFFIXES):
        value, _, _ = current.attribute(text)
        batches = collect(value, spec.batches, spec.seed, f"{flag} {text}", samples=name.endswith("dataset"))
        data = Data(batches, f"{flag} {text}", collated=collates(value))
    else:
        data = replace(read_data(text, spec.batches, spec.seed), source=f"{flag} {text}")
    about = "data" if flag == "--data" else "validation"
    said.append(Assumption(about, f"{about}: {_count(data.batches)} from {text}", given=True))
    return data


def _count(batches: list[Any]) -> str:
    return f"{len(batches)} batch{'es' if len(batches) != 1 else ''}"


def _objective(
    spec: TargetSpec, current: ImportSession, module: ModuleType, model: nn.Module, home: str, said: list[Assumption]
) -> tuple[Loss | None, TrainingStep | None]:
    """The user's loss(output, target), or the user's whole step; (None, None) when there is neither."""
    if spec.loss is not None:
        if ":" not in spec.loss:
            said.append(Assumption("loss", f"loss: {spec.loss}, as asked", given=True))
            return loss_by_name(spec.loss), None
        value, _, name = current.attribute(spec.loss)
        return loss_or_step(value, name, f"--loss {spec.loss}", said)
    for name in LOSS_NAMES:
        value = vars(module).get(name)
        if callable(value) and not isinstance(value, ModuleType):
            return loss_or_step(value, name, f"`{name}` in {home}", said)
    if callable(getattr(model, "training_step", None)) and callable(getattr(model, "configure_optimizers", None)):
        said.append(Assumption("loss", "loss: the model's own training_step", given=True))
        return None, make_method_step(model)
    return None, None


def loss_or_step(value: Any, name: str, where: str, said: list[Assumption]) -> tuple[Loss | None, TrainingStep | None]:
    if isinstance(value, type):
        try:
            value = value()
        except TypeError as error:
            raise TargetError(f"{where} is a class that needs arguments: {error}", hint="make an instance of it in the file") from error
    if not callable(value):
        raise TargetError(
            f"{where} is a {type(value).__name__}, not a loss", hint="give loss(output, target) or compute_loss(model, batch)"
        )
    said.append(Assumption("loss", f"loss: {where}", given=True))
    return (None, make_user_step(value)) if _takes_model(value, name) else (value, None)


def _takes_model(function: Callable[..., Any], name: str) -> bool:
    """Tells compute_loss(model, batch) from loss_fn(output, target) by the name of the first argument, else by that of the function."""
    if isinstance(function, nn.Module):
        return False
    try:
        arguments = [p.name for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return False
    if len(arguments) < 2:
        return False
    if arguments[0].lower() in _MODEL_ARGUMENTS:
        return True
    looks_like_loss = arguments[1].lower().startswith(("target", "label", "y"))
    return name in ("compute_loss", "training_step") and not looks_like_loss


def optimizer_of(
    spec: TargetSpec, current: ImportSession, module: ModuleType, found: FoundModel, model: nn.Module, home: str
) -> tuple[Maker, bool]:
    """(maker, whether the user said which optimizer)."""
    if spec.optimizer is not None:
        if ":" not in spec.optimizer:
            return optimizers.optimizer_by_name(spec.optimizer, spec.lr), True
        value, _, _ = current.attribute(spec.optimizer)
        return optimizers.given_optimizer(value, f"--optimizer {spec.optimizer}", spec.lr, found.built), True
    if found.optimizer is not None:
        return optimizers.given_optimizer(found.optimizer, f"{found.name}() in {home}", spec.lr, False), True
    for name in OPTIMIZER_NAMES:
        value = vars(module).get(name)
        if value is not None and not isinstance(value, ModuleType):
            return optimizers.given_optimizer(value, f"`{name}` in {home}", spec.lr, found.built), True
    method = getattr(model, "configure_optimizers", None)
    if inspect.ismethod(method) and not required_arguments(method):  # nanoGPT's has arguments that no one gives
        return optimizers.given_optimizer(method, f"{type(model).__name__}.configure_optimizers", spec.lr, found.built), True
    return optimizers.assumed_optimizer(spec.lr), False


def _is_scheduler(value: Any) -> bool:
    return hasattr(value, "step") and hasattr(value, "get_last_lr")
