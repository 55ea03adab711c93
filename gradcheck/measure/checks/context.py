"""The checks beside the probe: each looks at copies of its own, runs when a selected rule asks for it, and may fail alone."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradcheck.analysis.convergence import outcome
from gradcheck.analysis.gaps import described
from gradcheck.instrument.graph_structure import release_graphs
from gradcheck.types.location import Location
from gradcheck.types.measurement import Lack, NotMeasured
from gradcheck.types.training import Run
from gradcheck.workload.lockstep import OutOfStep, everyone, now, several
from gradcheck.workload.sharding import reset
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import TrainingCopy, fork
from gradcheck.workload.workload import Workload

LATE = "the time for measuring had run out"
SHARDED = "it needs all parameters in one process, and they are sharded over several"


class Unmeasured(Exception):
    """A check could not be made. Its text is for the user; if it is raised from another exception, the check itself failed."""

    @property
    def lack(self) -> Lack:
        return "failed" if self.__cause__ is not None else "unsuited"


@dataclass
class CheckContext:
    """What a check may use. `fork()` is a fresh copy as it was before training; `trained` is the probe's copy as it is now."""

    workload: Workload
    seed: int
    deadline: float  # on lockstep.now()
    sites: Mapping[str, Location | None]  # module name -> where it is created
    trained: TrainingCopy
    probe: Run
    chance: float | None  # loss of the best constant prediction
    half: bool = False  # some layer's output is float16
    targets: Sequence[torch.Tensor] = ()  # of each batch, where the loss takes a tensor of it; whole where batches were cut
    step_seconds: float = 0.0  # that a training step takes
    compared: Workload | None = None  # with enough samples in a batch to compare, where those of `workload` were cut to fewer

    @property
    def learned(self) -> bool:
        return outcome(self.probe, self.chance) == "learns"

    @property
    def more(self) -> float:
        """How many times more samples are in the batch that is compared."""
        own = max(1, batch_size(self.workload.batches[0]))
        return batch_size(self.compared.batches[0]) / own if self.compared is not None else 1.0

    def sound(self) -> TrainingCopy:
        """The probe's copy, unless its training broke it."""
        return self.trained if self.probe.ended not in ("non-finite", "raised") else self.fork()

    def fork(self) -> TrainingCopy:
        return fork(self.workload, seed=self.seed)

    @property
    def late(self) -> bool:
        return now() > self.deadline


@dataclass(frozen=True)
class Check:
    """`make` gives the value of the Measurement field `name`; a rule asks for it by the need of the same name."""

    need: str
    name: str  # field of Measurement
    make: Callable[[CheckContext], Any]
    quick: bool = False  # costs next to nothing: made with --fast, too
    whole: bool = False  # asks for all parameters in one process, and no process holds those of a sharded model
    steps: Callable[[CheckContext], float] = lambda context: 0.0  # training steps that it takes the time of, for the forecast

    def seconds(self, context: CheckContext) -> float:
        return self.steps(context) * context.step_seconds


@dataclass
class CheckResults:
    values: dict[str, Any] = field(default_factory=dict)  # Measurement field -> noun
    not_measured: list[NotMeasured] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run(context: CheckContext, checks: Collection[Check], tick: Callable[[str, float], None]) -> CheckResults:
    """Makes the checks that fit into the time, one after another; if not all fit, the cheapest first."""
    done = CheckResults()
    dear = {check.need: check.seconds(context) for check in checks}
    if sum(dear.values()) > context.deadline - now():
        checks = sorted(checks, key=lambda check: dear[check.need])
    for check in checks:
        if several() and check.whole:
            done.not_measured.append(NotMeasured(check.need, SHARDED))
            continue
        over = now() + dear[check.need] > context.deadline
        if over and (dear[check.need] or not check.quick):
            done.not_measured.append(NotMeasured(check.need, LATE, detail=f"it would take about {dear[check.need]:.2g} s"))
            continue
        tick(check.need, 0.0)
        started = time.perf_counter()
        value, lacking = _made(check, context)
        if any((said is None) != (lacking is None) for said in everyone(lacking)):
            value, lacking = None, lacking or NotMeasured(check.need, "an error kept another rank from making it")
        if value is not None:
            done.values[check.name] = value
        if lacking is not None:
            done.not_measured.append(lacking)
            if several():
                reset(context.workload.model)
        release_graphs()
        done.seconds[check.need] = time.perf_counter() - started
    return done


def _made(check: Check, context: CheckContext) -> tuple[Any, NotMeasured | None]:
    try:
        return check.make(context), None
    except Unmeasured as reason:
        return None, NotMeasured(check.need, str(reason), reason.lack, detail=described(reason.__cause__))
    except OutOfStep:
        raise
    except Exception as error:  # the user's code runs here in ways it was not written for
        why = "the model or its training step raised an error when it was run differently than in training"
        return None, NotMeasured(check.need, why, detail=described(error))
