"""What the recorder notes while the loop runs, one `OptimizerTrace` for each optimizer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from gradcheck.capture.changes import Changes
from gradcheck.capture.loops import Loop
from gradcheck.capture.tape import Constant, Node, Owner, Ref
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopClip

Gradient = Literal["none", "zero", "some"]
WATCHED_GRADIENTS = 4  # tensors whose gradients tell whether they were cleared


@dataclass(eq=False)
class BackwardPass:
    """A backward pass."""

    loss: torch.Tensor  # its value
    ref: Ref | None  # None: it comes from nothing that was recorded
    place: Location | None
    reached: frozenset[int]  # ids of the leaves that it sends gradient to
    factor: float = 1.0  # that a GradScaler multiplied the loss by
    gradient_given: bool = False
    unknown: bool = False  # something went into it whose origin was not seen
    cuts: int = 0  # cuts on the tape when it ran
    unfollowed: Mapping[int, Location | None] = field(default_factory=dict)  # by id of a module, where it was called without gradients last
    constants: tuple[Constant, ...] = ()

    @property
    def nodes(self) -> list[Node]:
        return [self.ref.node] if self.ref is not None else []


@dataclass(eq=False)
class Step:
    """A step of an optimizer."""

    passes: list[BackwardPass]
    rate: float
    rates: tuple[float, ...]
    leftover: bool
    lost: bool
    dropped: bool
    bare: bool
    by_scaler: bool
    off: tuple[str, ...]  # dropouts that were off
    frozen: tuple[str, ...]  # normalizations that used their running statistics
    fresh: bool
    evaluated: bool  # the called module was in evaluation mode
    fingerprint: int | None
    epoch: int
    since: int = -1  # the last call on the tape before the step before it
    number: int = 0  # among the steps of all optimizers
    edited: bool = False  # gradients were changed by hand between backward and step
    near: BackwardPass | None = None  # of a step without passes: the last one before it, after every other step


@dataclass(eq=False)
class Renewal:
    """An optimizer was made anew, for the same parameters and at the same place."""

    step: int  # that the new one takes first
    had_state: bool
    lost: bool = False  # the new one began without state


@dataclass(eq=False)
class OptimizerTrace:
    """An optimizer of the user, or several made one after another for the same parameters, and what became of its steps."""

    optimizer: torch.optim.Optimizer
    label: str
    site: Location | None
    copy: torch.optim.Optimizer | None = None  # as it was before its first step
    keys: tuple[int, ...] = ()  # ids of its parameters then, in the order of the copy's
    memo: dict[int, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    live: list[BackwardPass] = field(default_factory=list)  # passes whose gradients it has not used
    cleared: list[BackwardPass] = field(default_factory=list)  # passes since the last step whose gradients were cleared
    dirty: bool = False  # gradients that were used are still there
    unscaled: bool = False
    base_rate: float | None = None
    version: int | None = None  # of one gradient after the last backward pass or clipping
    versioned: nn.Parameter | None = None
    step_site: Location | None = None
    clear_site: Location | None = None
    schedulers: dict[Location | None, list[int]] = field(default_factory=dict)  # by place: of each that was made there, its steps
    renewals: list[Renewal] = field(default_factory=list)  # another optimizer was made in the place of this one
    changes: Changes | None = None  # of an update that is no optimizer's of torch: `optimizer` only stands in for it
    parts: tuple[OptimizerTrace, ...] = ()  # it stands for several that step together
    free: Owner | None = None  # of its weights that no module holds
    loops: tuple[Loop, ...] = ()  # around its first step
    _watch: list[torch.Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p for watched in self.members for group in watched.optimizer.param_groups for p in group["params"]]

    @property
    def members(self) -> tuple[OptimizerTrace, ...]:
        return self.parts or (self,)

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(map(id, self.parameters))

    def last_call(self) -> int:
        """The last call on the tape that the steps so far depend on; -1 for none."""
        step = self.steps[-1] if self.steps else None
        return max([step.since, *(p.ref.node.serial for p in step.passes if p.ref is not None)]) if step is not None else -1

    def renew(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.renewals or self.renewals[-1].step < len(self.steps):
            self.renewals.append(Renewal(len(self.steps), holds_state(self.optimizer)))
        self.optimizer = optimizer

    @property
    def life(self) -> int | None:
        """Steps that an optimizer takes before another one is made in its place, usually."""
        starts = [0, *(r.step for r in self.renewals)]
        lives = sorted(b - a for a, b in itertools.pairwise(starts) if b > a)
        return lives[len(lives) // 2] if lives else None

    @property
    def forgets(self) -> bool:
        """Whether what its steps leave in an optimizer is lost with it, mostly."""
        return 2 * sum(r.lost for r in self.renewals) > len(self.renewals)

    def starts(self) -> None:
        """Before a step: whether the state of an optimizer before this one is lost."""
        if self.renewals and self.renewals[-1].step == len(self.steps):
            self.renewals[-1].lost = self.renewals[-1].had_state and not holds_state(self.optimizer)

    def gradient(self) -> Gradient:
        """What is in the gradients, told by a few of those that the last backward pass left."""
        given = [p.grad for p in self._watch or self.parameters if p.grad is not None]
        if not given:
            return "none"
        return "some" if not self._watch or any(map(_is_some, given)) else "zero"

    def keep_watch(self) -> None:
        """Chooses the gradients to look at: a few that are not zero."""
        given = (p for p in self.parameters if p.grad is not None and _is_some(p.grad))
        self._watch = list(itertools.islice(given, WATCHED_GRADIENTS))

    def settle(self) -> None:
        """Sees whether gradients were cleared: before a backward pass, a clipping and a step."""
        if not (self.dirty or self.live) or self.gradient() == "some":
            return
        self.dirty = False
        self.cleared += self.live
        self.live = []

    def claim_near(self) -> None:
        """Of an optimizer that no loss reaches: the losses right before its steps are those that it was to follow."""
        if not any(s.passes for s in self.steps):
            for step in self.steps:
                step.passes = [step.near] if step.near is not None else []

    def note_version(self) -> None:
        self.versioned = next((p for p in self.parameters if p.grad is not None), None)  # type: ignore[assignment]
        gradient = self.versioned.grad if self.versioned is not None else None
        self.version = gradient._version if gradient is not None else None

    def edited(self) -> bool:
        gradient = self.versioned.grad if self.versioned is not None else None
        return gradient is not None and self.version is not None and gradient._version != self.version


def holds_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its steps have left anything in it that the next ones use."""
    values = (v for state in optimizer.state.values() if isinstance(state, dict) for name, v in state.items() if name != "step")
    return any(isinstance(v, torch.Tensor) and bool(v.any()) for v in values)


def _is_some(gradient: torch.Tensor) -> bool:
    return bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())


def taken_alike(every: Iterable[OptimizerTrace]) -> int:
    """The most steps that were taken by optimizers made at one place: those of folds, tasks and members of an ensemble count together."""
    counts: Counter[Any] = Counter()
    for watched in every:
        counts[watched.site or id(watched)] += len(watched.steps)
    return max(counts.values(), default=0)


@dataclass(eq=False)
class Clip:
    """Calls of a clipping function at one place."""

    kind: Literal["norm", "value"]
    threshold: float
    site: Location | None
    owners: set[int] = field(default_factory=set)  # ids of the Watched whose parameters it was given
    calls: int = 0
    parameters: int = 0
    empty: int = 0
    foreign: int = 0
    late: int = 0
    early: int = 0
    scaled: int = 0

    def record(self) -> LoopClip:
        counts = self.calls, self.parameters, self.empty, self.foreign, self.late, self.early, self.scaled
        return LoopClip(self.kind, self.threshold, *counts, site=self.site)


@dataclass(eq=False)
class Scaler:
    enabled: bool
    factor: float = 1.0
    scaled: int = 0
    steps: int = 0
    updates: int = 0
    step_site: Location | None = None
    scale_site: Location | None = None
