"""Trainings and their optimizer: the course of the loss, its regularization, where numbers ceased to be finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gradcheck.types.checks import Dropout, Penalty
from gradcheck.types.location import Location

UNBINNED = 64  # losses of a watched run that are kept singly; later ones are means over equally many steps
ONE_OPTIMIZER = "one optimizer for all steps"  # an experiment
SAME_RATE_LONGER = "the same rate, longer"  # another one


@dataclass(frozen=True)
class OptimizerFacts:
    name: str  # class name: "SGD", "AdamW"
    given: bool  # False: assumed by gradcheck; rules about the optimizer then only advise
    adaptive: bool  # the size of its step hardly depends on the size of the gradient (Adam and kin)
    lr: float  # of the first group
    momentum: float = 0.0
    weight_decay: float = 0.0
    maximize: bool = False
    warming_up: bool = False  # the present rate is below `initial_lr`: a scheduler is attached
    stale: int = 0  # tensors in its groups that are not in the model (any more) and get no gradient
    site: Location | None = None
    eps: float | None = None  # of the first group
    betas: tuple[float, ...] = ()
    decoupled: bool = False  # weight decay shrinks the weights themselves and is not added to the gradient


@dataclass(frozen=True)
class Run:
    """A short training of a copy of the model. Losses are before each step, in training mode."""

    name: str  # "probe" with the user's optimizer; "rate x0.1", "adam 0.001 on one batch", ...
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...] = ()  # total 2-norm at each step; may be empty
    batches: int = 1  # distinct batches that it cycled through
    lr: float | None = None
    rate_factor: float | None = None  # against the user's rate
    ended: Literal["done", "budget", "non-finite", "learned", "raised"] = "done"
    error: str | None = None  # the exception, when it raised
    chance: float | None = None  # loss of the best constant prediction on its batches, where they are not those of the probe
    floor: float = 0.0  # loss of the best prediction there is: soft targets leave some, as smoothed labels do
    surrogate: str = ""  # why the level of its loss does not say how well the model does; "": it does
    seconds: float = 0.0
    lifted: tuple[str, ...] = ()  # what of the user's regularization was taken away: see Regularization.kinds
    validated: tuple[tuple[int, float], ...] = ()  # (steps taken, loss on the validation batches in evaluation mode)
    live: bool = False  # the user's own run, watched: of any length, on its own schedule; long ones have bins of equally many steps
    loss_scale: float = 1.0  # that the loss was multiplied by; the norms here are divided by it
    clipped: bool = False  # the norms were read after clipping
    beside: bool = False  # other optimizers of the loop train against it, or beside it: its loss need not fall, and may rise


@dataclass(frozen=True)
class Regularization:
    """What holds the training back on purpose, and how far the probe came without it.

    The two losses are those of the data alone: without dropout, without penalties, labels not smoothed, mean over some batches.
    They, and the runs, are there only where the probe did not learn clearly, or where a penalty hides what it learned.
    """

    dropouts: tuple[Dropout, ...] = ()
    penalty: Penalty | None = None
    smoothing: float = 0.0  # of labels
    staying: tuple[Dropout, ...] = ()  # dropouts that evaluation mode leaves on, and that the code does not ask for there:
    staying_loss: float | None = None  # loss of the probe's copy in evaluation mode, with them,
    quiet_loss: float | None = None  # and without
    kinds: tuple[str, ...] = ()  # of "dropout", "weight decay", "penalty", "label smoothing": those that were strong enough to be lifted
    start_loss: float | None = None
    trained_loss: float | None = None  # of the probe's copy
    chance: float | None = None  # of that loss: the best constant prediction
    runs: tuple[Run, ...] = ()  # the probe again without them, each alone and then together; losses are those of the data


@dataclass(frozen=True)
class NonFinite:
    """The first operation whose inputs were finite and whose result was not."""

    direction: Literal["forward", "backward", "loss", "loop"]  # loop: without gradient, outside the model
    operation: str
    layer: str
    site: Location | None
    step: int
    kind: Literal["nan", "inf"]
    input_min: float | None = None  # range of what went in (forward), or of the forward input (backward)
    input_max: float | None = None
    dtype: str = ""  # of the result
    rank: int | None = None  # process of a distributed training
    # What about its arguments made it so, in how many entries, rows or samples, and of how many; see measure/domain.py.
    reason: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class LogColumn:
    """A column of a log. The two tuples are equally long; steps grow, values may be not finite."""

    name: str  # as the log calls it
    steps: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def finite(self) -> LogColumn:
        """Its finite values."""
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return LogColumn(self.name, tuple(s for s, _ in kept), tuple(v for _, v in kept))


@dataclass(frozen=True)
class LogFacts:
    """The columns of a log that rules read; None: it has no such column."""

    format: str  # "trainer_state.json of Transformers", "TensorBoard", ...
    loss: LogColumn | None = None  # of training
    evaluation: LogColumn | None = None  # loss on held-out data
    rate: LogColumn | None = None
    norm: LogColumn | None = None  # of the gradient
    scale: LogColumn | None = None  # of the loss, by a scaler
    clip: float | None = None  # norm that gradients are clipped to, where the log or the user says it
    others: tuple[str, ...] = ()  # columns that were not used

    @property
    def last(self) -> float:
        """The last step that it tells of."""
        return max((c.steps[-1] for c in (self.loss, self.evaluation, self.rate, self.norm) if c is not None and c.steps), default=0.0)
