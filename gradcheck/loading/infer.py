"""Infers the loss if none is given, and targets if there are none: once, at loading, from the output of one forward pass."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gradcheck.errors import TargetError
from gradcheck.workload import losses

Range = Literal["log-probabilities", "probabilities", "sigmoid", "tanh", "positive", "any"]

# Rows are taken as probabilities when their sums are 1 up to the rounding of half precision over thousands of classes.
_ROUNDING = 1e-2
_VIEWS = frozenset({"View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Transpose", "Permute", "Clone"})
_VIEWS |= {"ToCopy", "T", "Slice", "Select", "Expand", "Split", "Unbind"}
_LAST_OPERATION: dict[str, Range] = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Hardtanh": "tanh",
    "Relu": "positive",
    "Softplus": "positive",
    "Exp": "positive",
    "Softmax": "probabilities",
    "LogSoftmax": "log-probabilities",
}


@dataclass(frozen=True)
class Inferred:
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    why: str  # "cross entropy, since the output is [32, 10] and the targets are class labels"
    targets: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None  # makes them when there are none


def range_of(output: torch.Tensor) -> Range:
    """What kind of numbers a model returns, by the last operation that autograd recorded, skipping views."""
    node = output.grad_fn
    while node is not None:
        name = node.name().split("Backward")[0]
        if name not in _VIEWS:
            return _LAST_OPERATION.get(name, "any")
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
    return "any"


def infer_loss(output: torch.Tensor, target: Any) -> Inferred:
    """The loss for an output and a target of the data. Raises TargetError when the two do not suggest one."""
    if not isinstance(target, torch.Tensor):
        raise _no_loss(output, type(target).__name__)
    kind = range_of(output)
    shapes = f"the output is {list(output.shape)}"
    if target.is_floating_point():
        if target.numel() != output.numel() or _squeezed(target) != _squeezed(output):
            raise _no_loss(output, f"{_dtype(target)} {list(target.shape)}")
        alike = f"mean squared error, since {shapes} and the targets are numbers of the same shape"
        if output.is_complex():
            return Inferred(losses.mean_squared_magnitude, alike)
        if _is_binary(target):
            fits = output.ndim > 1 and output.shape[1] > 1 and target.shape == output.shape and kind == "any"
            if fits and bool((target.sum(1) == 1).all()):
                return Inferred(losses.cross_entropy, f"cross entropy, since {shapes} and the targets are one-hot")
            return _binary(kind, f"{shapes} and the targets are zeros and ones of the same number")
        return Inferred(losses.mean_squared_error, alike)
    axis = _class_axis(output, target)
    if axis is not None:
        return _classes(output, axis, kind, f"{shapes} and the targets are class labels {list(target.shape)}")
    if _squeezed(target) == _squeezed(output):
        if _is_binary(target):
            return _binary(kind, f"{shapes} and the targets are zeros and ones of the same number")
        return Inferred(losses.mean_squared_error, f"mean squared error, since {shapes} and the targets are integers of the same shape")
    raise _no_loss(output, f"{_dtype(target)} {list(target.shape)}")


def invent_targets(output: torch.Tensor, inputs: tuple[Any, ...], data_given: bool) -> Inferred:
    """A loss and a way to make fixed targets, for data without any."""
    first = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
    shape = f"the output is {list(output.shape)} and the data have no targets"
    if first is not None and _is_language_model(output, first):
        return Inferred(
            losses.cross_entropy_last, f"cross entropy against the next token, since {shape}", lambda output, generator: next_tokens(first)
        )
    if data_given and first is not None and first.is_floating_point() and first.shape == output.shape:
        return Inferred(
            losses.mean_squared_error,
            f"mean squared error against the input itself: the output has its shape {list(output.shape)}, and the data have no targets",
            lambda output, generator: first.detach().clone(),
        )
    kind = range_of(output)
    if output.ndim == 2 and output.shape[1] >= 2 and kind in ("any", "probabilities", "log-probabilities"):
        chosen = _classes(output, 1, kind, shape)
        return Inferred(chosen.loss, f"{chosen.why}: random classes, fixed for each batch", random_classes)
    if kind == "sigmoid":
        return Inferred(
            losses.binary_cross_entropy, f"binary cross entropy against fixed random zeros and ones, since {shape}", random_bits
        )
    if output.is_complex():
        return Inferred(losses.mean_squared_magnitude, f"mean squared error against fixed random numbers, since {shape}", random_values)
    return Inferred(losses.mean_squared_error, f"mean squared error against fixed random numbers, since {shape}", _values_within(kind))


def targets_for(loss_name: str, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Targets that a loss of torch of the given (lower-case) name accepts, for data that have none."""
    name = loss_name.replace("_", "")
    if output.ndim >= 2 and name.startswith(("crossentropy", "nll", "focal")):
        return random_classes(output, generator)
    if output.ndim == 2 and name.startswith("multimargin"):
        return random_classes(output, generator)
    if name.startswith(("bce", "binary", "multilabel")):
        return random_bits(output, generator)
    if name.startswith(("softmargin", "hinge", "cosine")):
        return random_bits(output, generator) * 2 - 1
    if name.startswith("kl"):
        return random_values(output, generator).softmax(-1)
    return _values_within(range_of(output))(output, generator)


