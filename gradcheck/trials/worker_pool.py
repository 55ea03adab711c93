"""Runs of a trial, one after the other or by several processes at once. Pairs are trained alike whoever trains them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import NamedTuple

import torch

from gradcheck.trials.lab import Lab, Pace, Result
from gradcheck.types.fix import Fix
from gradcheck.workload.device import accelerator_in_use
from gradcheck.workload.treated import Inapplicable

MOST_WORKERS = 4
LARGEST_MODEL = 20_000_000  # parameters with which every process may have a copy
PATIENCE = 0.2  # seconds between two looks at the clock
GRACE = 0.5  # seconds after the deadline that processes get to notice it: a step of the user's code may take longer


class Job(NamedTuple):
    seed: int
    prescriptions: tuple[Fix, ...]
    steps: int
    deadline: float


class Answer(NamedTuple):
    """`result`, or why there is none; neither when time was up before the run began."""

    result: Result | None
    failure: str = ""
    inapplicable: bool = False

    @property
    def begun(self) -> bool:
        return self.result is not None or self.inapplicable or bool(self.failure)


def work(ward: Lab, job: Job) -> Answer:
    """One run; what applying or training raises is an answer, too."""
    if time.perf_counter() > job.deadline:  # one clock for all processes, where they are forked
        return Answer(None)
    try:
        return Answer(ward.run(job.seed, job.prescriptions, job.steps, job.deadline))
    except Inapplicable as error:
        return Answer(None, str(error), True)
    except Exception as error:  # a treatment met a model that it was not made for, or the user's own code raised
        return Answer(None, f"{type(error).__name__}: {error}")


class WorkerPool:
    """Does jobs for a ward; `workers` processes are copies of this one, made when the first job comes."""

    def __init__(self, ward: Lab, workers: int | None = None) -> None:
        self.ward = ward
        self.workers = workers if workers is not None else usual_workers(ward)
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.dismiss()

    def do(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Answer]]:
        """(position of a job, its answer), as they are done. Jobs that were not begun at their deadline are cut; so are those that
        do not end soon after it, where other processes do them."""
        if self.workers == 1 or len(jobs) == 1:
            yield from ((i, work(self.ward, job)) for i, job in enumerate(jobs))
            return
        pool = self._pool()
        waiting: dict[Future[Answer], int] = {pool.submit(_work, job): i for i, job in enumerate(jobs)}
        last = max((job.deadline for job in jobs), default=0.0) + GRACE
        while waiting:
            done, _ = wait(waiting, timeout=PATIENCE, return_when=FIRST_COMPLETED)
            yield from ((waiting.pop(future), future.result()) for future in done)
            if time.perf_counter() > last:
                self.dismiss()
                return

    def pace(self, seconds: float) -> Pace:
        """Of the slowest worker, while all of them are at work."""
        if self.workers == 1:
            return self.ward.pace(seconds)
        pool = self._pool()
        return max(future.result() for future in [pool.submit(_pace, seconds) for _ in range(self.workers)])

    def _pool(self) -> ProcessPoolExecutor:
        if self.pool is None:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # children use one thread and none of their parent's, as data loaders' do
                self.pool = ProcessPoolExecutor(self.workers, get_context("fork"), _begin, (self.ward,))
        return self.pool

    def dismiss(self) -> None:
        """Ends the processes at once, whatever they do."""
        if self.pool is None:
            return
        processes = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(OSError, ValueError):
                process.terminate()
        for process in processes:
            process.join()
        self.pool = None


def usual_workers(ward: Lab) -> int:
    """As many as there are processors, for models on the CPU that fit several times; one where processes cannot be forked safely."""
    w = ward.workload
    if sys.platform != "linux" or w.device.type != "cpu" or accelerator_in_use() is not None:
        return 1
    if sum(p.numel() for p in w.model.parameters()) > LARGEST_MODEL:
        return 1
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


_WARDS: list[Lab] = []  # of a worker process: what it works for


def _begin(ward: Lab) -> None:
    """One thread each; an interrupt is for the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _WARDS[:] = [ward]


def _pace(seconds: float) -> Pace:
    return _WARDS[0].pace(seconds)


def _work(job: Job) -> Answer:
    return work(_WARDS[0], job)
