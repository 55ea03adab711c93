"""The events of a training loop, as `loop_hooks` tells them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

ClipKind = Literal["norm", "value"]


class LoopListener:
    """Is told what a loop does; each listener overrides the events that concern it. Nothing that it does may change a value, draw a random
    number, or, in a watched run, wait for a device between measured steps. Passes inside a pass, steps inside a step, and optimizers that
    only wrap another one are not reported.
    """

    def before_backward(self, losses: Sequence[torch.Tensor], given: bool) -> None:
        """`given`: with gradients of their own."""

    def after_backward(self, done: bool) -> None:
        """`done`: it did not raise."""

    def optimizer_made(self, optimizer: Optimizer) -> None:
        """Its constructor, or that of its base class, is over."""

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        """`closure`: the step is given one; its calls are reported."""

    def step_given(self, options: Mapping[str, Any]) -> None:
        """The numbers and words among the arguments of the step that is about to be taken."""

    def closure_begins(self) -> None: ...

    def closure_ended(self) -> None: ...

    def after_step(self, optimizer: Optimizer) -> None: ...

    def step_failed(self, optimizer: Optimizer) -> None:
        """Reported before the next step: the last one raised."""

    def clears(self, optimizer: Optimizer) -> None:
        """`zero_grad` is called."""

    def before_clipping(self, kind: ClipKind, threshold: float, parameters: Sequence[torch.Tensor]) -> None: ...

    def after_clipping(self, result: Any) -> None:
        """`result`: what the function returned; None when it raised."""

    def scaler_made(self, scaler: Any, asked: bool) -> None:
        """`asked`: to scale. It may have switched itself off because the device is missing."""

    def scales(self, scaler: Any) -> None: ...

    def scaled(self, scaler: Any, loss: torch.Tensor, result: torch.Tensor | None) -> None:
        """`result`: None when it raised, the loss itself where the scaler is off."""

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None: ...

    def scaler_steps(self, scaler: Any) -> None: ...

    def scaler_stepped(self, scaler: Any, optimizer: Optimizer) -> None:
        """`scaler.step` is over, whether or not the optimizer took a step."""

    def scaler_updated(self, scaler: Any) -> None: ...

    def scheduler_made(self, scheduler: Any) -> None: ...

    def schedule_moves(self, scheduler: Any) -> None:
        """`step` is called, by the loop, by another scheduler, or by its own constructor."""

    def evaluated(self, module: nn.Module) -> None:
        """`eval` is called."""

    def data_begun(self, loader: Any) -> None:
        """A DataLoader is iterated over."""

    def captured(self) -> None:
        """In place of any other event, while the device records a graph of operations (CUDA graphs): nothing may be read or asked of it."""

    def failed(self, error: Exception) -> None:
        """A listener raised: nothing more is reported."""
