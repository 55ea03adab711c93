"""Functions of the first pass that show more than their outputs: batch normalizations, dropouts, sums."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.instrument.activation_recorder import parameter_of
from gradcheck.types.location import Location
from gradcheck.workload.device import on_host

# alpha_dropout is not among these: it keeps mean and variance.
DROPOUTS = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout))
SUMS = frozenset(
    f
    for name in ("add", "add_", "__add__", "__radd__", "__iadd__")
    for home in (torch, torch.Tensor)
    if (f := getattr(home, name, None)) is not None
)
# Names of the arguments, in order: F.batch_norm and the function behind it differ.
BATCH_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled"),
}


@dataclass(eq=False)
class SeenNorm:
    layer: str
    site: Location | None
    features: int
    values: float
    of_batch: bool
    momentum: float | None
    tracks: bool
    fresh: torch.Tensor | None  # 0-d bool: its running statistics are those of a new layer
    trains: bool
    source: Any  # autograd node of its input
    node: Any = None
    raised: str | None = None


@dataclass(eq=False)
class SeenDropout:
    layer: str
    rate: float
    shift: torch.Tensor | None  # see Norm.dropout_shift; 0-d
    source: Any
    node: Any = None


@dataclass(eq=False)
class SeenSum:
    layer: str
    site: Location | None
    first: torch.Tensor  # root mean square of the first term, 0-d, as the next
    second: torch.Tensor
    sources: tuple[Any, Any]
    size: torch.Tensor | None = None  # of the sum
    node: Any = None


Seen = SeenNorm | SeenDropout | SeenSum


def before(function: Any, args: Any, kwargs: Any, module: nn.Module, layer: str, site: Any) -> Seen | None:
    """What is known of a call before it runs; None when it is none of these. `site()` gives its place."""
    if function in BATCH_NORMS:
        return _norm(named(function, args, kwargs), module, layer, site())
    if function in SUMS:
        return _sum(args, kwargs, layer, site)
    if function in DROPOUTS:
        return _dropout(args, kwargs, layer)
    return None


def after(seen: Seen, output: Any) -> None:
    if not isinstance(output, torch.Tensor):
        return
    seen.node = output.grad_fn
    if isinstance(seen, SeenSum):
        seen.size = rms(output)


def named(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments of a batch normalization by name."""
    defaults = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
    return defaults | dict(zip(BATCH_NORMS[function], args, strict=False)) | kwargs


def rms(tensor: torch.Tensor) -> torch.Tensor:
    x = tensor.detach()
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)) / max(1, x.numel()) ** 0.5


def _fresh(mean: torch.Tensor | None, variance: torch.Tensor | None) -> torch.Tensor | None:
    """Whether running statistics are those of a new layer."""
    return (mean == 0).all() & (variance == 1).all() if mean is not None and variance is not None else None


def read(seen: Sequence[Seen]) -> None:
    """Brings what devices hold of the calls to the host, with one wait for all."""
    names = ("fresh", "shift", "size", "first", "second")
    held = [(s, name) for s in seen for name in names if isinstance(getattr(s, name, None), torch.Tensor)]
    for (s, name), value in zip(held, on_host([getattr(s, name) for s, name in held]), strict=True):
        setattr(s, name, value)


def _norm(given: dict[str, Any], module: nn.Module, layer: str, site: Location | None) -> SeenNorm | None:
    x, mean, variance, weight = given["input"], given.get("running_mean"), given.get("running_var"), given["weight"]
    if not isinstance(x, torch.Tensor) or x.dim() < 2 or parameter_of(x) is not None:  # standardised weights are not activations
        return None
    momentum = module.momentum if isinstance(module, nn.modules.batchnorm._NormBase) else given["momentum"]
    trains = x.requires_grad or (isinstance(weight, torch.Tensor) and weight.requires_grad)
    return SeenNorm(
        layer,
        site,
        x.shape[1],
        x.numel() / max(1, x.shape[1]),
        bool(given["training"]),
        float(momentum) if mean is not None and momentum is not None else None,
        mean is not None,
        _fresh(mean, variance),
        trains,
        x.grad_fn,
    )


def _dropout(args: Any, kwargs: Any, layer: str) -> SeenDropout | None:
    x = args[0] if args else kwargs.get("input")
    rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    if not isinstance(x, torch.Tensor) or not training or not isinstance(rate, (int, float)) or not 0 < rate < 1:
        return None
    return SeenDropout(layer, float(rate), _shift(x.detach(), rate), x.grad_fn)


def _shift(x: torch.Tensor, rate: float) -> torch.Tensor | None:
    """(E[x^2] / (1 - p) - E[x]^2) / Var[x] with the moments of each feature (axis 1), numerator and denominator averaged over features.

    Dropout keeps the mean and divides the second moment by 1 - p (Li et al. 2018).
    """
    if x.dim() < 2 or x.numel() <= x.shape[1]:
        return None
    axes = [i for i in range(x.dim()) if i != 1]
    variance, mean = torch.var_mean(x, dim=axes, correction=0)
    square = variance + mean**2
    return (square / (1 - rate) - mean**2).mean() / variance.mean()


def _sum(args: Any, kwargs: Any, layer: str, site: Any) -> SeenSum | None:
    """Sums of two activations of one shape: both carry gradient, and neither is a parameter."""
    pair = tuple(args[:2]) if len(args) >= 2 else (*args, *(kwargs[k] for k in ("input", "other") if k in kwargs))
    if len(pair) != 2 or "alpha" in kwargs or not all(isinstance(t, torch.Tensor) and t.grad_fn is not None for t in pair):
        return None
    a, b = pair
    if a.shape != b.shape or a.dim() < 2 or not a.is_floating_point() or a.grad_fn is b.grad_fn:
        return None
    return SeenSum(layer, site(), rms(a), rms(b), (a.grad_fn, b.grad_fn))
