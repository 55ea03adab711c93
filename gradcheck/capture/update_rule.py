"""Which rule an update follows, told from what it did: gradient descent, with momentum, Adam, ... and at which rate.

The rate of a step is what the direction of a rule has to be multiplied by to give the change that was seen. The rule that gives the changes
best is taken, the simplest one of those that give them equally well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from gradcheck.capture.changes import LeafChange

MOMENTA = (0.9, 0.5, 0.8, 0.85, 0.95, 0.98, 0.99)
BETAS = (
    *((0.9, second) for second in (0.999, 0.99, 0.95, 0.98)),
    *((0.95, 0.99), (0.8, 0.99), (0.5, 0.999), (0.0, 0.999), (0.0, 0.99), (0.0, 0.9)),
)
ALPHAS = (0.9, 0.99, 0.95, 0.999)
EPSILONS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-3)
DECAYS = (1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 0.1)  # that are tried where decay is a part of the gradient

Tensor = torch.Tensor
Direction = Callable[[Tensor, Tensor], Tensor]
Rule = tuple[str, Mapping[str, Any], float, Direction]  # a class of torch.optim, its arguments but for the rate, decay in the gradient


def every_rule() -> Iterator[Rule]:
    """The simplest first."""
    yield "SGD", {}, 0.0, lambda g, there: g
    yield from _momenta(0.0)
    yield "Adam", {"betas": (0.0, 0.0), "eps": 1e-12}, 0.0, _adam(0.0, 0.0, 1e-12)  # the sign of the gradient
    for eps in EPSILONS:
        yield from (("RMSprop", {"alpha": alpha, "eps": eps}, 0.0, _rmsprop(alpha, eps)) for alpha in ALPHAS)
        yield from _adams(eps, 0.0)
    for eps in EPSILONS[:2]:
        yield from _adams(eps, 0.0, hat=True)
    yield "Adagrad", {}, 0.0, _adagrad
    for decay in DECAYS:
        yield from _momenta(decay)
        yield from _adams(EPSILONS[0], decay)


def _momenta(decay: float) -> Iterator[Rule]:
    return (("SGD", {"momentum": mu, "nesterov": ahead}, decay, _momentum(mu, ahead)) for ahead in (False, True) for mu in MOMENTA)


def _adams(eps: float, decay: float, *, hat: bool = False) -> Iterator[Rule]:
    return (("Adam", {"betas": betas, "eps": eps}, decay, _adam(*betas, eps, hat)) for betas in BETAS)


def _recurrence(keep: float, take: float, values: Tensor, there: Tensor) -> Tensor:
    """`keep` times a state that starts at zero, plus `take` times the value: the state after each step."""
    state, states = torch.zeros_like(values[0]), []
    for value, updated in zip(values, there, strict=True):
        state = torch.where(updated, keep * state + take * value, state)
        states.append(state)
    return torch.stack(states)


def _momentum(mu: float, ahead: bool) -> Direction:
    def direction(g: Tensor, there: Tensor) -> Tensor:
        velocity = _recurrence(mu, 1, g, there)
        return g + mu * velocity if ahead else velocity

    return direction


def _adam(first: float, second: float, eps: float, hat: bool = False) -> Direction:
    """`hat`: epsilon is added before the bias is corrected, as in Keras; torch's Adam, which soon does the same, stands for it."""

    def direction(g: Tensor, there: Tensor) -> Tensor:
        count = there.cumsum(0).clamp(min=1)
        mean = _recurrence(first, 1 - first, g, there) / (1 - first**count)
        square = _recurrence(second, 1 - second, g * g, there) / (1 - second**count)
        return mean / (square.sqrt() + (eps / (1 - second**count).sqrt() if hat else eps))

    return direction


def _rmsprop(alpha: float, eps: float) -> Direction:
    return lambda g, there: g / (_recurrence(alpha, 1 - alpha, g * g, there).sqrt() + eps)


