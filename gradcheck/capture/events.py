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
from gradcheck.capture.nodes import Constant, Node, Owner, Ref
from gradcheck.capture.weighting import ElementWeight
from gradcheck.instrument.loop_journal import Evaluations, is_filled
from gradcheck.instrument.traced_optimizer import TracedOptimizer
from gradcheck.types.location import Location
from gradcheck.workload.replicas import Replica
from gradcheck.workload.sharding import holds_back

Gradient = Literal["none", "zero", "some"]
WATCHED_GRADIENTS = 4  # tensors whose gradients tell whether they were cleared


FOLLOWED = 32  # steps whose weights are compared
MOST_FOLLOWED = 1_000_000  # numbers of a training: two copies of them are held
REMAINS = 0.1  # of a step's change, below which it is undone: clipping weights after each step leaves half


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
    weight: ElementWeight | None = None  # of one supervised element
    gradient: torch.Tensor | None = None  # entries of what the gradients are after it
    used: bool = False  # a step of some optimizer was taken with it

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
    fingerprint: int | None
    epoch: int
    since: int = -1  # the last call on the tape before the step before it
    number: int = 0  # among the steps of all optimizers
    edited: bool = False  # gradients were changed by hand between backward and step
    gradient: torch.Tensor | None = None  # size of some of its gradients, where there are other optimizers
    near: BackwardPass | None = None  # of a step without passes: the last one before it, after every other step


@dataclass(eq=False)
class OptimizerTrace(TracedOptimizer):
    """An optimizer of the user, or several made one after another for the same parameters, and what became of its steps."""

    copy: torch.optim.Optimizer | None = None  # as it was before its first step
    keys: tuple[int, ...] = ()  # ids of its parameters then, in the order of the copy's
    memo: dict[int, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    evaluations: Evaluations = field(default_factory=Evaluations)
    live: list[BackwardPass] = field(default_factory=list)  # passes whose gradients it has not used
    cleared: list[BackwardPass] = field(default_factory=list)  # passes since the last step whose gradients were cleared
    dirty: bool = False  # gradients that were used are still there
    unscaled: bool = False
    filled: set[int] = field(default_factory=set)  # ids of its parameters with a gradient that is not zero, in one of the first steps
    version: int | None = None  # of one gradient after the last backward pass or clipping
    versioned: nn.Parameter | None = None
    changes: Changes | None = None  # of an update that no optimizer of torch takes: `optimizer` only stands in for it
    options: list[dict[str, Any]] = field(default_factory=list)  # arguments of its steps, one entry each
    parts: tuple[OptimizerTrace, ...] = ()  # it stands for several that step together
    free: Owner | None = None  # of its weights that no module holds
    replicas: list[list[Replica | None]] = field(default_factory=list)  # before each step, where other processes may hold the same
    undone: list[bool] = field(default_factory=list)  # of its first steps, whether what they changed was put back before the next one
    put_back: Location | None = None  # where a state was last loaded into its weights
    _watch: list[torch.Tensor] = field(default_factory=list)
    _weights: list[list[torch.Tensor]] = field(default_factory=list)  # before and after the last step

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p for watched in self.members for group in watched.optimizer.param_groups for p in group["params"]]

    @property
    def losses(self) -> list[float]:
        """Of each step that was taken from backward passes, what their losses add up to."""
        return [total_loss(s.passes) for s in self.steps if s.passes]

    @property
    def members(self) -> tuple[OptimizerTrace, ...]:
        return self.parts or (self,)

    def last_call(self) -> int:
        """The last call on the tape that the steps so far depend on; -1 for none."""
        step = self.steps[-1] if self.steps else None
        return max([step.since, *(p.ref.node.serial for p in step.passes if p.ref is not None)]) if step is not None else -1

    def gradient(self) -> Gradient:
        """What the gradients hold, judged by a few of those that the last backward pass left."""
        given = [p for p in self._watch or self.parameters if p.grad is not None]
        if not given:
            return "some" if holds_back() else "none"
        return "some" if not self._watch or any(map(is_filled, given)) else "zero"

    def note_weights(self, after: bool) -> None:
        """Before and after each of the first steps of a training that is small."""
        plain = all(type(p) in (nn.Parameter, torch.Tensor) and p.layout is torch.strided for p in self.parameters)
        if len(self.undone) >= FOLLOWED or not plain or sum(p.numel() for p in self.parameters) > MOST_FOLLOWED:
            return
        now = [p.detach().clone() for p in self.parameters]
        if not after and len(self._weights) == 2 and len(now) == len(self._weights[0]):
            changed = apart(self._weights[0], self._weights[1])
            if changed > 0:
                self.undone.append(apart(self._weights[0], now) < REMAINS * changed)
        self._weights = [*self._weights[:1], now] if after else [now]

    def keep_watch(self) -> None:
        """Chooses the gradients to look at: a few that are not zero."""
        with torch._C.DisableTorchFunction():  # of vanished gradients all are looked at
            self._watch = list(itertools.islice(filter(is_filled, self.parameters), WATCHED_GRADIENTS))

    def settle(self) -> None:
        """Checks whether gradients were cleared; called before each backward pass, clipping and step."""
        if not (self.dirty or self.live) or self.gradient() == "some":
            return
        self.dirty = False
        self.cleared += [p for p in self.live if not p.used]
        self.live = []

    def claim_near(self) -> None:
        """For an optimizer that no loss reaches: it takes the losses right before its steps as the ones it was meant to follow."""
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


def total_loss(passes: Iterable[BackwardPass]) -> float:
    return float(sum(float(p.loss.float().sum()) for p in passes))


def apart(before: Iterable[torch.Tensor], after: Iterable[torch.Tensor]) -> float:
    """Distance of all weights together, where their shapes are the same."""
    return sum(float((b - a).abs().double().square().sum()) for a, b in zip(before, after, strict=True) if a.shape == b.shape) ** 0.5


def taken_alike(every: Iterable[OptimizerTrace]) -> int:
    """The most steps taken by optimizers that one expression made: those of folds, tasks and members of an ensemble count together."""
    counts: Counter[Any] = Counter()
    for watched in every:
        counts[watched.site or id(watched)] += len(watched.steps)
    return max(counts.values(), default=0)
