"""The lines of the user's code that run backward passes, told apart by where they stand."""

import sys
from dataclasses import dataclass, field
from typing import Any


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