def _adagrad(g: Tensor, there: Tensor) -> Tensor:
    return g / (_recurrence(1, 1, g * g, there).sqrt() + 1e-10)


COMPARED_STEPS = 24  # that the rule is told from
COMPARED_ENTRIES = 256
CLOSE = 0.01  # of a change: how far what a rule gives may be from it
NEAR = 0.05  # of a change: the same for a rate that is not known well yet
ROUNDINGS = 2.0  # of a weight's format that a change may be off by
CLEAR = 8.0  # times that: changes that a rate is read off
ENOUGH = 0.8  # of the entries that a rule has to give; what else the loop does to the weights (a projection, say) may change the rest
CLEARLY = 0.01  # by which share of the entries a rule has to beat a simpler one
TELLING = 1e-3  # of the largest gradient: the rates of steps with smaller ones are not read
MOSTLY = 0.9  # of the steps
SAME_RATE = 0.02  # relative difference of two rates that are one
SAME = 2e-3  # relative difference of a number and a rounder one that stands for it


@dataclass(frozen=True)
class UpdateRule:
    """`kind` is a class of torch.optim, `settings` its arguments but for rate and decay. `rates`: by step; negative ones go uphill."""

    kind: str
    settings: Mapping[str, Any]
    coupled: float = 0.0  # decay that is added to the gradient
    rates: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()  # by leaf: its rate, in those of `rates`
    decays: tuple[float, ...] = ()  # by leaf: the share of the rate by which the weights shrink
    share: float = 1.0  # of the entries whose changes it gives
    clipped: float | None = None  # norm that the gradient is scaled down to, in the update itself
    normalized: bool = False  # it is divided by its norm


@dataclass
class _Seen:
    """The changes of all leaves side by side, steps by entries."""

    before: Tensor
    gradient: Tensor
    delta: Tensor
    there: Tensor  # whether an entry's leaf was changed in a step
    noise: Tensor  # by entry: what a change may be off by
    leaf: Tensor  # number of the leaf of each entry

    def part(self, steps: slice, entries: slice = slice(None)) -> _Seen:
        before, gradient, delta, there = (x[steps, entries] for x in (self.before, self.gradient, self.delta, self.there))
        return _Seen(before, gradient, delta, there, self.noise[entries], self.leaf[entries])


