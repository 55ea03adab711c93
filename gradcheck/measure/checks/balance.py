"""Terms of a loss of which one is summed and the other averaged; and terms that train nothing, before training and after the probe."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.measure.checks import direction
from gradcheck.measure.checks.by_weights import gradients, norm
from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.listing import DEEP, ListedCall, Listing, behind, parts_of, terms_of
from gradcheck.types.checks import IdleTerm, Imbalance, LossTerm
from gradcheck.types.location import Location
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import TrainingCopy

FEWEST = 3.0  # ratio of weights below which two terms are not compared any further; rules ask for more
MOST_TERMS = 8  # that are compared
FEWEST_SAMPLES = 4  # whose differences are a spread
_REDUCTIONS = frozenset(("sum", "mean", "nansum", "nanmean"))
LIKELIHOODS = frozenset(
    "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy nll_loss gaussian_nll_loss poisson_nll_loss".split()
)
PROPORTIONAL = 0.999  # cosine from which a gradient points along the means: that of a divergence from the standard normal does
_PER_TARGET = frozenset(("cross_entropy", "nll_loss"))


@dataclass(frozen=True)
class Traded:
    """A divergence from the standard normal, and the error of what is decoded."""

    error: float  # mean over its entries
    nats: float  # of divergence for each of them
    factor: float  # of the divergence at which both are one likelihood; of squared errors, that of a normal with the present error
    likelihood: bool  # the error is one in nats

    @property
    def together(self) -> float:
        """Both as one: a likelihood in nats, or the squared error that a code of no nats would be as good as."""
        return self.error + self.nats if self.likelihood else self.error * math.exp(2 * self.nats)


@dataclass(eq=False)
class Term:
    """A scalar of the loss and the call that reduced entries to it.

    `made_of`: the tensors with gradient that the entries come from; none where they are compared with data.
    """

    call: ListedCall
    facts: LossTerm
    scalar: float  # factor of the call's result in the loss
    made_of: list[torch.Tensor] = field(default_factory=list)

    @property
    def value(self) -> torch.Tensor:
        """What it adds to the loss, up to the sign of differences."""
        return self.scalar * self.call.tensor.sum()

    def is_like(self, other: LossTerm) -> bool:
        return (self.facts.operation, self.facts.site) == (other.operation, other.site)


@torch.enable_grad()
def traded(loss: Callable[[], torch.Tensor], strong: LossTerm, weak: LossTerm) -> Traded | None:
    """The two terms in another pass, known by their operations and places."""
    listing = Listing()
    with listing:
        value = loss()
    whole = listing.of(value)
    terms = list(reduced(whole, set())) if whole is not None else []
    found = [[t for t in terms if t.is_like(facts)] for facts in (strong, weak)]
    return traded_of(found[0][0], found[1][0]) if [len(x) for x in found] == [1, 1] else None


def traded_of(strong: Term, weak: Term) -> Traded | None:
    """None where the strong term is no divergence of a normal distribution from the standard one."""
    scale = _scale(strong)
    entries = math.prod(weak.facts.shape)
    error = float(weak.value.detach().abs()) / (weak.facts.weight * entries)
    if scale is None or not error or not math.isfinite(error):
        return None
    likelihood = weak.facts.operation in LIKELIHOODS
    factor = (1.0 if likelihood else 2 * error) * weak.facts.weight / scale
    return Traded(error, abs(float(strong.value.detach())) / scale / entries, factor, likelihood)


def _below(call: ListedCall, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The tensors with gradient, as large as the entries, that the entries are computed from."""
    pending = [call]
    for _ in range(DEEP):
        if not pending:
            return
        here = pending.pop()
        yield from (t for t in here.given if t.requires_grad and t.shape == shape)
        pending += [c for c in here.calls if c.live and c.tensor.shape in (shape, ())]


