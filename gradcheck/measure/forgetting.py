"""An optimizer that is made anew every so many steps, as in some loops: each time it loses what it learned about the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Forgetting:
    """A hook after an optimizer's step."""

    steps: int  # that are remembered; 0: all
    fresh: dict[torch.Tensor, dict[str, Any]]  # the state before the first step
    count: int = 0

    @classmethod
    def attach(cls, optimizer: torch.optim.Optimizer, steps: int) -> None:
        optimizer.register_step_post_hook(cls(steps, {p: dict(state) for p, state in optimizer.state.items()}).after)

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.count += 1
        if self.steps and self.count % self.steps == 0:
            optimizer.state.clear()
            optimizer.state.update({p: {name: _again(value) for name, value in state.items()} for p, state in self.fresh.items()})


def forgettings(optimizer: torch.optim.Optimizer) -> list[Forgetting]:
    """The hooks of this kind that it has."""
    hooks = (getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_post_hooks.values())
    return [hook for hook in hooks if isinstance(hook, Forgetting)]


def _again(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
