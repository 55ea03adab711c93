"""How large a step is compared with the weights, which judges a learning rate whatever the optimizer."""

import math
from statistics import median

from gradcheck.analysis.layer_groups import is_matrix
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter

FIRST, LAST = 3, 20  # steps between which the size of an update is judged: after the start, before the decay
COUPLED_DECAY = 1e-4  # next to gradients that an adaptive optimizer divides by their own size
USUAL_L2 = 5e-4  # next to the gradients of SGD, which may be small: Krizhevsky et al. 2012; He et al. 2016 have 1e-4
LONG = 1e5  # steps of a long training
LEAST_DECAY = 0.01  # of a parameter, or of its gradient
TARGET_RATIO = 0.01  # best at step 10 over 12 networks and 3 optimizers: 0.015 to 0.02, within 0.4 decades


def gentle_decay(m: Measurement, strongest: float) -> float:
    """A tenth of the strongest weight decay, or less: weights shrink by e in ten passes, a thousand steps at least.

    Where decay passes through the moments of an adaptive optimizer its time constant is unknown (Loshchilov and Hutter 2019): 1e-4 at most.
    Added to the gradients of SGD it competes with them: what is usual at most.
    """
    o = m.optimizer
    slow = 1 / (o.lr * max(1000.0, 10.0 * m.data.batches)) if o.lr > 0 else COUPLED_DECAY
    coupled = math.inf if o.decoupled else COUPLED_DECAY if o.adaptive else USUAL_L2
    return float(f"{min(slow, coupled, strongest / 10):.1g}")


def decay_matters(m: Measurement, p: Parameter) -> bool:
    """Whether weight decay does anything to a parameter: it takes a hundredth of it over a long training, or of its gradient's size.

    The latter where it is added to the gradient of an adaptive optimizer, and the gradient is known.
    """
    o, last = m.optimizer, p.at(-1)
    if o.adaptive and not o.decoupled and last is not None and last.gradient_norm and last.norm > 0:
        return p.weight_decay * last.norm >= LEAST_DECAY * last.gradient_norm
    return p.weight_decay * (p.lr if p.lr is not None else o.lr) * LONG >= LEAST_DECAY


def update_ratio(m: Measurement, before: float | None = None) -> float | None:
    """Median of ||update|| / ||weight|| over weight matrices and the measured steps 3 to 20, or all when it broke off earlier.

    `before`: of the last measured step before this one instead. Zero-initialised weights are left out, and those without gradient: what
    no gradient moves says nothing about the rate.
    """
    ratios = [
        (s.step, s.update_ratio)
        for p in m.parameters
        if p.trainable and p.groups > 0 and is_matrix(p) and p.steps and p.steps[0].norm > 0
        for s in p.steps
        if s.update_ratio is not None and math.isfinite(s.update_ratio) and s.gradient_norm
    ]
    if before is not None:
        ratios = [(step, ratio) for step, ratio in ratios if step < before]
        last = max((step for step, _ in ratios), default=0)
        return median([ratio for step, ratio in ratios if step == last]) if ratios else None
    settled = [ratio for step, ratio in ratios if FIRST <= step <= LAST]
    return median(settled or [ratio for _, ratio in ratios]) if ratios else None


def outgrowth(m: Measurement) -> tuple[float, float] | None:
    """How much the probe multiplies the norm of a weight matrix, and the gain that it ends with, rms * sqrt(inputs of a unit): medians.

    A gain near 1 keeps the size of a signal, and initialisations choose it; large ones without a normalization saturate what follows.
    """
    moved = [
        (p.steps[-1].norm / p.steps[0].norm, p.steps[-1].norm * math.sqrt(math.prod(p.shape[1:]) / p.count))
        for p in m.parameters
        if p.trainable and p.groups > 0 and is_matrix(p) and len(p.steps) > 1 and p.steps[0].norm > 0
    ]
    known = [pair for pair in moved if all(map(math.isfinite, pair))]
    return (median(growth for growth, _ in known), median(gain for _, gain in known)) if known else None