def _scale(strong: Term) -> float | None:
    """How many times the divergence, in nats over all samples, is in the loss: its gradient in the means is so many times the means."""
    means = {id(t): t for t in _below(strong.call, strong.facts.shape)}
    given = torch.autograd.grad(strong.value, list(means.values()), retain_graph=True, allow_unused=True) if means else ()
    found = []
    for t, g in zip(means.values(), given, strict=True):
        if g is None or not bool(g.any()):
            continue
        x, g = t.detach().double().reshape(-1), g.double().reshape(-1)
        if abs(float(x @ g)) >= PROPORTIONAL * float(x.norm() * g.norm()):
            found.append(abs(float(x @ g)) / float(x @ x))
    return max(found, default=None)  # the logarithm of the variance is a small number, and its gradient half as large


def imbalance(context: CheckContext) -> Imbalance | None:
    """The two terms whose entries differ most in weight. None where there are no such two."""
    batches = context.workload.batches
    whole = [b for b in batches if batch_size(b) == batch_size(batches[0])]  # a last one that is smaller weighs its entries otherwise
    late = _Look(context.trained, whole[-1])
    pair = late.pair()
    if pair is None:
        return None
    early = _Look(context.fork(), batches[0])
    before = [early.like(term) for term in pair]
    strong, weak = pair
    first, other = before
    if first is None or other is None:
        return None
    gradients = max(late.gradients(strong, weak), early.gradients(first, other))
    spreads = [_spread(a) / b for a, t in zip(strong.made_of, first.made_of, strict=False) if (b := _spread(t)) > 0]
    if not spreads or len(strong.made_of) != len(first.made_of):
        return None
    both = traded_of(strong, weak)
    return Imbalance(
        strong.facts, weak.facts, strong.facts.weight / weak.facts.weight, gradients, max(spreads), both.factor if both else None
    )


class _Look:
    """The terms of one loss."""

    def __init__(self, copy: TrainingCopy, batch: object) -> None:
        self.parameters = [p for group in copy.optimizer.param_groups for p in group["params"] if p.requires_grad]
        listing = Listing()
        with torch.enable_grad(), listing:
            loss = copy.loss(batch)
        whole = listing.of(loss)
        self.terms: list[Term] = []
        if whole is not None and loss.requires_grad and bool(torch.isfinite(loss.detach()).all()):
            self.terms = list(reduced(whole, {id(p) for p in self.parameters}))[:MOST_TERMS]

    def pair(self) -> tuple[Term, Term] | None:
        """The penalty whose entries weigh most, and of the comparisons with data whose entries weigh much less the heaviest as a whole."""
        strong = max((t for t in self.terms if t.made_of), key=lambda t: t.facts.weight, default=None)
        if strong is None:
            return None
        lighter = [t for t in self.terms if not t.made_of and FEWEST * t.facts.weight < strong.facts.weight]
        return (strong, max(lighter, key=lambda t: t.facts.weight * math.prod(t.facts.shape))) if lighter else None

    def like(self, term: Term) -> Term | None:
        same = [t for t in self.terms if t.is_like(term.facts)]
        return same[0] if len(same) == 1 else None

    def gradients(self, strong: Term, weak: Term) -> float:
        """Ratio of the norms of the gradients of two terms, in the weights that both reach; 0 where they share none."""
        given = (gradients(t.scalar * t.call.tensor.sum(), self.parameters, retain=True) for t in (strong, weak))
        shared = [(a, b, p) for a, b, p in zip(*given, self.parameters, strict=True) if a is not None and b is not None]
        parameters = [p for *_, p in shared]
        one, other = norm([a for a, *_ in shared], parameters), norm([b for _, b, _ in shared], parameters)
        return one / other if other > 0 else 0.0


def reduced(whole: ListedCall, parameters: set[int]) -> Iterator[Term]:
    """The scalars that a loss is a sum of, down to those that a reduction of entries made."""
    pending = [(whole, 1.0)]
    for _ in range(DEEP):
        if not pending:
            return
        call, factor = pending.pop()
        entries = _entries(call) if call.live and factor else None
        pending += [(source, factor * f) for _, source, f in _repeated(call) if source is not call]
        if entries is not None:
            shape, share, ends = entries
            facts = LossTerm(call.name.strip("_"), call.place, shape, abs(factor * share))
            made_of = {} if _is_compared(ends, parameters) else {id(t): t.detach() for end in ends for t in _behind(end, parameters)}
            yield Term(call, facts, factor, list(made_of.values()))
        elif call.tensor.numel() == 1:
            pending += [(source, factor * call.factor) for _, source in parts_of(call) if source is not None]


