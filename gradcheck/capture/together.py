"""Optimizers that step together on the same backward passes: one training, of one loss."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from gradcheck.capture.events import OptimizerTrace
from gradcheck.training.trainer import needs_closure
from gradcheck.workload.training_copy import copy_optimizer

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
