"""Where a loss leads: terms that run away below zero, gradients that lead every output away from its target, ratios upside down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gradcheck.measure.checks.listing import DEEP, SCALES, SUMS, ListedCall, behind, parts_of
from gradcheck.types.checks import IdleTerm
from gradcheck.types.location import Location
from gradcheck.workload.tensors import named_tensors, tensors_in

_OF_CLASSES = frozenset("cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits".split())
PRODUCTS = frozenset(("mul", "rmul", "imul", "multiply"))
FEWEST_SAMPLES = 16  # whose losses and factors are compared (heuristic: a rank correlation of 0.95 is none by chance)

FEWEST = 2  # targets of a sample: the distance of two samples is rightly small where "alike" is 1
MOST_CLASSES = 1 << 14
_LESSER, _GREATER, _CLIPS = frozenset(("min", "minimum")), frozenset(("max", "maximum")), frozenset(("clamp", "clip"))
NEAR = 4  # operations between a ratio of probabilities and the lesser of it and itself clipped: products, views


class Passes:
    """What the model was given in one training step, and its output where it ran once."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []
        self.output: torch.Tensor | None = None

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[Passes]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found = [t for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
            self.output = found[0] if len(found) == 1 and not self.given else None
            self.given += [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]

        with model.register_forward_hook(note, with_kwargs=True):
            yield self


def runaway(whole: ListedCall, total: float) -> IdleTerm | None:
    """The sum in which a term outweighs the others below zero, where the loss has fallen there."""
    call = whole
    for _ in range(DEEP):
        parts = parts_of(call)
        values = [float(t.detach().float().mean()) for t, _ in parts if t.requires_grad]
        if len(values) > 1 and call.name in SUMS:
            lowers = call.name.strip("_") in ("sub", "isub", "subtract") and values[1] > 0 > values[0] - values[1]
            return IdleTerm("runaway", call.name.strip("_"), call.place, -max(values) if lowers else min(values), total)
        if len(parts) != 1 or parts[0][1] is None:
            return None
        call = parts[0][1]
    return None


def away(whole: ListedCall, loss: torch.Tensor, passes: Passes, batch: Any, made: frozenset[str]) -> IdleTerm | None:
    """Whether the loss leads each output away from its target: those of a 1, or of the right class, down, and the others up.

    None where no single tensor of the batch is the target for certain, or torch's own loss functions take the output.
    """
    output = passes.output
    target = _target(output, passes.given, batch, made) if output is not None else None
    if output is None or target is None or any(c.is_loss for c in behind(whole)):  # the sign of torch's own losses is looked at by itself
        return None
    (gradient,) = torch.autograd.grad(loss, [output], retain_graph=True, allow_unused=True)
    if gradient is None or not bool(torch.isfinite(gradient).all()):
        return None
    gradient = gradient.double()
    shares = [_share(gradient[target]), _share(-gradient[~target])]
    least = min(shares) if None not in shares else None  # type: ignore[type-var]
    what = "map" if int(target.sum()) != output.numel() // output.shape[1] else "classes"
    return IdleTerm("away", what, _place(whole), least, float(loss.detach())) if least is not None else None


def _share(gradient: torch.Tensor) -> float | None:
    """Of a gradient's absolute sum, the share of its positive entries: descent lowers these outputs. None where it is zero."""
    size = float(gradient.abs().sum())
    return float(gradient.clamp(min=0).sum()) / size if size else None


def _target(output: torch.Tensor, given: list[torch.Tensor], batch: Any, made: frozenset[str]) -> torch.Tensor | None:
    """[...] bool, of the output's shape: where the target is 1, or which class is right."""
    ours = {t.data_ptr() for t in given}
    rows = output.numel() // output.shape[1] if output.dim() > 1 else 0
    named = [(name, t) for name, t in named_tensors(batch) if t.data_ptr() not in ours and t.numel() in (output.numel(), rows)]
    if len(named) != 1 or named[0][0] in made or not output.numel():
        return None
    target = named[0][1].detach()
    if target.numel() == output.numel():
        binary = target.numel() >= FEWEST * len(output) and bool(((target == 0) | (target == 1)).all())
        mask = target.reshape(output.shape) == 1
        return mask if binary and bool(mask.any()) and not bool(mask.all()) else None
    classes = output.shape[1]
    shape = (output.shape[0], *output.shape[2:])
    fits = [n for n in target.shape if n > 1] == [n for n in shape if n > 1]
    if not fits or target.is_floating_point() or target.dtype == torch.bool or not 1 < classes <= MOST_CLASSES:
        return None
    if int(target.min()) < 0 or int(target.max()) >= classes:
        return None
    return torch.zeros_like(output, dtype=torch.bool).scatter_(1, target.reshape(shape).unsqueeze(1).long(), True)


def _place(whole: ListedCall) -> Location | None:
    """Where the loss is made, before it is scaled by a number."""
    call = whole
    for _ in range(DEEP):
        parts = parts_of(call)
        if call.name not in SCALES or len(parts) != 1 or parts[0][1] is None:
            break
        call = parts[0][1]
    return call.place


def ratio(whole: ListedCall, loss: torch.Tensor) -> IdleTerm | None:
    """A ratio of probabilities that the loss takes with itself clipped, as PPO does, and that leads the wrong way.

    "upside-down": the policy that is trained stands below the line; "objective": the lesser of both is lowered, not raised.
    """
    for call in behind(whole, DEEP):
        kind = call.name.strip("_")
        if kind not in _LESSER | _GREATER or len(call.calls) != 2 or not call.live:
            continue
        clips = [c for side in call.calls for c in behind(side, NEAR) if c.name.strip("_") in _CLIPS and c.live]
        made = {id(c): c for clip in clips for c in clip.calls}
        shared = [c for c in made.values() if all(any(c is x for x in behind(side, NEAR)) for side in call.calls)]
        below = _below(shared[0]) if len(shared) == 1 else None
        if below is None:
            continue
        (gradient,) = torch.autograd.grad(loss, [call.tensor], retain_graph=True, allow_unused=True)
        raised = gradient is not None and bool((gradient <= 0).all()) and bool(gradient.any())
        lowered = gradient is not None and bool((gradient >= 0).all()) and bool(gradient.any())
        meant = raised if kind in _LESSER else lowered
        if (raised or lowered) and meant == below:
            what, at = ("upside-down", shared[0]) if below else ("objective", whole)
            return IdleTerm(
                "ratio", what, _place(at) if at is whole else at.place, float(shared[0].tensor.detach().mean()), float(loss.detach())
            )
    return None


def easy(whole: ListedCall, loss: torch.Tensor) -> IdleTerm | None:
    """Losses of samples times a factor made of the outputs: `value` 1 where it falls as they rise: a greater error can lower both."""
    for call in behind(whole, DEEP):
        sides = [_unscaled(c) for c in call.calls if c.live] if call.name.strip("_") in PRODUCTS else []
        both = [{id(c): c for c in behind(side, 2 * NEAR)} for side in sides]
        found = [c for known in both for c in known.values() if c.is_loss and c.name in _OF_CLASSES]
        losses = [c for c in found if c.tensor.shape == call.tensor.shape]
        if len(sides) != 2 or not losses or not all({id(c) for c in (losses[0], *losses[0].calls)} & known.keys() for known in both):
            continue
        one, other = (c.tensor.detach().flatten().double() for c in sides)
        if FEWEST_SAMPLES <= len(one) == len(other) and all(bool((x >= 0).all() and x.any()) for x in (one, other)):
            ranks = torch.stack([x.argsort(stable=True).argsort() for x in (one, other)]).double()
            return IdleTerm("away", "easy", call.place, -float(torch.corrcoef(ranks)[0, 1]), float(loss.detach()))
    return None


def _unscaled(call: ListedCall) -> ListedCall:
    """What it was before it was multiplied by what carries no gradient, as weights of classes."""
    for _ in range(DEEP):
        live = [c for c in call.calls if c.live] if call.name in SCALES and sum(t.requires_grad for t in call.given) == 1 else []
        if not live or live[0].tensor.shape != call.tensor.shape:
            break
        call = live[0]
    return call


def _below(made: ListedCall) -> bool | None:
    """Whether what is trained stands below the line of a ratio: exp(old - new) or old / new; None: it is no such ratio."""
    name = made.name.strip("_")
    inner = made.calls[0] if name == "exp" and len(made.calls) == 1 else made
    operation = inner.name.strip("_")
    wanted = ("sub", "rsub", "subtract") if name == "exp" else ("div", "truediv", "divide", "true_divide", "rtruediv")
    if operation not in wanted or len(inner.given) != 2 or sum(t.requires_grad for t in inner.given) != 1:
        return None
    return inner.given[0 if operation in ("rsub", "rtruediv") else 1].requires_grad
