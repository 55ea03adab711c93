"""The optimizers of a loop: whose steps are counted, which others there are, which parameters they move, and by which factor
of a GradScaler.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.loss_calls import SeenLoss
from gradcheck.instrument.running_code import here
from gradcheck.instrument.traced_optimizer import TracedOptimizer, holds_the_same, inner_optimizer
from gradcheck.live.models import living_optimizers
from gradcheck.live.record import Record
from gradcheck.measure.parameters import watch
from gradcheck.types.layers import TensorStats
from gradcheck.types.location import Location

MOST_NEW = 16  # optimizers that were made and have not stepped, of which something is kept


class Optimizers:
    """`main`: whose steps are counted; when None is given, the first that trains the model. `sharded`: whether each rank holds a part.

    One that is made to replace the main one takes over from it with its first step.
    """

    def __init__(self, model: nn.Module, main: Optimizer | None, record: Record, sharded: Callable[[], bool]) -> None:
        self.model, self.record, self.sharded = model, record, sharded
        self.main: Optimizer | None = None
        self.traces: dict[int, TracedOptimizer] = {}  # by id: what is known of the main one
        self._new: dict[int, tuple[weakref.ref[Optimizer], Location | None]] = {}  # made, and where; they have not stepped yet
        self._seen: weakref.WeakValueDictionary[int, Optimizer] = weakref.WeakValueDictionary()  # that stepped, and live
        self.several = False  # optimizers have stepped
        self._strangers: set[int] = set()  # ids of tensors that no optimizer holds
        if main is not None:
            self._choose(main)

    def _choose(self, optimizer: Optimizer) -> None:
        self.main = optimizer
        self.record.traced = self.traces[id(optimizer)] = TracedOptimizer(optimizer, site=self._made_at(optimizer))

    @property
    def known(self) -> Optimizer:
        """The best that can be said so far."""
        return self.main or next(iter(self._seen.values()), None) or torch.optim.SGD([nn.Parameter(torch.zeros((), device="cpu"))], lr=0.0)

    def made(self, optimizer: Optimizer) -> None:
        if inner_optimizer(optimizer) is not optimizer:
            return
        self.record.made += 1
        self._new.pop(id(optimizer), None)
        while len(self._new) >= MOST_NEW:
            del self._new[next(iter(self._new))]
        self._new[id(optimizer)] = weakref.ref(optimizer), here()

    def _made_at(self, optimizer: Optimizer) -> Location | None:
        reference, site = self._new.get(id(optimizer), (None, None))
        return site if reference is not None and reference() is optimizer else self.record.sites.get(id(optimizer))

    def traced(self, optimizer: Optimizer) -> TracedOptimizer | None:
        """Of the main one, or of one that will take its place."""
        return self.record.traced if optimizer is self.main or self._succeeds(optimizer) else None

    def _succeeds(self, optimizer: Optimizer) -> bool:
        """Whether one that was made takes the place of the main one: made alike, by the same expression, for the same parameters."""
        reference, own = self._new.get(id(optimizer), (None,))[0], self.record.traced
        if own is None or reference is None or reference() is not optimizer or optimizer is own.optimizer:
            return False
        if type(optimizer) is not type(own.optimizer) or not holds_the_same(optimizer, own.optimizer):
            return False
        sites = (self._made_at(o) for o in (optimizer, own.optimizer))
        return len({(s.path, s.line, s.column) for s in (*sites, own.site) if s is not None}) < 2

    def see(self, optimizer: Optimizer, reads: bool) -> None:
        """One is about to step. `reads`: whether values on a device may be read."""
        own = self.record.traced
        if own is not None and self._succeeds(optimizer):
            self._seen.pop(id(own.optimizer), None)
            own.site = own.site or self._made_at(optimizer)
            own.renew(optimizer, reads)
            own.starts(reads)
            self.main, self.traces = optimizer, {id(optimizer): own}
        self._new.pop(id(optimizer), None)
        self._seen[id(optimizer)] = optimizer
        self.several |= len(self._seen) > 1

    def elsewhere(self) -> set[int]:
        """Ids of what other optimizers of the process hold."""
        others = [o for o in living_optimizers() if o is not self.main] if self.main is not None else []
        return {id(p) for o in others for g in o.param_groups for p in g["params"]}

    def is_known(self, optimizer: Optimizer) -> bool:
        """Whether it is the main one, and has stepped before."""
        return optimizer is self.main and id(optimizer) in self._seen

    def is_main(self, optimizer: Optimizer) -> bool:
        if self.main is None and self._trains(optimizer):
            self._choose(optimizer)
        return optimizer is self.main

    def note_other(self, optimizer: Optimizer) -> None:
        """A step of one that is not counted."""
        self.record.alone = False
        self.record.others.add(id(optimizer))
        if self.main is None or not self._trains(optimizer):
            self.record.several = self.main is not None

    def _trains(self, optimizer: Optimizer) -> bool:
        own = {id(p) for p in self.model.parameters()}
        return any(id(p) in own for g in optimizer.param_groups for p in g["params"])

    def trains_any(self, ids: set[int]) -> bool:
        """Whether an optimizer of the process holds one of these tensors. Looking through all of them is slow, and done once."""
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
        """Records the model's parameters, also those that were added since."""
        known = {id(w.tensor) for w in self.record.watched}
        if not known or (not self.sharded() and any(id(p) not in known for p in self.model.parameters())):
            self.record.watched += [w for w in watch(self.model, self.known) if id(w.tensor) not in known]

    def forget_others(self) -> None:
        """What another optimizer moves does not move in the main one's step."""
        own = set(map(id, self.parameters()))
        for w in self.record.watched:
            if w.steps and id(w.tensor) not in own:
                w.steps[-1] = replace(w.steps[-1], update_ratio=None)


@dataclass
class Scaling:
    """Since the last step. The factor is read from the scaler only when needed, since that waits for the device."""

    scaler: Any = None
    loss: torch.Tensor | None = None  # as it was before it was multiplied
    unscaled: bool = False
    factor: float = 1.0

    def scaled(self, scaler: Any, loss: torch.Tensor) -> None:
        self.scaler, self.loss = scaler, loss.detach()

    def take_out(self, calls: Iterable[Call], losses: Iterable[SeenLoss]) -> None:
        """Divides what was just measured in a backward pass by the factor."""
        if self.scaler is None:
            return
        self.factor = self._read()
        for call in calls:
            call.gradients = [rescaled(g, self.factor) for g in call.gradients]
        for seen in losses:
            seen.weights = [w / self.factor for w in seen.weights]

    def in_gradients(self) -> float:
        """The factor that the parameters' gradients still hold."""
        if self.scaler is None:
            return 1.0
        if self.factor == 1.0:
            self.factor = self._read()
        return 1.0 if self.unscaled else self.factor

    def _read(self) -> float:
        return float(self.scaler.get_scale()) or 1.0  # 0 after some hundred skipped steps: nothing can be taken out then

    def clear(self) -> None:
        self.scaler = self.loss = None
        self.unscaled, self.factor = False, 1.0


def rescaled(stats: TensorStats, factor: float) -> TensorStats:
    """Statistics of x / factor from those of x."""
    if factor == 1.0:
        return stats
    return replace(
        stats,
        mean=stats.mean / factor,
        std=stats.std / factor,
        norm=stats.norm / factor,
        min=stats.min / factor,
        max=stats.max / factor,
        exponent_low=stats.exponent_low - round(math.log2(factor)),
    )
