"""What the gradients hold between the passes and steps of a loop, judged by a few of them: cleared, left over, changed by hand."""

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
