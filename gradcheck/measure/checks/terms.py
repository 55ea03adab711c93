"""Parts of the loss that train nothing: terms without gradient, derivatives that are zero everywhere, differences of equals.

The loss is taken apart into what it is a sum of, before training and after the probe; what trains nothing at both times counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradcheck.instrument.activation_recorder import caller
from gradcheck.instrument.loss_calls import LOSSES
from gradcheck.measure.checks.by_weights import gradients, norm
from gradcheck.measure.checks.context import CheckContext
from gradcheck.types.checks import IdleTerm
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in
from gradcheck.workload.training_copy import TrainingCopy

MOST_TERMS = 16  # whose gradients are looked at
DEEP = 200  # sums and scales on the way from the loss to a term
EQUAL = 1e-5  # difference of two numbers, relative to them, that float32's rounding explains
CANCELLED = 1e-3  # gradient of a loss, relative to that through one of two numbers whose difference it is made of
FEWEST = 4  # entries of a derivative that are all zero

_SUMS = frozenset("add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ subtract rsub stack cat".split())
_JOINS = frozenset(("stack", "cat"))
_SCALES = frozenset(
    "mul __mul__ __rmul__ __imul__ mul_ multiply div __div__ __truediv__ __itruediv__ true_divide div_ divide neg __neg__ negative".split()
)
_SAME = frozenset("mean sum nanmean nansum view reshape squeeze unsqueeze flatten to float double clone contiguous".split())
_DIFFERENCES = frozenset("sub __sub__ __rsub__ subtract rsub".split())
# Their results have no gradient where a bound holds, as is meant.
_BOUNDED = frozenset("clamp clamp_ clip clamp_min clamp_max relu relu_ maximum minimum max min where threshold leaky_relu hardtanh".split())
_NO_VALUES = frozenset("zeros_like ones_like empty_like rand_like randn_like full_like new_zeros new_ones size dim".split())


@dataclass(eq=False)
class Call:
    """The result of a function of torch, and what it was computed from."""

    name: str
    tensor: torch.Tensor
    place: Location | None
    live: bool  # it carries gradient
    made: bool  # it does not, and was computed from what does
    is_loss: bool
    given: list[torch.Tensor] = field(default_factory=list)
    sources: list[Call | None] = field(default_factory=list)
    factor: float = 1.0  # of the loss before it: what it makes of the mean of what it is given
    reduction: str = ""  # of a loss function
    uses: int = 0

    @property
    def calls(self) -> list[Call]:
        return [x for x in self.sources if x is not None]


class Listing(TorchFunctionMode):
    """Every call of a function while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[weakref.ref[torch.Tensor], Call]] = {}
        self.derivatives: list[Call] = []
        self.differences: list[Call] = []

    def of(self, tensor: torch.Tensor) -> Call | None:
        entry = self.known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        given = list(tensors_in((args, kwargs), 3))
        sources = [self.of(t) for t in given]
        output = function(*args, **kwargs)
        if name == "__get__" and getattr(getattr(function, "__self__", None), "__name__", "") != "data":
            return output
        if name == "__set__" or name in _NO_VALUES:
            return output
        results = [t for t in tensors_in(output, 2) if t.is_floating_point()]
        place = location_of_frame(caller()) if results else None
        for tensor in results:
            from_live = any(t.requires_grad for t in given) or any(c.made for c in sources if c is not None)
            call = Call(
                name, tensor, place, tensor.requires_grad, from_live and not tensor.requires_grad, function in LOSSES, given, sources
            )
            call.factor = _factor(name, args, tensor)
            call.reduction = _reduction(args, kwargs) if call.is_loss else ""
            self.known[id(tensor)] = weakref.ref(tensor), call
            if function is torch.autograd.grad and (kwargs.get("create_graph") or (len(args) > 4 and args[4])):
                self.derivatives.append(call)
            if name in _DIFFERENCES and len(given) == 2 and all(t.requires_grad for t in given):
                self.differences.append(call)
        for source in sources:
            if source is not None:
                source.uses += 1
        return output


def terms_of(call: Call) -> Iterator[tuple[Call, float]]:
    """What a loss is a sum of, each with its factor."""
    pending = [(call, 1.0)]
    for _ in range(DEEP):
        if not pending:
            return
        here, factor = pending.pop()
        parts = parts_of(here)
        if not parts:
            yield here, factor
        for tensor, source in parts:
            share = tensor.numel() / max(1, here.tensor.numel()) if here.name in _JOINS else 1.0
            pending += [(source, factor * here.factor * share)] if source is not None else []


def parts_of(call: Call) -> list[tuple[torch.Tensor, Call | None]]:
    """The summands, or the one tensor that a call scales or averages; none where it does something else."""
    pairs = list(zip(call.given, call.sources, strict=True))
    if call.name in _SUMS or call.name in _SAME:
        return pairs
    if call.name in _SCALES:
        varied = pairs if len(pairs) == 1 else [p for p in pairs if p[0].numel() > 1 or p[0].requires_grad]
        return varied if len(varied) == 1 else []
    return []


def _factor(name: str, args: Sequence[Any], result: torch.Tensor) -> float:
    """By how much a call multiplies the sum of what it is given, where that is one number."""
    if name == "sum":
        return float(sum(t.numel() for t in args[:1] if isinstance(t, torch.Tensor))) / max(1, result.numel())
    if name not in _SCALES or len(args) < 2:
        return 1.0
    plain = [a for a in args[:2] if not isinstance(a, torch.Tensor)] or [a for a in args[:2] if _is_number(a)]
    if len(plain) != 1 or not _is_number(plain[0]):
        return 1.0
    number = float(plain[0])
    if "div" not in name or plain[0] is not args[1]:
        return number
    return 1 / number if number else 1.0


def _reduction(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    given = kwargs.get("reduction", next((a for a in args if isinstance(a, str)), "mean"))
    return str(given)


def _is_number(value: Any) -> bool:
    alone = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.requires_grad
    return alone or (isinstance(value, (int, float)) and not isinstance(value, bool))


@dataclass
class _Look:
    """One pass: the parts that train nothing, by what they are and where."""

    found: dict[tuple[str, str, Location | None], IdleTerm] = field(default_factory=dict)

    def add(self, term: IdleTerm) -> None:
        self.found.setdefault((term.kind, term.operation, term.site), term)


def idle_terms(context: CheckContext) -> tuple[IdleTerm, ...]:
    """What trains nothing, neither before training nor after the probe."""
    batch = context.workload.batches[-1]
    late = _look(context.trained, batch)
    if not late.found:
        return ()
    early = _look(context.fork(), context.workload.batches[0])
    return tuple(term for key, term in late.found.items() if key in early.found)


def _look(copy: TrainingCopy, batch: Any) -> _Look:
    look, listing = _Look(), Listing()
    parameters = [p for group in copy.optimizer.param_groups for p in group["params"] if p.requires_grad]
    with torch.enable_grad(), listing:
        loss = copy.loss(batch)
    whole = listing.of(loss)
    if whole is None or not loss.requires_grad or not parameters or not bool(torch.isfinite(loss.detach()).all()):
        return look
    total = abs(float(loss.detach()))
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
    """Terms that carry no gradient, though they were computed from what does, or by a loss function."""
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
    """Of what it is a derivative: 1 of the model's output, 2 of a first derivative."""
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
