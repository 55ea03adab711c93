"""What a call of a loss function shows: the ranges of its arguments, its chance level, what made its input."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.instrument.deferred_statistics import SLICE, DeferredStatistics
from gradcheck.types.layers import TensorStats
from gradcheck.types.location import Location
from gradcheck.types.losses import LossCall


def options_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name, those without one among them; `size_average` and `reduce`, which came before it, as `reduction`."""
    given = dict(zip(_names(function), args, strict=False)) | dict(kwargs)
    average, reduce = given.pop("size_average", None), given.pop("reduce", None)
    if average is not None or reduce is not None:
        given["reduction"] = "none" if reduce is not None and not reduce else "mean" if average is None or average else "sum"
    return given


def reduction_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """ "mean", "sum", "none", "batchmean"."""
    given = options_of(function, args, kwargs).get("reduction")
    return given if isinstance(given, str) else next((x for x in args if isinstance(x, str)), "mean")


@cache
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a function of torch's own that is not written in Python
        return "input", "target"


IGNORED = -100  # torch's default ignore_index
_CLASS_LOSSES = ("cross_entropy", "nll_loss", "multi_margin_loss")
_OPTIONS = ("ignore_index", "label_smoothing", "weight", "pos_weight", "reduction", "log_target", "blank", "target_lengths")
MOST_WEIGHTS = 100  # classes whose weights are noted
_NAMES = (
    "cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss huber_loss kl_div "
    "poisson_nll_loss gaussian_nll_loss hinge_embedding_loss soft_margin_loss multilabel_soft_margin_loss multi_margin_loss "
    "margin_ranking_loss cosine_embedding_loss triplet_margin_loss multilabel_margin_loss ctc_loss"
).split()
LOSSES: dict[Callable[..., Any], str] = {getattr(F, name): name for name in _NAMES}
LOSSES[torch.binary_cross_entropy_with_logits] = "binary_cross_entropy_with_logits"
ELEMENTWISE = frozenset(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"))


@dataclass(eq=False)
class SeenLoss:
    """A loss call while the pass is recorded; `facts` becomes its LossCall once the graph is known."""

    function: str
    input: torch.Tensor
    target: torch.Tensor | None
    site: Location | None
    options: dict[str, Any]
    target_made: bool = False  # the model made the target itself
    value: torch.Tensor | None = None  # 0-d, as the weights: read after the backward pass
    raised: str | None = None
    weights: list[torch.Tensor] = field(default_factory=list)  # d(total)/d(this), one entry a backward pass
    range: TensorStats | None = None  # of the input, as the next two once it is `read`
    errors: tuple[float | None, float | None] = (None, None)  # largest |sum - 1| and |log-sum-exp| of its rows
    host_target: torch.Tensor | None = None

    def watch(self, output: torch.Tensor) -> None:
        """Notes the value, and the weight in the total when gradient arrives."""
        self.value = output.detach().float().mean()
        if output.requires_grad:
            output.register_hook(lambda gradient: self.weights.append(gradient.detach().float().sum()))

    # What `read` puts there.

    def set_input(self, stats: TensorStats) -> None:
        self.range = stats

    def set_errors(self, errors: torch.Tensor) -> None:
        self.errors = errors[0].item(), errors[1].item()

    def set_target(self, target: torch.Tensor) -> None:
        self.host_target = target

    def set_value(self, value: torch.Tensor) -> None:
        self.value = value

    def set_weights(self, weights: torch.Tensor) -> None:
        self.weights = list(weights)


def seen(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], site: Location | None) -> SeenLoss | None:
    """Of a call of one of the LOSSES; None when it gets no tensor."""
    given = options_of(function, args, kwargs)
    source = given.get("input", given.get("log_probs"))
    target = given.get("target", given.get("targets"))
    if not isinstance(source, torch.Tensor):
        return None
    options = {k: given[k] for k in _OPTIONS if k in given}
    return SeenLoss(LOSSES[function], source, target if isinstance(target, torch.Tensor) else None, site, options)


@torch.no_grad()
def read(seen: Sequence[SeenLoss]) -> None:
    """Reads what devices hold of the calls, with one wait for all: call it after the backward pass, before `facts`."""
    results = DeferredStatistics()
    for one in seen:
        x = one.input.detach()
        axis = _class_axis(one.function, x)
        results.add(x if x.is_floating_point() or x.is_complex() else x.float(), one.set_input)
        if axis is not None and x.numel() and not x.is_complex():
            results.bring(_row_errors(x, axis), one.set_errors)
        if one.target is not None:
            results.bring(one.target.detach(), one.set_target)
        if one.value is not None:
            results.bring(one.value, one.set_value)
        if one.weights:
            results.bring(torch.stack(one.weights), one.set_weights)
    results.settle()