def recognised(changes: Sequence[Sequence[LeafChange]], epsilons: Sequence[float], norms: Sequence[float]) -> UpdateRule | None:
    """By leaf: its changes, and the resolution of its format; by step: the gradient's norm. None when no rule that is known gives them."""
    everything = _side_by_side(changes, epsilons)
    if everything is None:
        return None
    part = everything.part(slice(COMPARED_STEPS), slice(None, None, max(1, everything.leaf.numel() // COMPARED_ENTRIES)))
    best: tuple[UpdateRule, Direction] | None = None
    for kind, settings, coupled, direction in every_rule():
        rule = _fitted(part, UpdateRule(kind, settings, coupled), direction)
        if best is None or rule.share > best[0].share + CLEARLY:
            best = rule, direction
        if rule.share > 1 - CLEARLY:
            break
    if best is None or best[0].share < ENOUGH:
        return None
    return _bounded(_fitted(everything, *best), norms)


def _side_by_side(changes: Sequence[Sequence[LeafChange]], epsilons: Sequence[float]) -> _Seen | None:
    """Up to the first step that is not finite."""
    steps = max((c.step for leaf in changes for c in leaf), default=-1) + 1
    columns: dict[str, list[Tensor]] = {name: [] for name in ("before", "gradient", "delta", "there", "noise", "leaf")}
    for number, (leaf, eps) in enumerate(zip(changes, epsilons, strict=True)):
        width, rows = len(leaf[0].delta), torch.tensor([c.step for c in leaf], device="cpu")
        for name in ("before", "gradient", "delta"):
            column = torch.zeros(steps, width, dtype=torch.float64, device="cpu")
            column[rows] = torch.stack([getattr(c, name).double() for c in leaf])
            columns[name].append(column)
        there = torch.zeros(steps, width, dtype=torch.bool, device="cpu")
        there[rows] = True
        columns["there"].append(there)
        columns["noise"].append(ROUNDINGS * eps * columns["before"][-1].nan_to_num().abs().amax(0))
        columns["leaf"].append(torch.full((width,), number, device="cpu"))
    if not steps:
        return None
    seen = _Seen(**{name: torch.cat(parts, dim=-1) for name, parts in columns.items()})
    finite = (seen.before + seen.gradient + seen.delta).isfinite().all(1)
    known = int(finite.long().cumprod(0).sum())
    return seen.part(slice(known)) if known else None


# --------------------------------------------------------------------- the fit


def _fitted(seen: _Seen, rule: UpdateRule, direction: Direction) -> UpdateRule:
    """The rule as it gives the changes best: with weights that shrink only where that gives clearly more of them."""
    plain = _fit(seen, rule, direction, shrinks=False)
    if plain.share > 1 - CLEARLY:
        return plain
    shrinking = _fit(seen, rule, direction, shrinks=True)
    return shrinking if shrinking.share > plain.share + CLEARLY else plain


def _fit(seen: _Seen, rule: UpdateRule, direction: Direction, *, shrinks: bool) -> UpdateRule:
    leaves = int(seen.leaf.max()) + 1
    way = direction(seen.gradient + rule.coupled * seen.before, seen.there)
    decays = torch.zeros(leaves, dtype=torch.float64, device="cpu")
    if shrinks:
        decays = torch.stack([_decay(seen, way, seen.leaf == n) for n in range(leaves)])
        way = way + decays[seen.leaf] * seen.before
    factors, rates = _rates(seen, way, leaves)
    return replace(
        rule,
        rates=_smooth(rates.tolist()),
        factors=tuple(_round(x) for x in factors.tolist()),
        decays=tuple(_round(x) for x in decays.tolist()),
        share=_given(seen, factors[seen.leaf] * way, rates),
    )


def _decay(seen: _Seen, way: Tensor, mine: Tensor) -> Tensor:
    """What the weights of a leaf have to be multiplied by and added to its directions: least squares by step, the median over them."""
    steps = seen.there[:, mine].any(1)
    u, p, d = (x[steps][:, mine] for x in (way, seen.before, seen.delta))
    uu, pp, up, du, dp = ((a * b).sum(1) for a, b in ((u, u), (p, p), (u, p), (d, u), (d, p)))
    rate, decay = du * pp - dp * up, dp * uu - du * up
    known = (rate != 0) & (uu * pp - up * up > 1e-9 * uu * pp)
    return (decay[known] / rate[known]).median() if bool(known.any()) else torch.zeros((), dtype=torch.float64, device="cpu")


def _rates(seen: _Seen, way: Tensor, leaves: int) -> tuple[Tensor, Tensor]:
    """Factors by leaf, and rates by step: medians, which what happens to a few entries does not move, made finer by least squares."""
    clear = _is_clear(seen) & (way != 0)
    if not bool(clear.any()):
        return torch.ones(leaves, dtype=torch.float64, device="cpu"), _least_squares(seen, way, seen.there).expand(len(way))
    ratio = torch.where(clear, -seen.delta / way, torch.nan)
    by_leaf = torch.stack([_median(ratio[:, seen.leaf == n]) for n in range(leaves)])
    main = by_leaf[int(torch.stack([clear[:, seen.leaf == n].sum() for n in range(leaves)]).argmax())]
    factors = (by_leaf / main).nanmedian(1).values.nan_to_num(1.0, 1.0, 1.0)
    factors = torch.where((factors - 1).abs() < SAME_RATE, 1.0, factors)
    scaled = factors[seen.leaf] * way
    middle = _median(torch.where(clear, -seen.delta / scaled, torch.nan))
    constant = _refined(seen, scaled, middle.nanmedian()).expand(len(way))
    if (share := _given(seen, scaled, constant)) > 1 - CLEARLY:
        return factors, constant
    varying = torch.stack([_refined(seen.part(slice(t, t + 1)), scaled[t : t + 1], middle[t]) for t in range(len(way))])
    return factors, constant if share >= _given(seen, scaled, varying) - CLEARLY else varying


def _is_clear(seen: _Seen) -> Tensor:
    """Changes far above the rounding, which makes nothing of small ones."""
    return seen.there & (seen.delta.abs() > CLEAR * seen.noise)


def _median(rows: Tensor) -> Tensor:
    return rows.nanmedian(1).values if rows.shape[1] else torch.full((len(rows),), torch.nan, dtype=torch.float64, device="cpu")


def _refined(seen: _Seen, way: Tensor, rate: Tensor) -> Tensor:
    """A rate made finer by the entries that it nearly gives."""
    if not bool(rate.isfinite()):
        return torch.zeros_like(rate)
    near = _is_clear(seen) & ((seen.delta + rate * way).abs() <= NEAR * seen.delta.abs() + seen.noise)
    fine = _least_squares(seen, way, near)
    return fine if bool(fine.isfinite()) and bool(fine != 0) else rate


def _least_squares(seen: _Seen, way: Tensor, those: Tensor) -> Tensor:
    return -(those * seen.delta * way).sum() / (those * way * way).sum().clamp(min=1e-300)


def _given(seen: _Seen, way: Tensor, rates: Tensor) -> float:
    """The share of the entries whose changes the rates give, of those that tell anything."""
    given = -rates[:, None] * way
    told = seen.there & ((seen.delta.abs() > seen.noise) | (given.abs() > seen.noise))
    right = (seen.delta - given).abs() <= CLOSE * seen.delta.abs() + seen.noise
    return float((told & right).sum() / told.sum()) if bool(told.any()) else 1.0


# ------------------------------------------------------------------- the rates


def _bounded(rule: UpdateRule, norms: Sequence[float]) -> UpdateRule:
    """Rates that only make up for the norm of the gradient are one rate, and a clipping, or a division by the norm."""
    rates = rule.rates
    if rule.kind != "SGD" or rule.settings or len(set(rates)) < 2 or min(rates) < 0:
        return rule
    largest = max(norms[: len(rates)])
    steps = [(rate, rate * norm, norm) for rate, norm in zip(rates, norms, strict=False) if norm > TELLING * largest]
    rate, length = max(rate for rate, _, _ in steps), median(length for _, length, _ in steps)
    if _share(abs(n - length) <= SAME_RATE * length for _, n, _ in steps) >= MOSTLY:
        return replace(rule, rates=(_round(length),) * len(rates), normalized=True)
    length = max(length for r, length, _ in steps if r < (1 - SAME_RATE) * rate)
    if _share(abs(min(rate, length / norm) - r) <= SAME_RATE * r for r, _, norm in steps) >= MOSTLY:
        return replace(rule, rates=(_round(rate),) * len(rates), clipped=_round(length / rate))
    return rule


def _share(said: Iterable[bool]) -> float:
    known = list(said)
    return sum(known) / len(known)


def _smooth(rates: Sequence[float]) -> tuple[float, ...]:
    """Rates that hardly differ are one."""
    middle = sorted(rates)[len(rates) // 2]
    if all(abs(r - middle) <= SAME_RATE * abs(middle) for r in rates):
        return (_round(middle),) * len(rates)
    return tuple(_round(r) for r in rates)


def _round(x: float) -> float:
    """To as few digits as leave it what it is."""
    short = (float(f"{x:.{digits}g}") for digits in (1, 2, 3, 6)) if math.isfinite(x) else iter((0.0,))
    return next((y for y in short if abs(y - x) <= SAME * abs(x)), 0.0)
