"""What a GradScaler did to a step: the factor in its gradients, and whether it was taken out again."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.loss_calls import SeenLoss
from gradcheck.types.layers import TensorStats


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
        self.factor = float(self.scaler.get_scale())
        for call in calls:
            call.gradients = [rescaled(g, self.factor) for g in call.gradients]
        for seen in losses:
            seen.weights = [w / self.factor for w in seen.weights]

    def in_gradients(self) -> float:
        """The factor that the parameters' gradients still hold."""
        if self.scaler is None:
            return 1.0
        if self.factor == 1.0:
            self.factor = float(self.scaler.get_scale())
        return 1.0 if self.unscaled else self.factor

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
