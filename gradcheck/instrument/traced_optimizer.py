"""An optimizer of the loop, or several that are made one after another in the same place, and what is known of its life."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.instrument.source_loops import Loop
from gradcheck.types.location import Location

MOST_LIVES = 1000  # of optimizers that were made again, whose lengths are kept


@dataclass(eq=False)
class TracedOptimizer:
    """`optimizer` is the newest of them."""

    optimizer: torch.optim.Optimizer
    label: str = ""  # its variable
    site: Location | None = None  # where it is made
    taken: int = 0  # steps, of all of them
    base_rate: float | None = None
    step_site: Location | None = None
    clear_site: Location | None = None
    skipped: int = 0  # times that gradients were cleared since its last step
    loops: tuple[Loop, ...] = ()  # around its first step
    schedulers: dict[Location | None, list[int]] = field(default_factory=dict)  # by place: of each that was made there, its steps
    made: int = 1
    lost: int = 0  # of those made again, how many began without the state of the one before
    _lives: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_LIVES))  # steps of each but the newest
    _born: int | None = None  # steps before the newest; None for the first one
    _had_state: bool | None = None  # the one before the newest, which has not stepped yet

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(map(id, self.parameters))

    def renew(self, optimizer: torch.optim.Optimizer, reads: bool = True) -> None:
        """Another one takes its place. `reads`: whether values may be read, for which a device must be waited for."""
        if self._born is None or self._born < self.taken:
            if self.taken > (self._born or 0):
                self._lives.append(self.taken - (self._born or 0))
            self._born, self._had_state = self.taken, holds_state(self.optimizer, reads)
            self.made += 1
        self.optimizer = optimizer

    def starts(self, reads: bool = True) -> None:
        """Before a step: notes whether the state of the optimizer before this one was lost."""
        if self._had_state is not None:
            self.lost += self._had_state and not holds_state(self.optimizer, reads)
            self._had_state = None

    @property
    def life(self) -> int | None:
        """How many steps an optimizer usually takes before another one replaces it."""
        lives = sorted(self._lives)
        return lives[len(lives) // 2] if lives else None

    @property
    def forgets(self) -> bool:
        """Whether the state that steps leave in an optimizer is mostly lost with it."""
        return 2 * self.lost > self.made - 1

    def facts(self) -> dict[str, Any]:
        """As `LoopFacts` names them. Of schedulers those of the place where most were made; the last of several is still in use."""
        place, steps = max(self.schedulers.items(), key=lambda item: len(item[1]), default=(None, []))
        finished = sorted(steps[:-1])
        return {
            "made": self.made,
            "life": self.life or 0,
            "forgets": self.forgets,
            "schedules_made": len(steps),
            "schedule_life": finished[len(finished) // 2] if finished else 0,
            "schedule_made_site": place,
            "step_site": self.step_site,
            "clear_site": self.clear_site,
            "skipped": self.skipped,
        }


def holds_state(optimizer: torch.optim.Optimizer, reads: bool = True) -> bool:
    """Whether its steps have left anything in it that the next ones use. Not read, a tensor counts as something."""
    states = (state for state in optimizer.state.values() if isinstance(state, dict))
    values = (v for state in states for name, v in state.items() if name != "step" and isinstance(v, torch.Tensor))
    return any(not reads or bool(v.any()) for v in values)


def holds_the_same(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    """Whether two optimizers have the same parameters."""
    first, second = ({id(p) for g in o.param_groups for p in g["params"]} for o in (one, other))
    return first == second


def inner_optimizer(optimizer: Any) -> Any:
    """What a wrapper such as Accelerate's steps."""
    while type(optimizer).__module__.startswith("accelerate."):
        optimizer = optimizer.optimizer
    return optimizer
