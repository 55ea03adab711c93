"""The jobs of a trial's pool: single runs, which give the same result in any process."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradcheck.training.pool import WorkerPool
from gradcheck.training.result import Result
from gradcheck.trials.lab import Pace, TrialLab
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import Inapplicable


class Job(NamedTuple):
    seed: int
    fixes: tuple[Fix, ...]
    steps: int
    deadline: float


class Answer(NamedTuple):
    """`result`, or why there is none; neither if time ran out before the run began."""

    result: Result | None
    failure: str = ""
    inapplicable: bool = False

    @property
    def begun(self) -> bool:
        return self.result is not None or self.inapplicable or bool(self.failure)


def work(lab: TrialLab, job: Job) -> Answer:
    """One run; what applying or training raises is an answer, too."""
    if time.perf_counter() > job.deadline:  # forked processes share one clock
        return Answer(None)
    try:
        return Answer(lab.run(job.seed, job.fixes, job.steps, job.deadline))
    except Inapplicable as error:
        return Answer(None, str(error), True)
    except Exception as error:  # the remedy does not fit the model, or the user's own code raised
        return Answer(None, f"{type(error).__name__}: {error}")


def answers(pool: WorkerPool[TrialLab], jobs: Sequence[Job]) -> Iterator[tuple[int, Answer]]:
    """(position of a job, its answer), as they are done. Jobs that were not begun at their deadline are cut."""
    return pool.map(work, jobs, max((job.deadline for job in jobs), default=0.0))


def pace(pool: WorkerPool[TrialLab], seconds: float) -> Pace:
    """The pace of the slowest worker, while all of them are at work."""
    return max(found for _, found in pool.map(TrialLab.pace, [seconds] * pool.workers, math.inf))
