"""Optimizers of one loop: those that step together on the same passes, and adversaries, whose losses go through each other's weights."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from torch import nn

from gradcheck.capture.events import OptimizerTrace
from gradcheck.capture.nodes import nodes_behind
from gradcheck.capture.replay import Models
from gradcheck.capture.weighting import sampled
from gradcheck.training.trainer import needs_closure
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopAdversary
from gradcheck.workload.dtensor import local
from gradcheck.workload.rng import seed_all
from gradcheck.workload.training_copy import copy_optimizer, fork
from gradcheck.workload.workload import Workload

SHARED = 0.8  # of the steps: the others may be the first or the last of a loop


def joined(stepped: Sequence[OptimizerTrace]) -> list[OptimizerTrace]:
    """Those that step on the same passes as one; the rest as they are."""
    groups: list[list[OptimizerTrace]] = []
    for watched in stepped:
        home = next((g for g in groups if _share_passes(g[0], watched)), None)
        groups.append([watched]) if home is None else home.append(watched)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _share_passes(one: OptimizerTrace, other: OptimizerTrace) -> bool:
    mine, others = ([frozenset(map(id, s.passes)) for s in w.steps if s.passes] for w in (one, other))
    closures = any(needs_closure(w.optimizer) for w in (one, other))
    if closures or not mine or not others:
        return False
    common = len(set(mine) & set(others))
    return common >= SHARED * max(len(mine), len(others))


def _joined(group: Sequence[OptimizerTrace]) -> OptimizerTrace:
    """The one with the most weights comes first, and stands for all."""
    ordered = sorted(group, key=lambda w: -sum(p.numel() for p in w.parameters))
    label = " and ".join(w.label for w in ordered if w.label)
    return dataclasses.replace(ordered[0], label=label, parts=tuple(ordered))


class _Parts(list[torch.optim.Optimizer]):
    def __deepcopy__(self, memo: dict[int, Any]) -> _Parts:
        return _Parts(copy_optimizer(part, memo) for part in self)


class Together(torch.optim.Optimizer):
    """Several optimizers as one. Its groups are theirs."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self.parts = _Parts(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @property
    def state(self) -> defaultdict[torch.Tensor, Any]:
        return defaultdict(dict, {p: state for part in self.parts for p, state in part.state.items()})

    @state.setter
    def state(self, value: Any) -> None:
        """The state of the parts."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def as_one(parts: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Named after what it is made of."""
    names = " and ".join(dict.fromkeys(type(part).__name__ for part in parts))
    return type(names, (Together,), {})(parts) if len(parts) > 1 else parts[0]


FEWEST_STEPS = 30  # of each; a slow script is followed for 40 of the one that steps first
EDGE = 10  # steps at either end that are compared
MOST_NUMBERS = 20_000_000  # of a model that is copied for one more look
FEWEST_SAMPLES = 16  # whose means are compared, and how far apart those of one and of two distributions are, in standard errors:
ALIKE, UNLIKE = 5.0, 7.0  # the largest of 1,000 features passes 5 by chance once in 1,700 draws
ONE_WAY = 0.99  # of a gradient, that has one sign (heuristic: all but rounding)


