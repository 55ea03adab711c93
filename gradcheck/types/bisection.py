"""What `gradcheck bisect` says about two programs: plain numbers and words."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["equal", "within-noise", "parted", "not-comparable"]


@dataclass(frozen=True)
class Parting:
    """An event at which the two part. `distance`: relative, None if one has nothing to compare; `limit`: up to which they agree."""

    step: int
    kind: str  # weight, buffer, input, forward, loss, backward, gradient, edited, update, state
    a: str  # its name in A, "" for the whole model
    b: str
    call: int
    distance: float | None
    limit: float
    what: str  # in words


@dataclass(frozen=True)
class StepDistances:
    """The largest relative distances in a step, by group; None where nothing could be compared. `noise`: the same among the runs of A."""

    step: int
    activations: float | None
    gradients: float | None
    updates: float | None
    noise: float | None


@dataclass(frozen=True)
class Bisection:
    """`partings`: the first ones, in the order in which they were computed; the first of all is where the programs part."""

    a: str
    b: str
    verdict: Verdict
    headline: str
    causes: tuple[str, ...]  # what explains it, and what to look at
    noise: str  # how well A repeats itself
    partings: tuple[Parting, ...]
    parted: int  # events that part, in all
    compared: int  # events
    steps: tuple[StepDistances, ...]
    notes: tuple[str, ...]  # what was not compared
    failed: bool = False  # a program ended by an error of its own
