"""Parts of the loss that train nothing: terms without gradient, derivatives that are zero everywhere, differences of equals.

The loss is split into its summands, before training and after the probe; those that train nothing at both times count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.measure.checks import direction
from gradcheck.measure.checks.by_weights import gradients, norm
from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.listing import DEEP, Call, Listing, terms_of
from gradcheck.types.checks import IdleTerm
from gradcheck.types.location import Location
from gradcheck.workload.training_copy import TrainingCopy

MOST_TERMS = 16  # whose gradients are looked at
EQUAL = 1e-5  # difference of two numbers, relative to them, that float32's rounding explains
CANCELLED = 1e-3  # gradient of a loss, relative to that through one of two numbers whose difference it is made of
FEWEST = 4  # entries of a derivative that are all zero

# Their results have no gradient beyond a bound, as intended.
_BOUNDED = frozenset("clamp clamp_ clip clamp_min clamp_max relu relu_ maximum minimum max min where threshold leaky_relu hardtanh".split())


@dataclass
class _Look:
    """One pass: the parts that train nothing, by what they are and where."""

    found: dict[tuple[str, str, Location | None], IdleTerm] = field(default_factory=dict)
    led: list[IdleTerm] = field(default_factory=list)  # where the loss leads

    def add(self, term: IdleTerm) -> None:
        self.found.setdefault((term.kind, term.operation, term.site), term)


def idle_terms(context: CheckContext) -> tuple[IdleTerm, ...]:
    """What trains nothing, neither before training nor after the probe."""
    w = context.workload
    late = _look(context.trained, w.batches[-1], w.made)
    if not late.found:
        return tuple(late.led)
    early = _look(context.fork(), w.batches[0], w.made)
    return (*(term for key, term in late.found.items() if key in early.found), *late.led)


def _look(copy: TrainingCopy, batch: Any, made: frozenset[str]) -> _Look:
    look, listing, passes = _Look(), Listing(), direction.Passes()
    parameters = [p for group in copy.optimizer.param_groups for p in group["params"] if p.requires_grad]
    with torch.enable_grad(), passes.of(copy.model), listing:
        loss = copy.loss(batch)
    whole = listing.of(loss)
    if whole is None or not loss.requires_grad or not parameters or not bool(torch.isfinite(loss.detach()).all()):
        return look
    total = abs(float(loss.detach()))
    led = (
        direction.away(whole, loss, passes, batch, made),
        direction.runaway(whole, total) if float(loss.detach()) < 0 else None,
        direction.ratio(whole, loss),
        direction.easy(whole, loss),
    )
    look.led += [term for term in led if term is not None]
    terms = dict(terms_of(whole))
    if len(terms) > 1:
        _silent(look, terms, total)
        _zero(look, terms, parameters, total)
    for call in listing.derivatives:
        if call.tensor.numel() >= FEWEST and not bool(call.tensor.any()):
            look.add(IdleTerm("derivative", "torch.autograd.grad", call.place, 0.0, total, _order(call)))
    _cancelled(look, listing.differences, loss, parameters, total)
    return look


def _silent(look: _Look, terms: Mapping[Call, float], total: float) -> None:
    """Terms without gradient although they were computed from something that has one, or by a loss function."""
    for term, factor in terms.items():
        if term.live or not (term.made or term.is_loss) or term.uses > 1 or _through(term, terms):
            continue
        value = factor * float(term.tensor.detach().float().mean())
        if value:
            cut = _cut_in(term)
            look.add(IdleTerm("cut" if term.made else "no-weights", cut.name.strip("_"), cut.place, value, total))


def _through(term: Call, terms: Iterable[Call]) -> bool:
    """Whether it was computed from another term: then it only changes what the loss reads, as a straight-through estimator does."""
    others = {id(t) for t in terms if t is not term and t.live}
    seen: set[int] = set()
    pending = [term]
    while pending:
        call = pending.pop()
        if id(call) in others:
            return True
        if id(call) not in seen:
            seen.add(id(call))
            pending += call.calls
    return False


def _cut_in(term: Call) -> Call:
    """The call behind which the gradient ends; of a loss function, its own."""
    call = term
    for _ in range(DEEP):
        if any(t.requires_grad for t in call.given):
            return call
        behind = [c for c in call.calls if c.made]
        if not behind:
            return call
        call = behind[0]
    return term


def _zero(look: _Look, terms: Mapping[Call, float], parameters: Sequence[torch.Tensor], total: float) -> None:
    """Terms whose gradient is zero for every trained weight, where none keeps to a bound."""
    for term, factor in [x for x in terms.items() if x[0].live][:MOST_TERMS]:
        value = factor * float(term.tensor.detach().float().mean())
        if value and not _bounded(term) and not _norm(term.tensor, parameters):
            look.add(IdleTerm("zero", term.name.strip("_"), term.place, value, total))


def _bounded(term: Call) -> bool:
    """Whether a bound was put on it after the last weights."""
    pending, left = [term], DEEP
    while pending and left:
        call, left = pending.pop(), left - 1
        if call.name in _BOUNDED:
            return True
        weighted = any(t.is_leaf and t.requires_grad for t in call.given)
        pending += [] if weighted else [c for c in call.calls if c.live]
    return False


def _norm(tensor: torch.Tensor, parameters: Sequence[torch.Tensor], weights: torch.Tensor | None = None) -> float:
    if weights is None:
        weights = torch.ones_like(tensor) if tensor.numel() == 1 else torch.rand_like(tensor) + 0.5
    found = [(g, p) for g, p in zip(gradients(tensor, parameters, weights, retain=True), parameters, strict=True) if g is not None]
    return norm([g for g, _ in found], [p for _, p in found])


def _order(derivative: Call) -> int:
    """Its order as a derivative: 1 of the model's output, 2 of a first derivative."""
    order, pending, left = 1, list(derivative.calls), DEEP
    while pending and left:
        call, left = pending.pop(), left - 1
        if call.name == "grad":
            order += 1
            pending = list(call.calls)
        else:
            pending += call.calls
    return order


def _cancelled(look: _Look, differences: Sequence[Call], loss: torch.Tensor, parameters: Sequence[torch.Tensor], total: float) -> None:
    """Differences of two equal numbers that the loss is made of, so that what one sends back the other takes away."""
    for call in differences[-MOST_TERMS:]:
        one, other = call.given
        if one.shape != other.shape or not _equal(one.detach(), other.detach()):
            continue
        (weights,) = torch.autograd.grad(loss, [call.tensor], retain_graph=True, allow_unused=True)
        if weights is None or not bool(weights.any()):
            continue
        through = _norm(one, parameters, weights)
        if through > 0 and _norm(loss, parameters) <= CANCELLED * through:
            look.add(IdleTerm("equals", call.name.strip("_"), call.place, float(one.detach().float().mean()), total))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one - other).abs() <= EQUAL * torch.maximum(one.abs(), other.abs())).all())
