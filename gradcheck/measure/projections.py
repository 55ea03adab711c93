"""Weights that a loop puts back within bounds after each step: clipped, masked, made non-negative."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Projection:
    """A function that changes a tensor in place and, called again, changes nothing more. The arguments follow the tensor."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.function(weight, *self.args, **self.kwargs)
        return weight


@dataclass
class Projections:
    """A hook after an optimizer's step."""

    acting: Sequence[tuple[torch.Tensor, Projection]]

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for weight, projection in self.acting:
            projection.apply(weight)
