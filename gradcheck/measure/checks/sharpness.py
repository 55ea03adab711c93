"""Rates that can work: the largest eigenvalue of the Hessian at the start, for a training that failed; and the least rate at which the loss
rises along the optimizer's own update, for the first steps of a copy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradcheck.analysis.convergence import outcome
from gradcheck.measure.checks.by_weights import Vector, dot, gradients, like, norm
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.sample_gradients import deterministic
from gradcheck.training.clip import as_real, gradient_of, norms_of
from gradcheck.training.trainer import Trainer, needs_closure, take_step
from gradcheck.types.checks import CriticalRate, Sharpness
from gradcheck.workload.dtensor import local
from gradcheck.workload.lockstep import several
from gradcheck.workload.rng import seed_all
from gradcheck.workload.training_copy import TrainingCopy, some_samples

SAMPLES = 64
ITERATIONS = 12  # power iterations, as in the calibration of the rule that reads it
CONVERGED = 0.02  # relative change of the eigenvalue that ends the iteration
OTHERS = 0.5  # length of the start's random part relative to the gradient's
LARGE_PART = 0.1  # of the length of a product
LEAST_COSINE = 0.8  # of the two products of a direction with the Hessian; kinks in the loss keep it below 1
SMALL = 1e-3  # step of a finite difference, relative to the norm of the weights

Product = Callable[[Vector], Vector]


def sharpness(context: CheckContext) -> Sharpness | None:
    """Sharpness on a few samples of the first batch; None when the probe learned, or when the loss is not finite.

    Raises Unmeasured when neither a second derivative nor a difference of gradients is finite.
    """
    if outcome(context.probe, context.chance) == "learns":
        return None
    copy = context.fork()
    batch = some_samples(context.workload, SAMPLES)
    with deterministic(copy.model, everything=False):
        return largest_eigenvalue(copy, batch, context.seed)


def largest_eigenvalue(copy: TrainingCopy, batch: Any, seed: int, iterations: int = ITERATIONS) -> Sharpness | None:
    """Power iteration on Hessian-vector products, or on differences of gradients where there is no second derivative."""
    weights = [p for p in copy.model.parameters() if p.requires_grad]

    def loss() -> torch.Tensor:
        seed_all(seed)
        return copy.loss(batch)

    start = loss()
    alone = not several()  # of gathered parameters no second derivative is to be had
    found = torch.autograd.grad(start, weights, create_graph=True, allow_unused=True) if alone else gradients(start, weights)
    pairs = [(p, g) for p, g in zip(weights, found, strict=True) if g is not None]
    first = _start([p for p, _ in pairs], [g for _, g in pairs])
    if not math.isfinite(float(start.detach())) or first is None:
        return None
    reached = [p for p, _ in pairs]
    differences = difference_product(loss, reached)
    exact = _exactly(pairs, first, iterations, differences) if alone else None
    if exact is not None:
        return exact
    value, done = _power(differences, first, iterations, reached)
    return Sharpness(value, "finite differences", done)


def _exactly(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], first: Vector, iterations: int, differences: Product) -> Sharpness | None:
    """By second derivatives; None where an operation's derivative has none, or is taken for a constant by autograd."""
    reached = [p for p, _ in pairs]
    try:
        product, anywhere = exact_product(pairs), _random(reached)
        once = product(anywhere)
        value, done = _power(product, first, iterations, reached)
        return Sharpness(value, "hessian-vector products", done) if _agree(once, differences(anywhere)) else None
    except (RuntimeError, NotImplementedError):
        return None