def gradient_size(parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Norm of entries of some of the gradients, as they are before a step."""
    given = [local(p.grad) for p in parameters if p.grad is not None and p.grad.layout is torch.strided]
    parts = [entries.float().norm() for entries in sampled(given)]
    return torch.stack([p.to(parts[0].device) for p in parts]).norm() if parts else None


def adversary(watched: OptimizerTrace, others: Iterable[OptimizerTrace]) -> LoopAdversary | None:
    """The training whose weights this one's loss goes through; None if there is none, or too little was seen."""
    losses, sizes = watched.losses, [float(s.gradient) for s in watched.steps if s.gradient is not None]
    if len(losses) < FEWEST_STEPS or len(sizes) < FEWEST_STEPS:
        return None
    for other in opponents(watched, others):
        theirs = other.losses
        if len(theirs) < FEWEST_STEPS:
            continue
        return LoopAdversary(
            other.label,
            *_ends(theirs),
            *_ends(losses),
            max(sizes[:EDGE]),  # the other one may win within these steps
            median(sizes[-EDGE:]),
            max(len(losses), len(theirs)),
        )
    return None


def opponents(watched: OptimizerTrace, others: Iterable[OptimizerTrace]) -> Iterator[OptimizerTrace]:
    """Trainings whose weights this one's loss goes through, but not the other way round."""
    return (other for other in others if _against(watched, other))


def is_played_against(watched: OptimizerTrace, others: Iterable[OptimizerTrace]) -> bool:
    """Whether the loss of another training goes through the weights of this one."""
    return any(_against(other, watched) for other in others)


def _against(one: OptimizerTrace, other: OptimizerTrace) -> bool:
    return one is not other and _goes_through(one, other) and not _goes_through(other, one)


def _goes_through(one: OptimizerTrace, other: OptimizerTrace) -> bool:
    passes = [p for s in one.steps for p in s.passes]
    return bool(passes) and 2 * sum(bool(p.reached & other.ids) for p in passes) > len(passes)


def _ends(series: Sequence[float]) -> tuple[float, float]:
    return median(series[:EDGE]), median(series[-EDGE:])


def pulls_along(own: Workload, other: Workload) -> bool:
    """Whether both losses move what a module says of the same samples, made by the one training, in the same direction."""
    if any(sum(p.numel() for p in w.model.parameters()) > MOST_NUMBERS for w in (own, other)):
        return False
    theirs = _pulls(other)
    pairs = [
        (a, b)
        for kind, made, a in _pulls(own)
        if made.requires_grad
        for b in _of_the_same(made, [(x, b) for k, x, b in theirs if k == kind])
    ]
    return bool(pairs) and all(a == b != 0 for a, b in pairs)


def _pulls(w: Workload) -> list[tuple[Any, torch.Tensor, int]]:
    """Of each call of a module with one tensor in a training step: what it is, its input, and the sign of d(loss) / d(its output)."""
    copy = fork(w)
    calls: list[tuple[Any, torch.Tensor, torch.Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor) and output.requires_grad:
            calls.append(((type(module), tuple(p.shape for p in module.parameters())), args[0], output))

    roots = list(copy.model.children()) if isinstance(copy.model, Models) else [copy.model]
    with ExitStack() as hooks:
        for root in roots:
            hooks.enter_context(root.register_forward_hook(note))
        seed_all(0)
        loss = copy.loss(w.batches[0])
    gradients = torch.autograd.grad(loss, [output for _, _, output in calls], allow_unused=True) if calls else ()
    return [(kind, given, _sign(g)) for (kind, given, _), g in zip(calls, gradients, strict=True)]


def _sign(gradient: torch.Tensor | None) -> int:
    """1 or -1 for a gradient of one sign, 0 for any other."""
    size = float(gradient.abs().sum()) if gradient is not None else 0.0
    share = float(gradient.sum()) / size if gradient is not None and size else 0.0
    return int(share > 2 * ONE_WAY - 1) - int(share < 1 - 2 * ONE_WAY)


def _of_the_same(made: torch.Tensor, calls: Sequence[tuple[torch.Tensor, int]]) -> list[int]:
    """Of the calls that are given these samples, or, where they are drawn anew, the one given such as these."""
    equal = [b for x, b in calls if _equal(made, x)]
    if equal:
        return equal
    apart = sorted((_apart(made, x), b) for x, b in calls)
    return [apart[0][1]] if len(apart) > 1 and apart[0][0] < ALIKE and apart[1][0] > UNLIKE else []


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference in the mean of a feature or its square, in standard errors."""
    if one.shape != other.shape or one.dim() < 2 or len(one) < FEWEST_SAMPLES:
        return ALIKE
    a, b = (torch.cat([x, x.square()], 1) for x in (t.detach().flatten(1).double() for t in (one, other)))
    return float(((a.mean(0) - b.mean(0)).abs() / ((a.var(0) + b.var(0)) / len(a)).sqrt().clamp_min(1e-12)).max())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.detach(), other.detach(), rtol=1e-4, atol=1e-6)


def call_through(watched: OptimizerTrace, other: OptimizerTrace) -> Location | None:
    """Where a loss of the one calls what the other trains."""
    for step in watched.steps:
        for node in nodes_behind([n for p in step.passes for n in p.nodes]):
            if node.owner is not None and node.call is None and other.ids & set(node.owner.held(node.path)):
                return node.place
    return None
