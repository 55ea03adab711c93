"""A workload: everything that a training step needs, as torch objects. `loading` and `capture` make it, `measure` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from gradcheck.types.location import Location
from gradcheck.types.measurement import Assumption
from gradcheck.workload.borrowing import Borrowed

Batch = Any  # a tensor, (inputs, target), (inputs, ..., target), or a dict
TrainingStep = Callable[[nn.Module, Batch], torch.Tensor]


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping between the backward pass and the optimizer's step."""

    kind: Literal["norm", "value", "adaptive"]
    threshold: float  # norm of all gradients together, largest entry, or share of the norm of a unit's weights
    site: Location | None = None
    exempt: tuple[str, ...] = ()  # parameters that adaptive clipping leaves alone


@dataclass
class Workload:
    """The user's objects, never changed: measuring works on copies, or puts everything back.

    `training_step(model, batch)` gives the scalar loss and is all that measuring needs. When it is made of
    `loss(output, target)`, that function stays in `loss`, so that it is copied with the model.
    """

    name: str
    model: nn.Module
    batches: Sequence[Batch]
    training_step: TrainingStep
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Any], torch.Tensor] | None = None
    val_batches: Sequence[Batch] = ()
    data_given: bool = True
    inputs: frozenset[str] | None = None  # names of the tensors of a batch that are data; None: all but the target
    made: frozenset[str] = frozenset()  # names of those that a model made: actions, returns, the fakes of a generator
    own_past: bool = False  # the loss takes what the model did in earlier steps, such as actions and their probabilities
    one_pass: bool = True  # the batches hold each sample of the data once
    collated: bool = False  # batches are single samples that torch stacked: samples are on the first axis
    loss_given: bool = True
    optimizer_given: bool = True
    assumptions: list[Assumption] = field(default_factory=list)
    # id(module or optimizer) -> the expression that constructed it; filled while the target is loaded, empty from Python objects.
    sites: Mapping[int, Location] = field(default_factory=dict)
    files: Sequence[str] = ()  # the user's own source files, for suppression comments and snippets
    # Builds the same workload with another seed; None when only finished objects were given.
    rebuild: Callable[[int], Workload] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clip: Clipping | None = None
    divisible: bool | None = None  # whether the step runs on a part of a batch; None: not known yet
    own_losses: Sequence[float] = ()  # of a script's own steps, by step, from the same start
    filled: frozenset[str] = frozenset()  # parameters whose gradient was not zero in one of the script's first steps
    forward_seconds: float = 0.0  # that the loss of the first batch took; 0: not known
    sample_bytes: float = 0.0  # that autograd keeps of a sample for the backward pass; 0: not known
    uncut: Workload | None = None  # as the user gave it, where its batches were cut to fewer samples or positions
    length: int | None = None  # positions that their sequences were cut to
    checked: bool = False  # whether it is known that copies of `model` are faithful, or that none is
    borrowed: Borrowed | None = None  # of `model`, where no faithful copy of it can be made: then the user's own modules are trained
