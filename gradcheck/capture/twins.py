"""The modules that a recorded loss is computed again with: copies of the user's as they were before training, or the user's own."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.analysis.gaps import described
from gradcheck.capture.events import BackwardPass, total_loss
from gradcheck.capture.nodes import Loose, Owner
from gradcheck.capture.replay import Program
from gradcheck.instrument.graph_structure import upstream_leaves
from gradcheck.workload.borrowing import Borrowed, BorrowedState, shielded
from gradcheck.workload.copying import bind_copies, duplicate, match_parts, memo_for
from gradcheck.workload.dtensor import local

SAME = 1e-3  # relative difference up to which a loss counts as repeated where arithmetic of low precision does not repeat its bits


@dataclass
class ReplayMismatch(Exception):
    """The loss could not be computed again; `why` says what stood in the way, in the user's words."""

    why: str
    detail: str = ""  # the exception

    def __str__(self) -> str:
        return self.why


@dataclass
class Twins:
    """What is trained in place of the owners' roots."""

    modules: list[nn.Module]
    tensors: dict[int, torch.Tensor]  # id of a parameter or buffer of the user's -> what stands for it
    memo: dict[int, Any] = field(default_factory=dict)
    borrowed: Borrowed | None = None
    outside: tuple[Owner, ...] = ()  # roots that others call, though they do not hold them

    def freeze(self, keys: set[int]) -> None:
        for key in keys & self.tensors.keys():
            if self.borrowed is None:
                self.tensors[key].requires_grad_(False)
            else:
                self.borrowed.freeze(key)


@dataclass
class _Repeated:
    loss: float
    exact: bool
    modules: list[nn.Module]  # that were called, and are not among those to be trained
    tensors: list[torch.Tensor]  # that the gradient reaches, likewise

    @property
    def contained(self) -> bool:
        return not self.modules and not self.tensors


def twins_of(owners: Sequence[Owner], others: Sequence[Owner], program: Program, passes: Sequence[BackwardPass]) -> Twins:
    """Copies that compute the first loss again, bit for bit, and use nothing of the user's; else the user's own modules, if those do.

    `others`: owners of roots that the loss does not call by themselves. `passes`: those of the first loss; none when it was never computed.
    Raises ReplayMismatch.
    """
    why = next((o.why for o in owners if o.copy is None), "")
    repeated = None
    if not why:
        repeated = _with_copies(owners, program, passes) if passes else None
        if repeated is None or (repeated.contained and repeated.exact):
            return _copies(owners)
        why = "they use modules or tensors of the script that a copy would share with it" if not repeated.contained else ""
    outside = _outside(repeated, others) if repeated is not None else ()
    borrowed = _borrowed([*owners, *outside], why or "a copy computes a different loss")
    try:
        borrowed.lend()
        original = _repeat(program, [o.original for o in owners], passes, set(map(id, borrowed.modules)) | borrowed.tensors.keys())
    finally:
        borrowed.give_back()
    if repeated is not None and repeated.contained and not original.exact and _close(repeated.loss, passes):
        return _copies(owners)
    if not original.exact and not _close(original.loss, passes):
        raise ReplayMismatch(_other_loss(repeated or original, passes))
    return Twins([o.original for o in owners], dict(borrowed.tensors), dict(borrowed.tensors), borrowed, outside)


def _other_loss(repeated: _Repeated, passes: Sequence[BackwardPass]) -> str:
    return f"its loss was {repeated.loss:.4g}, the script's {total_loss(passes):.4g}"


def _copies(owners: Sequence[Owner]) -> Twins:
    """Each training has its own copies: what one trains, another freezes."""
    memo: dict[int, Any] = {}
    for owner in owners:
        assert owner.copy is not None
        memo_for(owner.copy, memo)
    with torch.no_grad():
        modules = [copy.deepcopy(o.copy, memo) for o in owners]
    for owner in owners:
        match_parts(owner.copy, memo)  # type: ignore[arg-type]
    bind_copies(memo)
    tensors = {
        key: memo[id(kept)]
        for o in owners
        for key, kept in o.memo.items()
        if isinstance(kept, torch.Tensor) and isinstance(memo.get(id(kept)), torch.Tensor)
    }
    return Twins([m for m in modules if m is not None], tensors, memo)


# ------------------------------------------------------------------------------------------------ repeating


def _with_copies(owners: Sequence[Owner], program: Program, passes: Sequence[BackwardPass]) -> _Repeated:
    copies = [o.copy if o.unmade is None else duplicate(o.unmade, o.unmade) for o in owners if o.copy is not None]
    own = {id(x) for o in owners for x in o.memo.values()} | {id(x) for m in copies for x in (*m.modules(), *m.parameters())}
    kept = Borrowed(copies)
    try:
        kept.lend()
        return _repeat(program, copies, passes, own)
    finally:
        kept.give_back()


def _repeat(program: Program, modules: Sequence[nn.Module], passes: Sequence[BackwardPass], own: set[int]) -> _Repeated:
    """Computes the first loss again, with the random numbers that it had. Raises ReplayMismatch when that fails."""
    try:
        with shielded(own) as strangers:
            losses = program.losses(modules, program.entries, random=True)
    except Exception as error:
        raise ReplayMismatch("it raised an error when it was run again with the weights from before training", described(error)) from error
    reached = upstream_leaves([x.grad_fn for x in losses if x.grad_fn is not None])
    foreign: list[torch.Tensor] = [t for t in reached if id(t) not in own and isinstance(t, nn.Parameter)]
    values = [float(x.detach().float().sum()) for x in losses]
    wanted = [float(p.loss.float().sum()) for p in passes]
    exact = all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(values, wanted, strict=True))
    return _Repeated(sum(values), exact, strangers, foreign)


def _close(value: float, passes: Sequence[BackwardPass]) -> bool:
    wanted = total_loss(passes)
    return not math.isfinite(wanted) or abs(value - wanted) <= SAME * max(abs(wanted), 1e-3)


# ------------------------------------------------------------------------------------------------- lending


def _outside(repeated: _Repeated, others: Sequence[Owner]) -> tuple[Owner, ...]:
    """The owners of what is used, though it is not held. Raises ReplayMismatch when one is not known as it was before training."""
    strangers = {id(p) for m in repeated.modules for p in m.parameters()} | set(map(id, repeated.tensors))
    found = tuple(o for o in others if strangers & o.memo.keys())
    if strangers - {key for o in found for key in o.memo}:
        raise ReplayMismatch("it uses modules that are part of no model of the script")
    return found


def _borrowed(owners: Sequence[Owner], why: str) -> Borrowed:
    """The originals, to be borrowed as they were before training."""
    free = [t for o in owners if isinstance(o.original, Loose) for t in o.original.tensors.values()]
    borrowed = Borrowed([o.original for o in owners], free, why=why, spill=any(o.short for o in owners))
    initial = BorrowedState(attributes=[], contents=[])
    for owner in owners:
        for key, kept in owner.memo.items():
            if key in borrowed.tensors and isinstance(kept, torch.Tensor):
                initial.data[key] = local(kept.detach())
                initial.trained[key] = kept.requires_grad
    borrowed.start_from(initial, {key: kept for o in owners for key, kept in o.memo.items() if isinstance(kept, nn.Module)})
    return borrowed
