"""The largest eigenvalue of the Hessian at the start, for a training that failed: it bounds the rates that can work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradcheck.analysis.convergence import outcome
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.sample_gradients import deterministic, norm
from gradcheck.types.checks import Sharpness
from gradcheck.workload.device import wide
from gradcheck.workload.few_samples import some_samples
from gradcheck.workload.rng import seed_all
from gradcheck.workload.training_copy import TrainingCopy
from gradcheck.workload.transfers import as_numbers

SAMPLES = 64
ITERATIONS = 12  # power iterations, as in the calibration of the rule that reads it
CONVERGED = 0.02  # relative change of the eigenvalue that ends the iteration
OTHERS = 0.5  # length of the start's random part relative to the gradient's
LARGE_PART = 0.1  # of the length of a product
LEAST_COSINE = 0.8  # of the two products of a direction with the Hessian; kinks in the loss keep it below 1
SMALL = 1e-3  # step of a finite difference, relative to the norm of the weights

Vector = list[torch.Tensor]


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
    gradients = torch.autograd.grad(start, weights, create_graph=True, allow_unused=True)
    pairs = [(p, g) for p, g in zip(weights, gradients, strict=True) if g is not None]
    first = _start([p for p, _ in pairs], [g for _, g in pairs])
    if not math.isfinite(float(start.detach())) or first is None:
        return None
    reached = [p for p, _ in pairs]
    differences = difference_product(loss, reached)
    try:
        exact = exact_product(pairs)
        anywhere = _random(reached)
        once = exact(anywhere)
        value, done = _power(exact, first, iterations)
        if _agree(once, differences(anywhere)):  # otherwise autograd takes some derivative for a constant
            return Sharpness(value, "hessian-vector products", done)
    except (RuntimeError, NotImplementedError):  # an operation whose derivative has no derivative
        pass
    value, done = _power(differences, first, iterations)
    return Sharpness(value, "finite differences", done)


def exact_product(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[Vector], Vector]:
    """v -> Hv, from the gradients of the weights with their graph."""
    weights, gradients = [p for p, _ in pairs], [g for _, g in pairs]

    def product(v: Vector) -> Vector:
        used = [(g, x) for g, x in zip(gradients, v, strict=True) if g.requires_grad]
        if not used:
            return [torch.zeros_like(p) for p in weights]
        found = torch.autograd.grad([g for g, _ in used], weights, [x for _, x in used], retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if h is None else h for p, h in zip(weights, found, strict=True)]

    return product


def difference_product(loss: Callable[[], torch.Tensor], weights: Sequence[torch.Tensor]) -> Callable[[Vector], Vector]:
    """v -> (gradient at w + ev - gradient at w - ev) / 2e, for v of norm 1. The weights are put back."""
    step = SMALL * max(norm(weights), 1e-3)

    def at(v: Vector, factor: float) -> Vector:
        before = [p.detach().clone() for p in weights]
        with torch.no_grad():
            for p, x in zip(weights, v, strict=True):
                p.add_(x, alpha=factor)
        try:
            found = torch.autograd.grad(loss(), list(weights), allow_unused=True)
        finally:
            with torch.no_grad():
                for p, x in zip(weights, before, strict=True):
                    p.copy_(x)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]

    def product(v: Vector) -> Vector:
        return [(a - b) / (2 * step) for a, b in zip(at(v, step), at(v, -step), strict=True)]

    return product


def _power(product: Callable[[Vector], Vector], v: Vector, iterations: int) -> tuple[float, int]:
    """(largest Rayleigh quotient v'Hv of the iterates, iterations): at most the largest eigenvalue, whatever the negative ones are."""
    best, before = -math.inf, 0.0
    for done in range(1, iterations + 1):
        h = product(v)
        value, size = _dot(v, h), norm(h)
        if not math.isfinite(value):
            raise Unmeasured("the second derivative of the loss is NaN or infinite")
        best = max(best, value)
        if size == 0 or (done > 2 and abs(size - before) <= CONVERGED * size):
            return best, done
        v, before = [x / size for x in h], size
    return best, iterations


def _start(weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> Vector | None:
    """The gradient's direction, dominated by the sharpest ones, plus a little of every other; None without a finite gradient."""
    size = norm(gradients)
    if not math.isfinite(size) or size == 0:
        return None
    v = [g.detach() / size + OTHERS * n for g, n in zip(gradients, _random(weights), strict=True)]
    length = norm(v)
    return [x / length for x in v]


def _random(weights: Sequence[torch.Tensor]) -> Vector:
    """A direction of length 1, always the same one."""
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=generator, device="cpu").to(p) for p in weights]
    length = norm(v)
    return [x / length for x in v]


def _dot(a: Vector, b: Vector) -> float:
    return sum(as_numbers([(wide(x) * wide(y)).sum() for x, y in zip(a, b, strict=True)]))


def _agree(a: Vector, b: Vector) -> bool:
    """Whether two products point the same way in each parameter that makes up a good part of them."""
    total = max(norm(a), norm(b))
    large = ((x, y) for x, y in zip(a, b, strict=True) if max(norm([x]), norm([y])) > LARGE_PART * total)
    return all(_dot([x], [y]) >= LEAST_COSINE * norm([x]) * norm([y]) > 0 for x, y in large)
