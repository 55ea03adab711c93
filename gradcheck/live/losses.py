"""The losses of a loop: which backward passes make up a step, at which lines, what their values add up to, and what the
gradients hold between: cleared, left over, changed by hand.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.instrument.loop_journal import fills
from gradcheck.live.optimizers import Optimizers
from gradcheck.live.record import Record
from gradcheck.workload.device import in_groups, on_host

FOLLOWED = 4  # parameters whose gradients tell whether they were cleared
Marks = list[tuple[int, int]]


class Gradients:
    """The gradients of the optimizer whose steps are counted. Values are read in measured steps only, since that waits for the device."""

    def __init__(self, optimizers: Optimizers, record: Record) -> None:
        self._optimizers, self._record = optimizers, record
        self._leftover: list[torch.Tensor] = []  # flags of those of the step before that were still there, not read yet
        self._left: list[tuple[torch.Tensor, torch.Tensor]] = []  # parameters with such flags, after the pass that was measured
        self._versions: list[int] = []

    def remember(self) -> None:
        """The pass that is measured is over."""
        graded = [p for p in self._optimizers.parameters() if p.grad is not None]
        some = graded[:: max(1, -(-len(graded) // FOLLOWED))]
        self._left = [(p, fills(p.grad)) for p in some if p.grad is not None]

    def forget(self) -> None:
        self._left, self._versions = [], []

    def cleared(self) -> bool:
        """Whether the gradients of the measured pass are gone: it was for another model, say an adversary. Waits for a device once."""
        now = [fills(p.grad) for p, _ in self._left if p.grad is not None]
        before, after, self._leftover = in_groups([[flag for _, flag in self._left], now, self._leftover])
        return any(before) and not any(after)

    def look_for_leftover(self) -> None:
        """Before the first pass of a step."""
        some = self._optimizers.parameters()[:FOLLOWED] if self._record.steps else []
        self._leftover = [fills(p.grad) for p in some if p.grad is not None]

    @property
    def leftover(self) -> bool:
        """Whether the gradients of the step before were still there."""
        return any(on_host(self._leftover))

    def marks(self) -> Marks:
        """For some gradients: which tensors they are, and how often they were written. Reads no value, so it waits for no device."""
        return [(id(p.grad), p.grad._version) for p in self._optimizers.parameters()[:FOLLOWED] if p.grad is not None]

    def note_versions(self, measured: bool) -> None:
        """After a backward pass."""
        self._versions = self._current_versions() if measured else []

    def edited(self) -> bool:
        """Whether something wrote to them since the last backward pass."""
        return bool(self._versions) and self._versions != self._current_versions()

    def _current_versions(self) -> list[int]:
        return [w.tensor.grad._version for w in self._record.watched if w.tensor.grad is not None]


KEPT_LOSSES = 512  # most values on a device that wait to be read


@dataclass
class Losses:
    """The losses of one optimizer's steps. `note` gets each loss in order, later if it is on a device, which is not waited for."""

    note: Callable[[float], None]
    explicit: Any = None  # the loss of the step, given by the user
    passes: list[torch.Tensor | float] = field(default_factory=list)  # since the last step
    running: torch.Tensor | None = None  # of the backward pass that runs
    _waiting: list[torch.Tensor] = field(default_factory=list)  # of steps, on a device, not read yet
    _gathered: tuple[list[torch.Tensor | float], Marks] = field(default_factory=lambda: ([], []))  # before a step with a closure
    _carried: int = 0  # of them that belong to the step: the closure adds to their gradients

    def begin(self, losses: Sequence[torch.Tensor], unscaled: torch.Tensor | None) -> None:
        """A backward pass begins. `unscaled`: what was multiplied by a scaler's factor to make the loss."""
        values = [unscaled] if unscaled is not None and len(losses) == 1 else losses
        whole = [v.detach().sum() if v.dim() else v.detach() for v in values]
        self.running = whole[0] if len(whole) == 1 else torch.stack([w.float() for w in whole]).sum() if whole else None

    def take(self, loss: torch.Tensor) -> float | None:
        """Of a pass that belongs to the step, before it runs. Returns the value where it may be read."""
        value = loss.item() if loss.is_cpu else None
        self.passes.append(loss.detach() if value is None else value)
        return value

    def end(self, counts: bool) -> bool:
        """The pass is over; whether its loss is now one of the step's."""
        running, self.running = self.running, None
        if running is None or not counts:
            return False
        self.passes.append(running.detach())
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


@dataclass
class BackwardSites:
    """The lines that are known so far."""

    current: Any = None  # of the last backward pass
    step: set[Any] = field(default_factory=set)  # whose passes make up this step
    sure: set[Any] = field(default_factory=set)  # whose gradients the optimizer has used
    void: set[Any] = field(default_factory=set)  # whose gradients came to the model, and were cleared before its step
    cleared: set[Any] = field(default_factory=set)  # of this step's passes, those whose gradients were cleared again

    def belongs(self, several: bool) -> bool:
        """Whether a pass that was not measured counts. `several`: optimizers, each with passes of its own."""
        return self.current in self.sure if several and self.sure else self.current not in self.void

    def discard(self) -> None:
        """The gradients of this step's passes were cleared."""
        self.cleared |= self.step
        self.step.clear()

    def dropped(self) -> bool:
        """Whether a line ran passes for this step of which some were cleared before it."""
        return bool(self.cleared & self.step)

    def settle(self) -> None:
        """The step is over: lines that only ran passes whose gradients were cleared are not part of it."""
        self.void |= self.cleared - self.step - self.sure
        self.step.clear()
        self.cleared.clear()


def caller() -> Any:
    """The line of the user's that runs a backward pass, as something that can be compared."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("gradcheck.", "torch.")):
        frame = frame.f_back
    return (id(frame.f_code), frame.f_lasti) if frame is not None else None
