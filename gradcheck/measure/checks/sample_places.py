"""What the output for a sample owes to its place in the batch: copies of one sample, which all have to get the same.

And what it owes to the order of a sequence's positions, where a table of positions is read at one of them only, and what becomes of one of
several inputs; and results that no variable takes.
"""

import dis
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.activation_recorder import caller
from gradcheck.measure.checks.sample_axis import Culprit, Seen
from gradcheck.workload.device import wide
from gradcheck.workload.dtensor import local
from gradcheck.workload.sharding import as_held
from gradcheck.workload.source_sites import location_of_frame, origin_of
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


def one_for_all(model: nn.Module, before: Any, length: int, dice: Any) -> Culprit | None:
    """The reading of one row of a table of at least `length` rows, which is added to all positions of the sequences.

    None where the index comes from data: an entry for each sample, as of a time or a class, is meant.
    """
    seen = _Rows(model, length)
    dice.throw()
    with torch.no_grad(), seen:
        before.run(model)
    return seen.culprit


def _place(tensor: torch.Tensor) -> int:
    """In memory; of a parameter that is gathered for the pass, that of the shard which it stands for."""
    (held,) = as_held([tensor])
    return local(held).untyped_storage().data_ptr()


class _Rows(Seen):
    def __init__(self, model: nn.Module, length: int) -> None:
        super().__init__({id(m): name for name, m in model.named_modules()})
        self.length = length
        tables = (*model.parameters(), *model.buffers())
        self.tables = {_place(t) for t in tables if t.dim() >= 2 and max(t.shape[:-1]) >= length}
        self.rows: dict[int, tuple[torch.Tensor, Culprit]] = {}
        self.culprit: Culprit | None = None

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or self.culprit is not None:
            return
        inputs = [t for t in given[0] if isinstance(t, torch.Tensor)]
        held = [self.rows[id(t)] for t in inputs if id(t) in self.rows]
        if name in ADDS and held and self._wider(output, held[0][0]):
            self.culprit = held[0][1]
        elif held and output.numel() == held[0][0].numel():
            self.rows[id(output)] = (output, held[0][1])
        elif name in ("__getitem__", "select") and inputs and self._is_row(inputs[0], output, given[0][1:]):
            place = location_of_frame(caller())
            self.rows[id(output)] = (output, Culprit(name, self.module_name, place, False, True, tuple(inputs[0].shape)))

    def _is_row(self, table: torch.Tensor, row: torch.Tensor, index: Any) -> bool:
        """Whether numbers of the program choose one row of a table: no tensor does."""
        known = _place(table) in self.tables
        single = row.numel() * self.length <= table.numel() and row.shape[-1:] == table.shape[-1:] and row.numel() == row.shape[-1]
        return known and single and not any(True for _ in tensors_in(index))

    def _wider(self, total: torch.Tensor, row: torch.Tensor) -> bool:
        """Whether the row was spread over the positions."""
        axis = -2  # of the positions, before the features
        return total.dim() > 2 and total.shape[axis] == self.length and (row.dim() < 2 or row.shape[axis] == 1)


def lost(model: nn.Module, before: Any, after: Any, dice: Any) -> Culprit | None:
    """The last thing that is computed of what differs between two inputs, where parameters had a part in it and nothing uses it.

    None where something takes it and gives the same for both: a factor of zero, a mask, a rounding.
    """
    first, second = _Kept(model), _Kept(model)
    with torch.enable_grad():
        for seen, inputs in ((first, before), (second, after)):
            dice.throw()
            with seen:
                inputs.run(model)
    if [(name, len(results)) for name, _, results, _ in first.results] != [(name, len(results)) for name, _, results, _ in second.results]:
        return None
    differing = {id(b) for a, b in zip(before.leaves, after.leaves, strict=True) if isinstance(b, torch.Tensor) and not _same(a, b)}
    last: Culprit | None = None
    for (_, _, old, _), (_, taken, new, culprit) in zip(first.results, second.results, strict=True):
        fresh = {id(b) for a, b in zip(old, new, strict=True) if not _same(a, b)}
        if new and not fresh and not differing.isdisjoint(taken):
            return None
        differing |= fresh
        last = culprit if fresh else last
    return last if last is not None and last.carries and last.floating else None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


class _Kept(Seen):
    """Every operation with what it took and gave, all of it kept alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__({id(m): name for name, m in model.named_modules()})
        self.results: list[tuple[str, set[int], list[torch.Tensor], Culprit]] = []
        self.held: list[Any] = []

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        results = list(tensors_in(output))
        floating, carries = any(t.is_floating_point() for t in results), any(t.requires_grad for t in results)
        culprit = Culprit(name, self.module_name, location_of_frame(caller()), carries, floating, ())
        self.held.append(given)
        self.results.append((name, {id(t) for t in tensors_in(given)}, results, culprit))


def dropped(model: nn.Module, inputs: Any, dice: Any) -> Culprit | None:
    """The first operation of the user's own code whose result is another tensor than what it took, and that the statement throws away."""
    seen = _Dropped({id(m): name for name, m in model.named_modules()})
    dice.throw()
    with torch.enable_grad(), seen:
        inputs.run(model)
    return seen.culprit


class _Dropped(Seen):
    culprit: Culprit | None = None

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        args, kwargs = given
        if (
            self.culprit is not None
            or not isinstance(output, torch.Tensor)
            or not output.requires_grad
            or not args
            or kwargs.get("out") is not None
        ):
            return
        first, frame = args[0], _calling(name, caller())
        if name.endswith("_") or output is first or frame is None:
            return
        if _thrown_away(frame) and not (isinstance(first, torch.Tensor) and _same(first, output)):
            self.culprit = Culprit(name, self.module_name, location_of_frame(frame), True, True, tuple(output.shape))


def _calling(name: str, frame: FrameType | None) -> FrameType | None:
    """The user's frame that calls this function, which may be one of torch's that is written in Python; None where another one calls it."""
    through = name
    while frame is not None and origin_of(frame.f_code.co_filename) == "torch":
        through, frame = frame.f_code.co_name, frame.f_back
    return frame if frame is not None and through == name and origin_of(frame.f_code.co_filename) == "user" else None


def _thrown_away(frame: FrameType) -> bool:
    """Whether the result of the call that runs is the value of a statement that does nothing with it."""
    return _following(frame.f_code).get(frame.f_lasti) == "POP_TOP"


@cache
def _following(code: CodeType) -> dict[int, str]:
    """The instruction that follows, by the places of one and of the caches behind it, where a call of a Python function rests."""
    found = list(dis.get_instructions(code))
    return {k: following.opname for one, following in pairwise(found) for k in range(one.offset, following.offset)}