def _row_errors(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Largest distances of the rows' sums from 1, and of their log-sum-exp from 0 [2]."""
    rows = max(1, SLICE * x.shape[0] // x.numel()) if axis else x.shape[0]
    found = [
        torch.stack([(part.sum(axis) - 1).abs().amax(), torch.logsumexp(part, axis).abs().amax()])
        for part in (p.float() for p in x.split(rows))
    ]
    return torch.stack(found).amax(0)


@torch.no_grad()
def facts(seen_loss: SeenLoss, producer: str | None, layer: str | None, site: Location | None) -> LossCall:
    """The LossCall of a recorded call that was `read`. `producer`, `layer` and `site` say what made its input."""
    source, target, range_ = seen_loss.input.detach(), seen_loss.host_target, seen_loss.range
    known = range_ is not None and range_.count > range_.nan + range_.inf
    values: dict[str, Any] = {
        "input_min": range_.min if range_ is not None and known else math.nan,
        "input_max": range_.max if range_ is not None and known else math.nan,
        "input_mean": range_.mean if range_ is not None and known else math.nan,
        "input_std": range_.std if range_ is not None and known else math.nan,
    }
    axis = _class_axis(seen_loss.function, source)
    if axis is not None:
        values["row_sum_error"], values["row_logsumexp_error"] = seen_loss.errors
        if seen_loss.function in _CLASS_LOSSES:
            values["classes"] = source.shape[axis]
    if target is not None:
        values |= _target_facts(seen_loss, source.shape, target)
    chance, uniform = chance_level(seen_loss.function, values.get("classes"), [target] if target is not None else [], seen_loss.options)
    chance = None if seen_loss.target_made else chance
    return LossCall(
        seen_loss.function,
        seen_loss.site,
        tuple(source.shape),
        producer=producer,
        producer_layer=layer,
        producer_site=site,
        value=None if seen_loss.value is None else seen_loss.value.item(),
        chance=chance,
        uniform=uniform,
        label_smoothing=float(seen_loss.options.get("label_smoothing") or 0.0),
        weight_in_total=sum(w.item() for w in seen_loss.weights) if seen_loss.weights else None,
        raised=seen_loss.raised,
        target_made=seen_loss.target_made,
        **values,
    )


def _class_axis(function: str, x: torch.Tensor) -> int | None:
    if function in _CLASS_LOSSES:
        return 0 if x.dim() == 1 else 1 if x.dim() >= 2 else None
    if x.dim() >= 2 and function in (*ELEMENTWISE, "kl_div"):
        return x.dim() - 1
    return None


def _target_facts(seen_loss: SeenLoss, shape: torch.Size, target: torch.Tensor) -> dict[str, Any]:
    t = target.double()
    integer = not target.is_floating_point()
    classes = seen_loss.function in _CLASS_LOSSES and integer
    if classes:
        t = t[target != ignored(seen_loss.options)]
    facts: dict[str, Any] = {"target_shape": tuple(target.shape), "target_dtype": str(target.dtype).removeprefix("torch.")}
    if t.numel():
        facts |= {"target_min": t.min().item(), "target_max": t.max().item(), "target_mean": t.mean().item()}
        facts["target_std"] = t.std(correction=0).item()
    probabilities = seen_loss.function.startswith("binary_cross_entropy") or (seen_loss.function in _CLASS_LOSSES and not integer)
    facts["target_kind"] = "classes" if classes else "probabilities" if probabilities or seen_loss.function == "kl_div" else "values"
    if seen_loss.options.get("reduction") == "sum":
        facts["summed"] = max(1, t.numel())
    if classes:
        width = shape[0 if len(shape) == 1 else 1]
        facts["out_of_range"] = int(((t < 0) | (t >= width)).sum().item())
    elif seen_loss.function.startswith("binary_cross_entropy"):
        facts["out_of_range"] = int(((t < 0) | (t > 1)).sum().item())
        if t.dim() > 1 and target.shape == shape and t.numel():
            facts["target_rows_off"] = ((t.sum(-1) - 1).abs() > 0.01).double().mean().item()
    elif seen_loss.function == "ctc_loss":
        facts |= {"target_kind": "none", "out_of_range": _blanks(target, seen_loss.options)}
    weight = seen_loss.options.get("weight" if classes else "pos_weight")
    if isinstance(weight, torch.Tensor) and weight.numel() <= (MOST_WEIGHTS if classes else 1):
        facts["class_weights"] = tuple(weight.detach().double().reshape(-1).tolist())
    if seen_loss.function in ELEMENTWISE and target.shape != shape:
        with suppress(RuntimeError):  # shapes that do not broadcast: the call itself raises and says so
            facts["broadcast"] = tuple(torch.broadcast_shapes(target.shape, shape))
    return facts


def _blanks(target: torch.Tensor, options: Mapping[str, Any]) -> int:
    """How many of the labels that count are the blank of CTC."""
    blank, lengths = options.get("blank", 0), torch.as_tensor(options.get("target_lengths", ()), device="cpu")
    if target.dim() == 2:
        target = target[torch.arange(target.shape[1], device="cpu") < lengths.reshape(-1, 1)]
    return int((target == blank).sum())


def ignored(options: Mapping[str, Any]) -> int:
    """The label that is ignored."""
    value = options.get("ignore_index", IGNORED)
    return value if isinstance(value, int) else IGNORED


@torch.no_grad()
def floor_level(function: str, classes: int | None, targets: Sequence[torch.Tensor], options: Mapping[str, Any]) -> float:
    """Loss of a prediction that equals the targets: the entropy of soft or smoothed ones; 0 if there is none, or it is unknown.

    `targets` lie on the host.
    """
    if options.get("reduction") == "sum" or options.get("weight") is not None or options.get("pos_weight") is not None:
        return 0.0
    soft = [t.detach().double() for t in targets if _is_soft(t)]
    if function.startswith("binary_cross_entropy"):
        values = torch.cat([t.reshape(-1) for t in soft]) if soft else torch.empty(0, device="cpu")
        return (_entropy(values) + _entropy(1 - values)).mean().item() if values.numel() else 0.0
    if function != "cross_entropy" or not classes or classes < 2:
        return 0.0
    shares = _rows(soft, classes) if soft else torch.arange(classes, device="cpu")[None].eq(0).double()  # labels have the same entropy
    return _entropy(_smoothed(shares, options)).sum(-1).mean().item()


def _is_soft(target: torch.Tensor) -> bool:
    return target.is_floating_point() and target.numel() > 0 and bool(((target >= 0) & (target <= 1)).all())


def _rows(targets: Sequence[torch.Tensor], classes: int) -> torch.Tensor:
    """Soft targets of cross entropy, a row of shares each."""
    return torch.cat([t.reshape(1, -1) if t.dim() == 1 else t.movedim(1, -1).reshape(-1, classes) for t in targets])


def _smoothed(shares: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    smoothing = float(options.get("label_smoothing") or 0.0)
    return shares * (1 - smoothing) + smoothing / shares.shape[-1]


def _entropy(share: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(share, share)


def _spread(weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The weight of each entry of a target; 1 where they do not fit, which the call itself says."""
    try:
        return weight.detach().cpu().double().broadcast_to(target.shape)
    except RuntimeError:
        return torch.ones(target.shape, dtype=torch.double, device="cpu")


@torch.no_grad()
def chance_level(
    function: str, classes: int | None, targets: Sequence[torch.Tensor], options: Mapping[str, Any], *, fewest_labels: int = 10
) -> tuple[float | None, float | None]:
    """Loss of the best constant prediction for the targets, which lie on the host, and of the uniform one.

    Cross entropy: the entropy of the class frequencies when there are at least `fewest_labels` labels a class, else
    log(classes): the entropy of a few labels among many classes says little; of soft targets that of their mean.
    Binary cross entropy: the entropy of the share of positives, each counted `pos_weight` times; the other entries are not weighed.
    Squared error: the variance; absolute error: the mean distance from the median. None for losses without such a
    level, and for sums over the batch.
    """
    if options.get("reduction") == "sum":
        return None, None
    if function in ("cross_entropy", "nll_loss") and classes and classes > 1:
        uniform = math.log(classes)
        soft = [t.detach().double() for t in targets if _is_soft(t)] if function == "cross_entropy" else []
        if soft and options.get("weight") is None:
            return _entropy(_smoothed(_rows(soft, classes).mean(0), options)).sum().item(), uniform
        labels = [t.reshape(-1)[t.reshape(-1) != ignored(options)] for t in targets if not t.is_floating_point()]
        joined = torch.cat(labels) if labels else torch.empty(0, dtype=torch.long, device="cpu")
        joined = joined[(joined >= 0) & (joined < classes)]
        if joined.numel() < max(1, fewest_labels * classes) or options.get("weight") is not None:
            return uniform, uniform
        share = torch.bincount(joined.long(), minlength=classes).double() / joined.numel()
        return _entropy(_smoothed(share, options)).sum().item(), uniform
    values = [t.detach().double().reshape(-1) for t in targets]
    if not values:
        return None, None
    t = torch.cat(values)
    if t.numel() == 0 or not torch.isfinite(t).all():
        return None, None
    if function.startswith("binary_cross_entropy"):
        weight = options.get("pos_weight")
        positives = t * torch.cat([_spread(weight, x).reshape(-1) for x in targets]) if weight is not None else t
        total = (positives + 1 - t).mean().item()
        p = min(max(positives.mean().item() / total, 0.0), 1.0) if total > 0 else 0.0
        entropy = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
        return total * entropy, total * math.log(2)
    if function == "mse_loss":
        return t.var(correction=0).item(), None
    if function == "l1_loss":
        return (t - t.median()).abs().mean().item(), None
    return None, None