def random_classes(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[N, C, ...] -> labels [N, ...] below C."""
    shape = (output.shape[0], *output.shape[2:])
    return torch.randint(output.shape[1], shape, generator=generator, device="cpu").to(output.device)


def random_bits(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(2, tuple(output.shape), generator=generator, device="cpu").to(output)


def random_values(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    dtype = torch.complex64 if output.is_complex() else torch.float32
    return torch.randn(tuple(output.shape), generator=generator, dtype=dtype, device="cpu").to(output)


def next_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """[..., T] -> [..., T]: each token's successor, -100 (left out by the loss) for the last one."""
    return torch.cat([tokens[..., 1:], torch.full_like(tokens[..., :1], -100)], dim=-1).long()


_INTO: dict[Range, Callable[[torch.Tensor], torch.Tensor]] = {
    "positive": torch.abs,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "probabilities": functools.partial(torch.softmax, dim=-1),
    "log-probabilities": functools.partial(torch.log_softmax, dim=-1),
}


def _values_within(kind: Range) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    """Random targets that an output of the given range can reach: standard normal, unless its last operation bounds it."""
    bound = _INTO.get(kind)
    return random_values if bound is None else lambda output, generator: bound(random_values(output, generator))


def _classes(output: torch.Tensor, axis: int, kind: Range, because: str) -> Inferred:
    last = axis == output.ndim - 1 and output.ndim > 2
    if kind == "log-probabilities" or (kind == "any" and _are_log_probabilities(output, axis)):
        loss = losses.negative_log_likelihood_last if last else losses.negative_log_likelihood
        return Inferred(loss, f"negative log likelihood, since the output holds log-probabilities, {because}")
    if kind == "probabilities" or (kind == "any" and _are_probabilities(output, axis)):
        loss = losses.negative_log_probability_last if last else losses.negative_log_probability
        return Inferred(loss, f"the negative logarithm of the class's probability, since the output holds probabilities, {because}")
    return Inferred(losses.cross_entropy_last if last else losses.cross_entropy, f"cross entropy, since {because}")


def _binary(kind: Range, because: str) -> Inferred:
    if kind in ("sigmoid", "probabilities"):
        return Inferred(losses.binary_cross_entropy, f"binary cross entropy, since the output holds probabilities, {because}")
    return Inferred(losses.binary_cross_entropy_with_logits, f"binary cross entropy with logits, since {because}")


def _class_axis(output: torch.Tensor, target: torch.Tensor) -> int | None:
    """The axis of `output` that `target`, of integers, has labels for. Sequences [B, T, C] have it last, images [N, C, H, W] second."""
    if target.ndim == output.ndim and target.shape[-1] == 1 and output.ndim == 2:
        target = target.squeeze(-1)
    candidates = (output.ndim - 1, 1) if output.ndim == 3 else (1, output.ndim - 1)
    for axis in candidates if output.ndim >= 2 else ():
        if output.shape[axis] >= 2 and target.shape == (*output.shape[:axis], *output.shape[axis + 1 :]):
            return axis
    return None


def _is_language_model(output: torch.Tensor, tokens: torch.Tensor) -> bool:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool or tokens.ndim < 2 or tokens.shape[-1] < 2:
        return False
    return output.shape[:-1] == tokens.shape and output.shape[-1] > int(tokens.max()) and int(tokens.min()) >= 0


def _are_probabilities(output: torch.Tensor, axis: int) -> bool:
    return not output.is_complex() and bool((output >= 0).all()) and bool(((output.float().sum(axis) - 1).abs() < _ROUNDING).all())


def _are_log_probabilities(output: torch.Tensor, axis: int) -> bool:
    return not output.is_complex() and bool((output <= 0).all()) and bool((output.float().logsumexp(axis).abs() < _ROUNDING).all())


def _is_binary(target: torch.Tensor) -> bool:
    return target.dtype == torch.bool or bool(((target == 0) | (target == 1)).all())


def _squeezed(value: torch.Tensor) -> tuple[int, ...]:
    return tuple(size for size in value.shape if size != 1)


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _no_loss(output: torch.Tensor, target: str) -> TargetError:
    return TargetError(
        f"no loss can be inferred: the output is {_dtype(output)} {list(output.shape)}, the target {target}",
        hint="define loss_fn(output, target) in the file, or pass --loss NAME; check that data and model fit each other",
    )