def _entries(call: ListedCall) -> tuple[tuple[int, ...], float, list[ListedCall]] | None:
    """Of a call that reduces entries to one number: their shape, the weight of each in it, and the calls that made them."""
    if call.tensor.numel() != 1 or all(t.numel() <= 1 for t in call.given):
        return None
    if call.is_loss:
        over = call.given[1] if call.name in _PER_TARGET and len(call.given) > 1 else call.given[0]
        rows = over.shape[0] if over.dim() else 1
        share = {"sum": 1.0, "batchmean": 1 / max(1, rows)}.get(call.reduction, 1 / max(1, over.numel()))
        return tuple(over.shape), share, [call]
    once = {id(c) for c, *_ in _repeated(call)}
    ends = terms_of(call, entries=True) if call.name in _REDUCTIONS else ()
    leaves = [(c, f / c.tensor.numel()) for c, f in ends if c.live and id(c) not in once]
    if not leaves:
        return None
    heaviest, share = max(leaves, key=lambda x: abs(x[1]))
    return tuple(heaviest.tensor.shape), share, [c for c, _ in leaves]


def _repeated(call: ListedCall) -> Iterator[tuple[ListedCall, ListedCall, float]]:
    """Where a reduction takes one number for many entries, as a sum over the batch, alone or times a mask; the number, its factor."""
    for c, f in terms_of(call, entries=True) if call.name in _REDUCTIONS and call.tensor.numel() == 1 else ():
        if c.live and c.tensor.numel() == 1:
            yield c, c, f
        elif c.name.strip("_") in direction.PRODUCTS and len(c.given) == 2:
            for one, other, source in zip(c.given, reversed(c.given), c.sources, strict=True):
                if one.requires_grad and one.numel() == 1 and not other.requires_grad and source is not None:
                    yield c, source, f * float(other.detach().double().mean())


def _is_compared(ends: list[ListedCall], parameters: set[int]) -> bool:
    """Whether the entries of a term compare an output with data; then reaching its least value is no collapse."""
    pending, left = list(ends), DEEP
    while pending and left:
        call, left = pending.pop(), left - 1
        shape = call.given[0].shape if call.is_loss and call.given else call.tensor.shape
        if any(id(t) in parameters for t in call.given):
            continue
        data = [t for t in call.given if t.dim() and not t.requires_grad and (t.shape == shape or _is_classes(call, t))]
        if any(len(t) >= FEWEST_SAMPLES and _spread(t) > 0 for t in data):
            return True
        pending += [c for c in call.calls if c.live and c.tensor.shape == shape]
    return False


def _is_classes(call: ListedCall, tensor: torch.Tensor) -> bool:
    """Whether it holds the class [N, ...] of each entry of a loss's input [N, C, ...]."""
    return call.is_loss and not tensor.is_floating_point() and len(tensor) == len(call.given[0])


def _behind(call: ListedCall, parameters: set[int]) -> list[torch.Tensor]:
    """What the entries of a term are made of, sample by sample: the tensors with gradient that its last call takes, or its result."""
    given = [t for t in call.given if t.requires_grad and t.dim() and id(t) not in parameters]
    found = given if given and (call.is_loss or all(t.shape == call.tensor.shape for t in given)) else [call.tensor]
    return [t for t in found if t.dim() > 1 and t.shape[0] >= FEWEST_SAMPLES]


def _spread(tensor: torch.Tensor) -> float:
    """Standard deviation over the samples, the root mean square over the features."""
    return float(tensor.float().var(0, correction=0).mean().sqrt())


MOST_LOOKED_AT = 16  # whose gradients are looked at
EQUAL = 1e-5  # difference of two numbers, relative to them, that float32's rounding explains
CANCELLED = 1e-3  # gradient of a loss, relative to that through one of two numbers whose difference it is made of
FEWEST_ENTRIES = 4  # entries of a derivative that are all zero

