"""What the output for a sample owes to its place in the batch: copies of one sample, which all have to get the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.activation_recorder import caller
from gradcheck.measure.checks.sample_mixing import Culprit, Seen
from gradcheck.workload.device import wide
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in

DIFFERENT = 1e-3  # difference of two rows, relative to the largest entry, that rounding and other kernels do not explain
# What adds something of a place to a sample. A recurrent state that is kept for each place is meant.
ADDS = frozenset("add __add__ __radd__ __iadd__ add_ cat embedding mul __mul__ __rmul__ mul_ sub __sub__ __rsub__".split())


def placed(model: nn.Module, sample: Any, count: int, dice: Any) -> Culprit | None:
    """The addition that first gives copies of one sample different values. None where none does, or where chance may have done it."""
    copies = sample.taken([0] * count).requiring_grad()
    seen = _Copies({id(m): name for name, m in model.named_modules()}, count)
    with torch.enable_grad():
        dice.throw()
        with seen:
            first = next(tensors_in(copies.run(model)), None)
        again = next(tensors_in(copies.run(model)), None)  # with other random numbers
    if first is None or again is None or seen.culprit is None or seen.culprit.operation not in ADDS:
        return None
    same = first.shape == again.shape and torch.equal(first, again)
    return seen.culprit if same and apart(first, count) else None


def apart(tensor: torch.Tensor, count: int) -> bool:
    """Whether its rows differ along the one axis that is as long as there are copies."""
    axes = [k for k, size in enumerate(tensor.shape) if size == count]
    if len(axes) != 1 or not tensor.numel():
        return False
    rows = torch.nan_to_num(wide(tensor.detach())).movedim(axes[0], 0)
    return bool((rows - rows[:1]).abs().max() > DIFFERENT * rows.abs().max())


class _Copies(Seen):
    def __init__(self, names: Mapping[int, str], count: int) -> None:
        super().__init__(names)
        self.count = count
        self.culprit: Culprit | None = None

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        if self.culprit is not None:
            return
        for tensor in tensors_in(output):
            if tensor.requires_grad and tensor.is_floating_point() and apart(tensor, self.count):
                self.culprit = Culprit(name, self.module_name, location_of_frame(caller()), True, True, tuple(tensor.shape))
