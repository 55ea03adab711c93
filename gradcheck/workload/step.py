"""From a batch to a scalar loss: what of a batch goes into the model, and what of its output into the loss.

Training steps are `functools.partial` objects of the functions below, so that a copy of the step copies the loss in it.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.workload.workload import Batch, TrainingStep

_OUTPUT_NAMES = ("logits", "out", "output", "prediction", "predictions", "last_hidden_state")


def first_tensor(output: Any) -> torch.Tensor:
    """The prediction in a model's output: `logits` and the like by name, else the first floating-point tensor. Raises TargetError."""
    found = next(_predictions(output), None)
    if found is None:
        raise TargetError(
            f"the model returns {type(output).__name__} without a floating-point tensor",
            hint="define compute_loss(model, batch) in the file, or pass training_step=, to say how its loss is computed",
        )
    if found.is_nested and found.layout is torch.strided:
        raise TargetError("the model returns a nested tensor, which has no shape", hint="return it padded: torch.nested.to_padded_tensor")
    return found


def _predictions(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output
        return
    if isinstance(output, Mapping):
        names = [*(n for n in _OUTPUT_NAMES if n in output), *(n for n in output if n not in _OUTPUT_NAMES)]
        parts: list[Any] = [output[name] for name in names]
    elif isinstance(output, (tuple, list)):
        named = [getattr(output, n) for n in _OUTPUT_NAMES if n in getattr(output, "_fields", ())]
        parts = [*named, *output]
    elif is_dataclass(output) and not isinstance(output, type):
        present = [f.name for f in fields(output)]
        parts = [getattr(output, n) for n in (*(n for n in _OUTPUT_NAMES if n in present), *present)]
    else:
        parts = [getattr(output, n) for n in _OUTPUT_NAMES if hasattr(output, n)]
    for part in parts:
        yield from _predictions(part)


def own_loss_of(output: Any) -> torch.Tensor | None:
    """The loss that the model computed itself: a scalar output, `.loss`, (logits, loss), or a dict of losses (their sum)."""
    if isinstance(output, torch.Tensor):
        return output if _is_scalar(output) else None
    if isinstance(output, Mapping):
        if _is_scalar(output.get("loss")):
            return output["loss"].reshape(())
        parts = list(output.values())
        return torch.stack([part.reshape(()) for part in parts]).sum() if parts and all(map(_is_scalar, parts)) else None
    if _is_scalar(getattr(output, "loss", None)):
        return output.loss.reshape(())
    if isinstance(output, (tuple, list)):
        return next((part for part in output if isinstance(part, torch.Tensor) and part.ndim == 0 and part.is_floating_point()), None)
    return None


def _is_scalar(value: Any) -> bool:
    """Losses gathered from replicas, and those of some libraries, come as a vector with one entry."""
    if not isinstance(value, torch.Tensor) or value.is_nested:
        return False
    return value.is_floating_point() and (value.ndim == 0 or value.shape == (1,))


def as_scalar(value: Any) -> torch.Tensor:
    """What a user's function returns as the loss: a scalar tensor, or a dict or tuple that holds it. Raises TargetError."""
    found = own_loss_of(value)
    if found is None and isinstance(value, torch.Tensor) and value.numel() == 1:
        found = value
    if found is None:
        what = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TargetError(f"the loss must be a scalar tensor, not {what}", hint="reduce it, for example with .mean()")
    return found.reshape(())


Inputs = tuple[Any, ...] | dict[str, Any]  # positional or keyword arguments of the forward method
Loss = Callable[..., Any]

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
INPUT_NAMES = ("inputs", "input", "x", "X", "images", "image", "features", "data", "input_ids", "pixel_values")
_WHOLE_BATCH_NAMES = ("batch", "sample", "example", "batch_dict", "data")


@dataclass(frozen=True)
class ForwardSignature:
    """What a forward method accepts."""

    positional: tuple[str, ...]
    required: tuple[str, ...]
    keywords: tuple[str, ...] = ()  # keyword-only
    any_positional: bool = False
    any_keyword: bool = False

    def accepts(self, name: str) -> bool:
        return name in self.positional or name in self.keywords

    def takes(self, count: int) -> bool:
        """Whether `count` positional arguments fit."""
        return len(self.required) <= count and (self.any_positional or count <= len(self.positional))


def forward_of(model: nn.Module) -> ForwardSignature:
    """Signature of `model.forward`; one required positional argument where it cannot be read."""
    if isinstance(model, torch.jit.ScriptModule):
        method: Any = model.forward
        arguments = method.schema.arguments[1:]
        return ForwardSignature(tuple(a.name for a in arguments), tuple(a.name for a in arguments if not a.has_default_value()))
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except Exception:  # an object that answers to every name may raise anything
        return ForwardSignature(("input",), ("input",))
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return ForwardSignature(
        positional=tuple(p.name for p in plain),
        required=tuple(p.name for p in plain if p.default is p.empty),
        keywords=tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        any_positional=any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any_keyword=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def split(batch: Batch, model: nn.Module | None = None, *, own_loss: bool = False) -> tuple[Inputs, Any]:
    """(inputs, target): a tuple of positional or a dict of keyword arguments for the model, and the target or None.

    A tensor is an input. Of a tuple the last element is the target unless `model` needs it as an input: (inputs, target),
    (x1, x2, target), ((x1, x2), target). Of a dict the target is under "labels", "target" or alike. With `own_loss` the model computes
    its loss itself: a target that its forward method accepts is among the inputs, too.
    """
    forward = forward_of(model) if model is not None else ForwardSignature((), (), any_positional=True, any_keyword=True)
    if isinstance(batch, Mapping):
        return _split_mapping(batch, forward, own_loss)
    if isinstance(batch, (tuple, list)):
        return _split_sequence(batch, forward, own_loss)
    return (batch,), None


def _split_mapping(batch: Mapping[str, Any], forward: ForwardSignature, own_loss: bool) -> tuple[Inputs, Any]:
    target_name = next((name for name in TARGET_NAMES if name in batch), None)
    target = batch[target_name] if target_name else None
    names = [name for name in batch if name != target_name]
    anything = forward.any_keyword and not forward.positional
    chosen = {name: batch[name] for name in names if anything or forward.accepts(name)}
    if chosen:
        if target_name and (target_name in forward.required or (own_loss and (anything or forward.accepts(target_name)))):
            chosen[target_name] = target
        return chosen, target
    if len(forward.required) == 1 and forward.required[0] in _WHOLE_BATCH_NAMES:
        return (batch,), target
    names.sort(key=lambda name: INPUT_NAMES.index(name) if name in INPUT_NAMES else len(INPUT_NAMES))  # stable: others keep their order
    count = len(names) if forward.any_positional else max(1, min(len(names), len(forward.required)))
    return tuple(batch[name] for name in names[:count]), target


def _split_sequence(batch: tuple[Any, ...] | list[Any], forward: ForwardSignature, own_loss: bool) -> tuple[Inputs, Any]:
    count = len(batch)
    if count == 2 and isinstance(batch[0], (tuple, list, Mapping)):
        return _nested(batch[0], batch[1], forward, own_loss)
    if count < 2:
        return tuple(batch), None
    last_name = forward.positional[count - 1] if count <= len(forward.positional) else ""
    if own_loss and last_name in TARGET_NAMES:
        return tuple(batch), batch[-1]
    if forward.takes(count - 1):
        return tuple(batch[:-1]), batch[-1]
    if forward.takes(count):
        return tuple(batch), None
    most = max(1, len(forward.positional))
    return (tuple(batch[:most]), tuple(batch[most:])) if count > most else (tuple(batch), None)


def _nested(inputs: Any, target: Any, forward: ForwardSignature, own_loss: bool) -> tuple[Inputs, Any]:
    if isinstance(inputs, Mapping):
        chosen, _ = _split_mapping(inputs, forward, own_loss)
        if own_loss and isinstance(chosen, dict) and (name := next((n for n in TARGET_NAMES if forward.accepts(n)), None)):
            chosen = {**chosen, name: target}
        return chosen, target
    if not forward.takes(len(inputs)):
        return (inputs,), target
    last_name = forward.positional[len(inputs)] if len(inputs) < len(forward.positional) else ""
    return (*inputs, target) if own_loss and last_name in TARGET_NAMES else tuple(inputs), target


def call(model: nn.Module, inputs: Inputs) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def run(model: nn.Module, batch: Batch, *, own_loss: bool = False) -> tuple[Any, Any]:
    """(output of the model, target of the batch)."""
    inputs, target = split(batch, model, own_loss=own_loss)
    return call(model, inputs), target


def make_training_step(loss: Loss | None) -> TrainingStep:
    """A step with `loss(output, target)`; without a loss the model computes its own."""
    if loss is None:
        return _step_with_own_loss
    return functools.partial(_step_with_loss, loss, is_torch_loss(loss), takes_only_output(loss))


def make_user_step(function: Callable[[nn.Module, Batch], Any]) -> TrainingStep:
    """A step of the user's `function(model, batch)`."""
    return functools.partial(_step_of_user, function)


def make_method_step(model: nn.Module) -> TrainingStep:
    """A step of the model's own `training_step(batch, batch_idx)` method, as Lightning writes it."""
    method: Any = getattr(model, "training_step")  # noqa: B009
    return functools.partial(_step_of_method, _takes_index(method))


def _takes_index(method: Any) -> bool:
    try:
        return len(inspect.signature(method).parameters) > 1
    except (TypeError, ValueError):
        return False


def _step_with_loss(loss: Loss, of_torch: bool, only_output: bool, model: nn.Module, batch: Batch) -> torch.Tensor:
    output, target = run(model, batch)
    if only_output:
        return as_scalar(loss(output))
    if target is None and isinstance(batch, (tuple, list)) and len(batch) > 1:
        target = batch[-1]  # the model takes it as an input, too: (source, target) of a sequence model
    return as_scalar(apply_loss(loss, output, target, of_torch))


def apply_loss(loss: Loss, output: Any, target: Any, of_torch: bool | None = None) -> Any:
    """`loss` of what a model returned. Torch's losses get only the prediction in it, with the classes on the axis they expect."""
    if not (is_torch_loss(loss) if of_torch is None else of_torch):
        return loss(output, target)
    prediction = first_tensor(output)
    if is_class_loss(loss) and classes_are_last(prediction, target):
        prediction = prediction.movedim(-1, 1)
    return loss(prediction, target)


def _step_with_own_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    output, _ = run(model, batch, own_loss=True)
    found = own_loss_of(output)
    if found is None:
        raise TargetError("the model returned no loss of its own", hint="define loss_fn(output, target) or pass --loss cross_entropy")
    return found


def _step_of_user(function: Callable[[nn.Module, Batch], Any], model: nn.Module, batch: Batch) -> torch.Tensor:
    return as_scalar(function(model, batch))


def _step_of_method(with_index: bool, model: nn.Module, batch: Batch) -> torch.Tensor:
    method: Any = getattr(model, "training_step")  # noqa: B009
    return as_scalar(method(batch, 0) if with_index else method(batch))


def is_torch_loss(loss: Loss) -> bool:
    """Losses of torch, and ours, want one tensor; a user's own function gets the whole output of the model."""
    home = loss.__class__.__module__ if isinstance(loss, nn.Module) else getattr(loss, "__module__", None) or ""
    return home.startswith(("torch.", "gradcheck.loading.", "gradcheck.workload.")) or home in ("torch", "torch._C._nn")


def is_class_loss(loss: Loss) -> bool:
    return loss_name(loss).lower() in ("crossentropyloss", "cross_entropy", "nllloss", "nll_loss")


def loss_name(loss: Loss) -> str:
    if isinstance(loss, functools.partial):
        return loss_name(loss.func)
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", type(loss).__name__)


def classes_are_last(output: torch.Tensor, target: Any) -> bool:
    """[B, T, C] with class labels [B, T]: torch's loss wants [B, C, T] and would raise. Ambiguous shapes are taken as torch does."""
    if not isinstance(target, torch.Tensor) or target.is_floating_point() or output.ndim < 3:
        return False
    return target.shape == output.shape[:-1] and target.shape != (output.shape[0], *output.shape[2:])


def takes_only_output(loss: Loss) -> bool:
    """Whether a loss function has a single required argument, like energies and scores."""
    if is_torch_loss(loss):
        return False
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)
