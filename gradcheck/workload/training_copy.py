"""Copies of a workload to experiment on, and a few samples of a batch, if a training step runs on them."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.types.location import Location
from gradcheck.workload.borrowing import Borrowed, BorrowedState
from gradcheck.workload.copying import bind_copies, bound, copying, memo_for, require_parts
from gradcheck.workload.rng import seed_all
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.workload import Batch, Clipping, TrainingStep, Workload


def set_mode(module: nn.Module, training: bool) -> None:
    """Like `module.train(training)`. A class's own `train(mode)` is called; a `train(x, y)` that trains is not."""
    if type(module).train is not nn.Module.train and _takes_mode(module):
        module.train(training)
        return
    module.training = training
    for child in module.children():
        set_mode(child, training)


def _takes_mode(module: nn.Module) -> bool:
    """Whether a class's own `train` extends torch's: its argument is a mode, not data."""
    try:
        parameters = list(inspect.signature(module.train).parameters.values())
    except (TypeError, ValueError):
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not parameters or any(p.default is p.empty and p.kind not in optional for p in parameters[1:]):
        return False
    first = parameters[0]
    return first.name == "mode" or isinstance(first.default, bool) or first.kind is first.VAR_POSITIONAL


class TrainingCopy:
    """A model, optimizer and loss that may be trained and thrown away: a copy, or the user's own objects while they are lent. Of lent ones
    only the copy that was asked for last is in place: `model` and `optimizer` put it there.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        training_step: TrainingStep,
        sites: Mapping[int, Location],
        clip: Clipping | None = None,
        loss_function: Callable[[Any, Any], torch.Tensor] | None = None,
        lent: tuple[Borrowed, BorrowedState] | None = None,
    ) -> None:
        """`sites`: id(module) -> the expression that constructed its original. `clip`: `take_step` applies it. `loss_function`: what
        `training_step` is made of, where it is. `lent`: the modules are the user's, and this state of theirs is trained."""
        self._model, self._optimizer = model, optimizer
        self.training_step, self.sites, self.clip, self.loss_function = training_step, sites, clip, loss_function
        self.own = {id(x) for x in (*model.modules(), *model.parameters())}  # what may be trained, by id
        self._lent = lent

    @property
    def model(self) -> nn.Module:
        self._put_in_place()
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        self._put_in_place()
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        if self._lent is not None:
            self._lent[1].optimizer = optimizer

    def _put_in_place(self) -> None:
        if self._lent is not None:
            borrowed, state = self._lent
            borrowed.use(state)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The scalar training loss. Raises what the user's code raises, and TargetError when it is not a scalar."""
        value = self.training_step(self.model, batch)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            what = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise TargetError(f"the training step must return a scalar loss, not {what}", hint="reduce it, for example with .mean()")
        return value if value.dim() == 0 else value.reshape(())


def fork(workload: Workload, *, seed: int = 0) -> TrainingCopy:
    """A fresh copy with the workload's initial weights and optimizer state, in training mode, random state seeded.

    Functions that refer to the model from outside (a penalty over its parameters, say) are made to refer to the copy. Where the workload
    says that no faithful copy can be made, the user's own model is lent, in its initial state.
    Raises TargetError when the model cannot be copied.
    """
    if workload.borrowed is not None:
        return lend(workload, workload.borrowed, seed=seed)
    memo = memo_for(workload.model)
    model, optimizer, step, loss = copy_training(workload.model, workload.optimizer, workload.training_step, workload.loss, memo)
    sites = {id(memo[key]): place for key, place in workload.sites.items() if key in memo}
    copied = TrainingCopy(model, optimizer, step, sites, workload.clip, loss)
    copied.own |= {id(twin) for twin in memo.values() if isinstance(twin, (nn.Module, torch.Tensor))}
    return _started(copied, seed)


def copy_training(model: nn.Module, optimizer: Any, step: Any, loss: Any, memo: dict[int, Any]) -> tuple[Any, Any, Any, Any]:
    """Copies that refer to each other as the originals do; optimizer, step and loss may be None. Raises TargetError."""
    with copying():
        twin = copy.deepcopy(model, memo)
        require_parts(model, memo)
        optimizer = copy_optimizer(optimizer, memo) if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        step, loss = bound(step, memo), bound(loss, memo)
        bind_copies(memo)
    return twin, optimizer, step, loss


