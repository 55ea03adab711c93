"""The losses of a loop: which backward passes make up a step, and what their values add up to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.live.gradients import Marks

KEPT_LOSSES = 512  # most values on a device that wait to be read


@dataclass
class Losses:
    """The losses of one optimizer's steps. `note` gets each loss in order, later if it is on a device, which is not waited for."""

    note: Callable[[float], None]
    explicit: Any = None  # the loss of the step, given by the user
    passes: list[torch.Tensor | float] = field(default_factory=list)  # since the last step
    running: torch.Tensor | None = None  # of the backward pass that runs
    value: float | None = None  # of it, where it was read already
    _waiting: list[torch.Tensor] = field(default_factory=list)  # of steps, on a device, not read yet
    _gathered: tuple[list[torch.Tensor | float], Marks] = field(default_factory=lambda: ([], []))  # before a step with a closure
    _carried: int = 0  # of them that belong to the step: the closure adds to their gradients

    def begin(self, losses: Sequence[torch.Tensor], unscaled: torch.Tensor | None) -> None:
        """A backward pass begins. `unscaled`: what was multiplied by a scaler's factor to make the loss."""
        self.value = None
        values = [unscaled] if unscaled is not None and len(losses) == 1 else losses
        whole = [v.detach().sum() if v.dim() else v.detach() for v in values]
        self.running = whole[0] if len(whole) == 1 else torch.stack([w.float() for w in whole]).sum() if whole else None

    def end(self, counts: bool) -> bool:
        """The pass is over; whether its loss is now one of the step's."""
        running, value, self.running, self.value = self.running, self.value, None, None
        if running is None or not counts:
            return False
        self.passes.append(running.detach() if value is None else value)
        return True

    def set_aside(self, marks: Marks) -> None:
        """A step with a closure begins: the closure decides whether it uses the gradients that were there before, which `marks` tell."""
        self._gathered, self.passes = (self.passes, marks), []

    def take_up(self, marks: Callable[[], Marks]) -> None:
        """The first pass of a closure begins, on top of the gradients that were set aside or not."""
        if not self.passes and self._gathered[1] and marks() == self._gathered[1]:
            self.passes = self._gathered[0]
            self._carried = len(self.passes)

    def file_single(self) -> bool:
        """If the loss of the step is a single number that was read, and nothing else is kept, notes it."""
        passes = self.passes
        if len(passes) != 1 or self.explicit is not None or not isinstance(value := passes[0], float):
            return False
        passes.clear()
        self.note(value)
        return True

    def of_step(self, closure: bool) -> list[torch.Tensor | float]:
        """What makes up the loss of the step that was taken. Of a closure's evaluations the first counts."""
        given, self.explicit = self.explicit, None
        if given is not None:
            return [given]
        return self.passes[: self._carried + 1] if closure else self.passes

    def file(self, passes: Sequence[torch.Tensor | float]) -> None:
        tensors = [torch.tensor(p, device="cpu") if isinstance(p, float) else p for p in passes]
        value = tensors[0] if len(tensors) == 1 else torch.stack([t.float() for t in tensors]).sum()
        if value.device.type == "cpu":
            self.note(value.item())
            return
        self._waiting.append(value.clone())
        if len(self._waiting) >= KEPT_LOSSES:
            self.read()

    def read(self) -> None:
        """Notes the losses that wait on a device."""
        if self._waiting:
            for value in torch.stack([w.float() for w in self._waiting]).tolist():
                self.note(value)
            self._waiting.clear()

    def clear(self) -> None:
        """The step is over."""
        self.passes, self._gathered, self._carried = [], ([], []), 0