# Their results have no gradient beyond a bound, as intended.
_BOUNDED = frozenset("clamp clamp_ clip clamp_min clamp_max relu relu_ maximum minimum max min where threshold leaky_relu hardtanh".split())


@dataclass
class _TermLook:
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
    found = {key: (term, early.found[key]) for key, term in late.found.items() if key in early.found}
    both = [pair for (kind, *at), pair in found.items() if kind != "zero" or ("equals", *at) not in found]
    return (
        *(term if term.value else before for term, before in both if term.value or before.value or term.kind != "cut"),
        *late.led,
    )


def _look(copy: TrainingCopy, batch: Any, made: frozenset[str]) -> _TermLook:
    look, listing, passes = _TermLook(), Listing(), direction.Passes()
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
        if call.tensor.numel() >= FEWEST_ENTRIES and not bool(call.tensor.any()):
            look.add(IdleTerm("derivative", "torch.autograd.grad", call.place, 0.0, total, _order(call)))
    _cancelled(look, listing.differences, loss, parameters, total)
    return look


def _silent(look: _TermLook, terms: Mapping[ListedCall, float], total: float) -> None:
    """Terms without gradient although they were computed from something that has one, or by a loss function."""
    live = {id(t) for t in terms if t.live}
    for term, factor in terms.items():
        if term.live or not (term.made or term.counted or term.is_loss) or term.uses > 1:
            continue
        if any(id(c) in live for c in behind(term)):
            continue  # computed from another term, it only changes what the loss reads, as a straight-through estimator does
        value = factor * float(term.tensor.detach().float().mean())
        if value or term.counted:  # a share of errors may have come to 0
            cut = _cut_in(term)
            look.add(IdleTerm("cut" if term.made or term.counted else "no-weights", cut.name.strip("_"), cut.place, value, total))


def _cut_in(term: ListedCall) -> ListedCall:
    """The call behind which the gradient ends; of a loss function, its own."""
    call = term
    for _ in range(DEEP):
        if any(t.requires_grad for t in call.given):
            return call
        behind = [c for c in call.calls if c.made or c.counted]
        if not behind:
            return call
        call = behind[0]
    return term


def _zero(look: _TermLook, terms: Mapping[ListedCall, float], parameters: Sequence[torch.Tensor], total: float) -> None:
    """Terms whose gradient is zero for every trained weight, where none keeps to a bound."""
    for term, factor in [x for x in terms.items() if x[0].live][:MOST_LOOKED_AT]:
        value = factor * float(term.tensor.detach().float().mean())
        if value and not _bounded(term) and not _norm(term.tensor, parameters):
            look.add(IdleTerm("zero", term.name.strip("_"), term.place, value, total))


def _bounded(term: ListedCall) -> bool:
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


def _order(derivative: ListedCall) -> int:
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


def _cancelled(
    look: _TermLook, differences: Sequence[ListedCall], loss: torch.Tensor, parameters: Sequence[torch.Tensor], total: float
) -> None:
    """Differences of two equal numbers that the loss is made of, so that what one sends back the other takes away."""
    for call in differences[-MOST_LOOKED_AT:]:
        one, other = call.given
        if one.shape != other.shape or not _equal(one.detach(), other.detach()):
            continue
        (weights,) = torch.autograd.grad(loss, [call.tensor], retain_graph=True, allow_unused=True)
        if weights is None or not bool(weights.any()):
            continue
        through = CANCELLED * _norm(one, parameters, weights)
        if through > 0 and _norm(call.tensor, parameters, weights) <= through:
            look.add(IdleTerm("zero", call.name.strip("_"), call.place, 0.0, total))
        if through > 0 and _norm(loss, parameters) <= through:  # no other term trains
            look.add(IdleTerm("equals", call.name.strip("_"), call.place, float(one.detach().float().mean()), total))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one - other).abs() <= EQUAL * torch.maximum(one.abs(), other.abs())).all())
