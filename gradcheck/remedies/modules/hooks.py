"""What treatments do at every step: hooks of the optimizer, so that a bare loop with `optimizer.step()` gets them.

A hook object holds numbers and parameters only, and meets its optimizer as an argument: copies of the optimizer carry copies of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

FASTEST = 10.0  # steps of the size of the rate that a penalty may move an entry by at once, in the metric of Adam

Factor = Callable[[int], float]  # of the rate, by the number `t` of steps taken before


class RateSchedule:
    """Multiplies the rates during each step and puts them back after it, so that it composes with a scheduler."""

    def __init__(self, factor: Factor) -> None:
        self.factor = factor
        self.step = 0
        self.kept: list[Any] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(self.before)
        optimizer.register_step_post_hook(self.after)

    def before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._restore(optimizer)  # a step that raised
        factor = self.factor(self.step)
        self.kept = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._restore(optimizer)
        self.step += 1

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        for group, rate in zip(optimizer.param_groups, self.kept, strict=False):
            group["lr"] = rate
        self.kept = []


def warming_up(steps: int, start: float, t: int) -> float:
    """From `start` to 1 over so many steps, in a straight line: torch's LinearLR."""
    return start + (1 - start) * min(1.0, t / max(1, steps))


def cosine(steps: int, t: int) -> float:
    """From 1 to 0 over so many steps: torch's CosineAnnealingLR."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, t / max(1, steps))))


def staircase(steps: int, factor: float, t: int) -> float:
    """Times `factor` after each `steps`: torch's StepLR."""
    return factor ** (t // max(1, steps))


class PenaltyHook:
    """Adds the gradient of `decay`/2 ||w||^2 before each step: L2 regularization of weights, not of biases, gains and embeddings."""

    def __init__(self, decay: float, exempt: Sequence[nn.Parameter] = ()) -> None:
        self.decay = decay
        self.exempt = list(exempt)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(self.before)

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for _group, p in weights_of(optimizer, self.exempt):
            if p.grad is not None:
                p.grad.add_(p, alpha=self.decay)


class Proximal:
    """After each step, the proximal map of  l1 ||w||_1 + l2/2 ||w||^2  in the metric of the step: Parikh and Boyd 2014, section 6.5.

    With t the effective rate of an entry,  w <- sign(w) max(|w| - t l1, 0) / (1 + t l2).  Entries become exactly zero.
    """

    def __init__(self, l1: float, l2: float = 0.0, exempt: Sequence[nn.Parameter] = ()) -> None:
        self.l1, self.l2 = l1, l2
        self.exempt = list(exempt)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_post_hook(self.after)

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, p in weights_of(optimizer, self.exempt):
            if p.grad is not None:
                t = effective_rate(optimizer, group, p, self._pull(p) / FASTEST)
                p.copy_(p.sign() * (p.abs() - t * self.l1).clamp_min(0) / (1 + t * self.l2))

    def _pull(self, p: nn.Parameter) -> float:
        """Size of the penalty's gradient on a typical entry."""
        return max(self.l1, self.l2 * float(p.square().mean().sqrt()))


def weights_of(optimizer: torch.optim.Optimizer, exempt: Sequence[nn.Parameter]) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
    """Group and parameter of everything with two or more axes that is not exempt."""
    without = {id(p) for p in exempt}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.dim() >= 2 and id(p) not in without and not p.is_complex():
                yield group, p


def effective_rate(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: nn.Parameter, least: float = 0.0) -> Any:
    """The step that a constant gradient of 1 would come to: the rate, over 1 - momentum, or over Adam's and RMSprop's root.

    The root is `least` at least: an entry that had no gradient for a while is not to jump. With this rate the fixed point of gradient
    and proximal step is that of the penalised loss: Yun et al. 2021, for diagonal metrics.
    """
    state, rate = optimizer.state.get(p, {}), group["lr"]
    if "exp_avg_sq" in state:
        beta = group["betas"][1]
        second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        return rate / ((second / (1 - beta ** float(state["step"]))).sqrt().clamp_min(least) + group["eps"])
    if "square_avg" in state:
        return rate / (state["square_avg"].sqrt().clamp_min(least) + group["eps"])
    if "sum" in state:
        return rate / (state["sum"].sqrt().clamp_min(least) + group["eps"])
    momentum = group.get("momentum") or 0.0
    return rate * (1 - (group.get("dampening") or 0.0)) / (1 - momentum) if momentum < 1 else rate
