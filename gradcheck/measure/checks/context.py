"""The checks beside the probe: each looks at copies of its own, runs when a selected rule asks for it, and may fail alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.analysis.gaps import described
from gradcheck.types.location import Location
from gradcheck.types.measurement import Lack, NotMeasured
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import TrainingCopy, fork
from gradcheck.workload.workload import Workload

LATE = "the time for measuring was over"


class Unmeasured(Exception):
    """A check could not be made. Its text is for the user; where it is raised from another exception, the check itself went wrong."""

    @property
    def lack(self) -> Lack:
        return "failed" if self.__cause__ is not None else "unsuited"


@dataclass
class CheckContext:
    """What a check may use. `fork()` is a fresh copy as it was before training; `trained` is the probe's copy as it is now."""

    workload: Workload
    seed: int
    deadline: float  # on time.perf_counter()
    sites: Mapping[str, Location | None]  # module name -> where it is created
    trained: TrainingCopy
    probe: Run
    chance: float | None  # loss of the best constant prediction
    half: bool = False  # some layer's output is float16
    targets: Sequence[torch.Tensor] = ()  # of each batch, where the loss takes a tensor of it

    def fork(self) -> TrainingCopy:
        return fork(self.workload, seed=self.seed)

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline


@dataclass(frozen=True)
class Check:
    """`make` gives the value of the Measurement field `name`; a rule asks for it by the need of the same name."""

    need: str
    name: str  # field of Measurement
    make: Callable[[CheckContext], Any]
    quick: bool = False  # costs next to nothing: made with --fast, too


@dataclass
class CheckResults:
    values: dict[str, Any] = field(default_factory=dict)  # Measurement field -> noun
    not_measured: list[NotMeasured] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run(context: CheckContext, checks: Collection[Check], tick: Callable[[str, float], None]) -> CheckResults:
    """Makes the checks one after another, the quick ones in any case, the others as long as there is time."""
    done = CheckResults()
    for check in checks:
        if context.late and not check.quick:
            done.not_measured.append(NotMeasured(check.need, LATE))
            continue
        tick(check.need, 0.0)
        started = time.perf_counter()
        try:
            value = check.make(context)
            if value is not None:
                done.values[check.name] = value
        except Unmeasured as reason:
            done.not_measured.append(NotMeasured(check.need, str(reason), reason.lack, detail=described(reason.__cause__)))
        except Exception as error:  # the user's code runs here in ways that it was not written for
            why = "the model or its training step raised an error when it was run in another way than the training does"
            done.not_measured.append(NotMeasured(check.need, why, detail=described(error)))
        done.seconds[check.need] = time.perf_counter() - started
    return done