def exact_product(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Product:
    """v -> Hv, from the gradients of the weights with their graph."""
    weights, gradients = [p for p, _ in pairs], [g for _, g in pairs]

    def product(v: Vector) -> Vector:
        used = [(g, x) for g, x in zip(gradients, v, strict=True) if g.requires_grad]
        if not used:
            return [torch.zeros_like(p) for p in weights]
        found = torch.autograd.grad([g for g, _ in used], weights, [x for _, x in used], retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if h is None else h for p, h in zip(weights, found, strict=True)]

    return product


def difference_product(loss: Callable[[], torch.Tensor], weights: Sequence[torch.Tensor]) -> Product:
    """v -> (gradient at w + ev - gradient at w - ev) / 2e, for v of norm 1. The weights are put back."""
    step = SMALL * max(norm([local(p) for p in weights], weights), 1e-3)

    def at(v: Vector, factor: float) -> Vector:
        before = [local(p).detach().clone() for p in weights]
        with torch.no_grad():
            for p, x in zip(weights, v, strict=True):
                local(p).add_(x, alpha=factor)
        try:
            found = gradients(loss(), weights)
        finally:
            with torch.no_grad():
                for p, x in zip(weights, before, strict=True):
                    local(p).copy_(x)
        return [torch.zeros_like(local(p)) if g is None else g for p, g in zip(weights, found, strict=True)]

    def product(v: Vector) -> Vector:
        return [(a - b) / (2 * step) for a, b in zip(at(v, step), at(v, -step), strict=True)]

    return product


def _power(product: Product, v: Vector, iterations: int, weights: Sequence[torch.Tensor]) -> tuple[float, int]:
    """(largest Rayleigh quotient v'Hv of the iterates, iterations): at most the largest eigenvalue, whatever the negative ones are."""
    best, before = -math.inf, 0.0
    for done in range(1, iterations + 1):
        h = product(v)
        value, size = dot(v, h, weights), norm(h, weights)
        if not math.isfinite(value):
            raise Unmeasured("the second derivative of the loss is NaN or infinite")
        best = max(best, value)
        if size == 0 or (done > 2 and abs(size - before) <= CONVERGED * size):
            return best, done
        v, before = [x / size for x in h], size
    return best, iterations


def _start(weights: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Vector | None:
    """The gradient's direction, dominated by the sharpest ones, plus a little of every other; None without a finite gradient."""
    size = norm(list(found), weights)
    if not math.isfinite(size) or size == 0:
        return None
    v = [g.detach() / size + OTHERS * n for g, n in zip(found, _random(weights), strict=True)]
    length = norm(v, weights)
    return [x / length for x in v]


def _random(weights: Sequence[torch.Tensor]) -> Vector:
    """A direction of length 1, always the same one."""
    generator = torch.Generator().manual_seed(0)
    v = [like(torch.randn(p.shape, generator=generator, device="cpu"), p) for p in weights]
    length = norm(v, weights)
    return [x / length for x in v]


def _agree(a: Vector, b: Vector) -> bool:
    """Whether two products point the same way in each parameter that makes up a good part of them."""
    total = max(norm(a, a), norm(b, b))
    sizes = [(dot([x], [y], [x]), norm([x], [x]), norm([y], [y])) for x, y in zip(a, b, strict=True)]
    return all(product >= LEAST_COSINE * n * m > 0 for product, n, m in sizes if max(n, m) > LARGE_PART * total)


AGAIN = 3  # steps after which it is measured again if the first update raises the loss: Adam's first one is larger than the later ones
GROWTH, FARTHEST = 4.0, 4  # factor between multiples of the update, and how many of them: 1/256 to 256 of the rate


def critical_rate(context: CheckContext) -> CriticalRate | None:
    """None if the level of the loss says nothing, or the optimizer evaluates the loss itself.

    Raises Unmeasured when the loss is not finite, or no step changes the weights.
    """
    if context.probe.surrogate or context.probe.beside or needs_closure(context.workload.optimizer):
        return None
    copy, untrained = context.fork(), dict(context.workload.model.named_parameters())
    training = Trainer(copy, context.workload.batches)
    found: list[float] = []
    while training.ended == "done" and training.step <= AGAIN:
        share = _look(copy, context.workload.batches[training.step % len(context.workload.batches)], context.seed, untrained)
        if share is not None:
            found.append(share)
        if share is not None and share <= 1:
            break
        training.train(training.step + AGAIN, norms=False)
    if not found:
        raise Unmeasured("no step of the optimizer changes a finite loss")
    return CriticalRate(tuple(found))


def _look(copy: TrainingCopy, batch: Any, seed: int, untrained: Mapping[str, torch.Tensor]) -> float | None:
    """The rate over the critical one, at the present weights, which are put back; the optimizer's state is one step on.

    `untrained`: the original's weights, by name. Where they are the present ones they need not be kept a second time.
    """
    copy.optimizer.zero_grad(set_to_none=True)
    seed_all(seed)
    start = copy.loss(batch)
    if not math.isfinite(float(start.detach())) or not start.requires_grad:
        return None
    start.backward()
    named = [(name, p) for name, p in copy.model.named_parameters() if p.requires_grad and gradient_of(p) is not None]
    weights = [p for _, p in named]
    before = [_kept(p, untrained.get(name)) for name, p in named]
    take_step(copy, batch)
    copy.optimizer.zero_grad(set_to_none=True)  # their memory is that of the update
    update = [p.detach() - x for p, x in zip(weights, before, strict=True)]
    lengths = norms_of([as_real(u) for u in update])
    if not any(lengths) or not all(map(math.isfinite, lengths)):
        return None

    @torch.no_grad()
    def rises(factor: float) -> bool:
        """Whether the loss, with the same random numbers, is above its start so many updates ahead."""
        for p, x, u in zip(weights, before, update, strict=True):
            p.copy_(x).add_(u, alpha=factor)
        seed_all(seed)
        return not float(copy.loss(batch)) <= float(start.detach())

    try:
        return 1 / _least(rises)
    finally:
        with torch.no_grad():
            for p, x in zip(weights, before, strict=True):
                p.copy_(x)


def _kept(weight: torch.Tensor, original: torch.Tensor | None) -> torch.Tensor:
    """What the weight is now, in memory that no step of the copy writes to."""
    if original is None or original is weight or not torch.equal(original, weight):
        return weight.detach().clone()
    return original.detach()


def _least(rises: Callable[[float], bool]) -> float:
    """The least factor at which it rises, to within a factor of sqrt(2), if there is one in reach."""
    up = rises(1.0)
    step = 1 / GROWTH if up else GROWTH
    factor = 1.0
    for _ in range(FARTHEST):
        if rises(factor * step) != up:
            break
        factor *= step
    else:
        return factor
    low, high = sorted((factor, factor * step))
    middle = math.sqrt(low * high)
    return math.sqrt(low * middle) if rises(middle) else math.sqrt(middle * high)