def lend(workload: Workload, borrowed: Borrowed, *, seed: int = 0) -> TrainingCopy:
    """The workload's own model in its initial state, with a copy of the optimizer that holds its parameters."""
    state, memo = borrowed.lend(workload.optimizer), dict(borrowed.tensors)
    with copying():
        state.optimizer = copy_optimizer(workload.optimizer, memo)
    borrowed.fill(memo)
    step, lent = workload.training_step, (borrowed, state)
    return _started(TrainingCopy(workload.model, state.optimizer, step, workload.sites, workload.clip, workload.loss, lent), seed)


def _started(copied: TrainingCopy, seed: int) -> TrainingCopy:
    _set_training(copied.model)
    seed_all(seed)
    return copied


def _set_training(model: nn.Module) -> None:
    """Sets training mode; what was put into evaluation mode on purpose, or by a `train` of the user's, stays there."""
    if not model.training:
        set_mode(model, True)
        return
    resting = [module for module in model.modules() if not module.training]
    for module in list(model.modules()):
        if module.training and type(module).train is not nn.Module.train:
            set_mode(module, True)
    for module in resting:
        module.training = False


def copy_optimizer(optimizer: torch.optim.Optimizer, memo: dict[int, Any]) -> torch.optim.Optimizer:
    """A deep copy whose groups hold the copied parameters.

    `copy.deepcopy` drops what subclasses keep beside state and groups (LBFGS's list of parameters), and a learning-rate
    scheduler leaves a wrapped `step` on the instance that would step the original: neither is wanted.
    """
    twin = object.__new__(type(optimizer))
    memo[id(optimizer)] = twin
    for name, value in vars(optimizer).items():
        if name in ("step", "_zero_grad_profile_name"):
            continue
        twin.__dict__[name] = copy.deepcopy(value, memo)
    twin._patch_step_function()
    return twin


@contextmanager
def restored(copied: TrainingCopy) -> Iterator[None]:
    """Puts back what running the model without steps changes: buffers, modes and gradients."""
    buffers = [(b, b.detach().clone()) for b in copied.model.buffers()]
    modes = [(m, m.training) for m in copied.model.modules()]
    gradients = [(p, p.grad) for p in copied.model.parameters()]
    for p, _ in gradients:
        p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)
        for module, mode in modes:
            module.training = mode
        for p, gradient in gradients:
            p.grad = gradient


TRIED = 8  # samples with which to find out whether batches can be cut


def some_samples(workload: Workload, count: int) -> Any:
    """The first samples of the first batch; the whole batch when the step does not run on a part of it (a graph, one episode)."""
    batch = workload.batches[0]
    return few_samples(batch, count) if batch_size(batch) > count and is_divisible(workload) else batch


def is_divisible(workload: Workload) -> bool:
    """Whether the training step runs on a part of the first batch. Found out once, on a copy."""
    if workload.divisible is None:
        workload.divisible = batch_size(workload.batches[0]) <= TRIED or _runs(workload)
    return workload.divisible


def _runs(workload: Workload) -> bool:
    try:
        with torch.no_grad():
            fork(workload).loss(few_samples(workload.batches[0], TRIED))
    except Exception:  # the user's code runs here with fewer samples than it was written for
        return False
    return True


def few_samples(batch: Any, count: int) -> Any:
    """The first samples of every tensor that has one entry a sample; the batch itself when that cannot be told."""
    size = batch_size(batch)
    return batch if size <= count else cut(batch, size, slice(count))


def cut(value: Any, size: int, part: slice, axis: int = 0) -> Any:
    """This part of every tensor that has `size` entries along an axis: one for each sample, or for each position."""
    if isinstance(value, torch.Tensor):
        return value[(slice(None),) * axis + (part,)] if value.dim() > axis and value.shape[axis] == size else value
    if isinstance(value, dict):
        return {key: cut(item, size, part, axis) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(cut(item, size, part, axis) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(cut(item, size, part, axis) for item in value)
    return value
