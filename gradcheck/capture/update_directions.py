"""The rules that an update may follow, as directions: what each makes of the gradients so far, before the rate.

A direction takes gradients, steps by entries, and where there are any; a weight without gradient is left out of a step, as optimizers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

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
    yield "Adagrad", {}, 0.0, _adagrad
    for decay in DECAYS:
        yield from _momenta(decay)
        yield from _adams(EPSILONS[0], decay)


def _momenta(decay: float) -> Iterator[Rule]:
    return (("SGD", {"momentum": mu, "nesterov": ahead}, decay, _momentum(mu, ahead)) for ahead in (False, True) for mu in MOMENTA)


def _adams(eps: float, decay: float) -> Iterator[Rule]:
    return (("Adam", {"betas": betas, "eps": eps}, decay, _adam(*betas, eps)) for betas in BETAS)


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


def _adam(first: float, second: float, eps: float) -> Direction:
    def direction(g: Tensor, there: Tensor) -> Tensor:
        count = there.cumsum(0).clamp(min=1)
        mean = _recurrence(first, 1 - first, g, there) / (1 - first**count)
        square = _recurrence(second, 1 - second, g * g, there) / (1 - second**count)
        return mean / (square.sqrt() + eps)

    return direction


def _rmsprop(alpha: float, eps: float) -> Direction:
    return lambda g, there: g / (_recurrence(alpha, 1 - alpha, g * g, there).sqrt() + eps)


def _adagrad(g: Tensor, there: Tensor) -> Tensor:
    return g / (_recurrence(1, 1, g * g, there).sqrt() + 1e-10)
