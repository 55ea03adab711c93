"""The optimizers of a loop: whose steps are counted, which others there are, and the parameters that they move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer

from gradcheck.live.models import living_optimizers
from gradcheck.live.record import Record
from gradcheck.measure.parameters import watch


class Optimizers:
    """`main`: whose steps are counted; when None is given, the first that trains the model. `sharded`: whether each rank holds a part."""

    def __init__(self, model: nn.Module, main: Optimizer | None, record: Record, sharded: Callable[[], bool]) -> None:
        self.model, self.main, self.record, self.sharded = model, main, record, sharded
        self._seen: dict[int, Optimizer] = {}  # that stepped
        self._strangers: set[int] = set()  # ids of tensors that no optimizer holds

    @property
    def several(self) -> bool:
        return len(self._seen) > 1

    @property
    def known(self) -> Optimizer:
        """The best that can be said so far."""
        return self.main or next(iter(self._seen.values()), None) or torch.optim.SGD([nn.Parameter(torch.zeros((), device="cpu"))], lr=0.0)

    def see(self, optimizer: Optimizer) -> None:
        """One is about to step."""
        self._seen[id(optimizer)] = optimizer

    def is_main(self, optimizer: Optimizer) -> bool:
        if self.main is None and self._trains(optimizer):
            self.main = optimizer
        return optimizer is self.main

    def note_other(self, optimizer: Optimizer) -> None:
        """A step of one that is not counted."""
        if self.main is None or not self._trains(optimizer):
            self.record.several = self.main is not None

    def _trains(self, optimizer: Optimizer) -> bool:
        own = {id(p) for p in self.model.parameters()}
        return any(id(p) in own for g in optimizer.param_groups for p in g["params"])

    def trains_any(self, ids: set[int]) -> bool:
        """Whether an optimizer of the process holds one of these tensors. To look through all of them is slow, and done once."""
        if any(id(p) in ids for o in self._seen.values() for g in o.param_groups for p in g["params"]):
            return True
        if ids - self._strangers:
            if any(id(p) in ids for o in living_optimizers() for g in o.param_groups for p in g["params"]):
                return True
            self._strangers |= ids
        return False

    def parameters(self) -> list[torch.Tensor]:
        """Of the main one."""
        return [p for g in self.main.param_groups for p in g["params"]] if self.main is not None else []

    def rate(self) -> float:
        """The largest of the main one's groups."""
        return max((float(g.get("lr") or 0.0) for g in self.main.param_groups), default=0.0) if self.main is not None else 0.0

    def know_parameters(self) -> None:
        """Puts the model's parameters on record, also those that it has got since."""
        known = {id(w.tensor) for w in self.record.watched}
        if not known or (not self.sharded() and any(id(p) not in known for p in self.model.parameters())):
            self.record.watched += [w for w in watch(self.model, self.known) if id(w.tensor) not in known]

    def forget_others(self) -> None:
        """What another optimizer moves does not move in the main one's step."""
        own = set(map(id, self.parameters()))
        for w in self.record.watched:
            if w.steps and id(w.tensor) not in own:
                w.steps[-1] = replace(w.steps[-1], update_ratio=None)
