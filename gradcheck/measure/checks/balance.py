"""Terms of a loss that weigh their entries differently by orders, since one is summed and the other averaged, and what that does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from gradcheck.measure.checks.by_weights import gradients, norm
from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.terms import DEEP, Call, Listing, parts_of, terms_of
from gradcheck.types.checks import Imbalance, LossTerm
from gradcheck.workload.training_copy import TrainingCopy

FEWEST = 3.0  # ratio of weights below which two terms are not compared any further; rules ask for more
MOST_TERMS = 8  # that are compared
FEWEST_SAMPLES = 4  # whose differences are a spread
_REDUCTIONS = frozenset(("sum", "mean", "nansum", "nanmean"))
_PER_TARGET = frozenset(("cross_entropy", "nll_loss"))


@dataclass(eq=False)
class _Term:
    """A scalar of the loss and the call that reduced entries to it.

    `made_of`: the tensors with gradient that the entries come from; none where they are compared with data.
    """

    call: Call
    facts: LossTerm
    scalar: float  # factor of the call's result in the loss
    made_of: list[torch.Tensor] = field(default_factory=list)


def imbalance(context: CheckContext) -> Imbalance | None:
    """The two terms whose entries differ most in weight. None where there are no such two."""
    batches = context.workload.batches
    late = _Look(context.trained, batches[-1])
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
    return Imbalance(strong.facts, weak.facts, strong.facts.weight / weak.facts.weight, gradients, max(spreads))


class _Look:
    """The terms of one loss."""

    def __init__(self, copy: TrainingCopy, batch: object) -> None:
        self.parameters = [p for group in copy.optimizer.param_groups for p in group["params"] if p.requires_grad]
        listing = Listing()
        with torch.enable_grad(), listing:
            loss = copy.loss(batch)
        whole = listing.of(loss)
        self.terms: list[_Term] = []
        if whole is not None and loss.requires_grad and bool(torch.isfinite(loss.detach()).all()):
            self.terms = list(_reduced(whole, {id(p) for p in self.parameters}))[:MOST_TERMS]

    def pair(self) -> tuple[_Term, _Term] | None:
        """The term whose entries weigh most, and the heaviest one as a whole of those whose entries weigh much less."""
        strong = max((t for t in self.terms if t.made_of), key=lambda t: t.facts.weight, default=None)
        if strong is None:
            return None
        lighter = [t for t in self.terms if FEWEST * t.facts.weight < strong.facts.weight]
        return (strong, max(lighter, key=lambda t: t.facts.weight * math.prod(t.facts.shape))) if lighter else None

    def like(self, term: _Term) -> _Term | None:
        same = [t for t in self.terms if (t.facts.operation, t.facts.site) == (term.facts.operation, term.facts.site)]
        return same[0] if len(same) == 1 else None

    def gradients(self, strong: _Term, weak: _Term) -> float:
        """Ratio of the norms of the gradients of two terms, in the weights that both reach; 0 where they share none."""
        given = (gradients(t.scalar * t.call.tensor.sum(), self.parameters, retain=True) for t in (strong, weak))
        shared = [(a, b, p) for a, b, p in zip(*given, self.parameters, strict=True) if a is not None and b is not None]
        parameters = [p for *_, p in shared]
        one, other = norm([a for a, *_ in shared], parameters), norm([b for _, b, _ in shared], parameters)
        return one / other if other > 0 else 0.0


def _reduced(whole: Call, parameters: set[int]) -> Iterator[_Term]:
    """The scalars that a loss is a sum of, down to those that a reduction of entries made."""
    pending = [(whole, 1.0)]
    for _ in range(DEEP):
        if not pending:
            return
        call, factor = pending.pop()
        entries = _entries(call) if call.live and factor else None
        if entries is not None:
            shape, share, ends = entries
            facts = LossTerm(call.name.strip("_"), call.place, shape, abs(factor * share))
            made_of = {} if _is_compared(ends, parameters) else {id(t): t.detach() for end in ends for t in _behind(end, parameters)}
            yield _Term(call, facts, factor, list(made_of.values()))
        elif call.tensor.numel() == 1:
            pending += [(source, factor * call.factor) for _, source in parts_of(call) if source is not None]


def _entries(call: Call) -> tuple[tuple[int, ...], float, list[Call]] | None:
    """Of a call that reduces entries to one number: their shape, the weight of each in it, and the calls that made them."""
    if call.tensor.numel() != 1 or all(t.numel() <= 1 for t in call.given):
        return None
    if call.is_loss:
        over = call.given[1] if call.name in _PER_TARGET and len(call.given) > 1 else call.given[0]
        rows = over.shape[0] if over.dim() else 1
        share = {"sum": 1.0, "batchmean": 1 / max(1, rows)}.get(call.reduction, 1 / max(1, over.numel()))
        return tuple(over.shape), share, [call]
    leaves = [(c, f / c.tensor.numel()) for c, f in terms_of(call) if c.live and c.tensor.numel() > 1] if call.name in _REDUCTIONS else []
    if not leaves:
        return None
    heaviest, share = max(leaves, key=lambda x: abs(x[1]))
    return tuple(heaviest.tensor.shape), share, [c for c, _ in leaves]


def _is_compared(ends: list[Call], parameters: set[int]) -> bool:
    """Whether the entries of a term compare an output with data: then its least value is no collapse."""
    pending, left = list(ends), DEEP
    while pending and left:
        call, left = pending.pop(), left - 1
        shape = call.given[0].shape if call.is_loss and call.given else call.tensor.shape
        if any(id(t) in parameters for t in call.given):
            continue
        if any(not t.requires_grad and t.shape == shape and len(t) >= FEWEST_SAMPLES and _spread(t) > 0 for t in call.given if t.dim()):
            return True
        pending += [c for c in call.calls if c.live and c.tensor.shape == shape]
    return False


def _behind(call: Call, parameters: set[int]) -> list[torch.Tensor]:
    """What the entries of a term are made of, sample by sample: the tensors with gradient that its last call takes, or its result."""
    given = [t for t in call.given if t.requires_grad and t.dim() and id(t) not in parameters]
    found = given if given and (call.is_loss or all(t.shape == call.tensor.shape for t in given)) else [call.tensor]
    return [t for t in found if t.dim() > 1 and t.shape[0] >= FEWEST_SAMPLES]


def _spread(tensor: torch.Tensor) -> float:
    """Standard deviation over the samples, the root mean square over the features."""
    return float(tensor.float().var(0, correction=0).mean().sqrt())
