"""Works on copies in several forked processes at once. The results do not depend on which process does what."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_all_start_methods, get_context
from typing import Any, Generic, TypeVar

import torch

from gradcheck.errors import ConfigError
from gradcheck.workload.device import accelerator_in_use
from gradcheck.workload.workload import Workload

MOST_WORKERS = 4
LARGEST_MODEL = 20_000_000  # parameters with which every process may have a copy
LOOK = 0.2  # seconds between two looks at the clock
GRACE = 0.5  # seconds after the deadline that processes get to notice it: a step of the user's code may take longer

Lab = TypeVar("Lab")
Job = TypeVar("Job")
Answer = TypeVar("Answer")


class WorkerPool(Generic[Lab]):
    """Does jobs in a lab; the processes are copies of this one, made when the first job comes."""

    def __init__(self, lab: Lab, workers: int) -> None:
        self.lab, self.workers = lab, workers
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool[Lab]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.terminate()

    def map(
        self, work: Callable[[Lab, Job], Answer], jobs: Sequence[Job], deadline: float, look: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Answer]]:
        """(position of a job, its answer), as they are done; `look()` is called now and then in between.

        Processes that do not end soon after the deadline are terminated. Raises ConfigError if there can be none.
        """
        if self.workers == 1 or len(jobs) == 1:
            yield from ((i, work(self.lab, job)) for i, job in enumerate(jobs))
            return
        pool = self._started()
        waiting: dict[Future[Answer], int] = {pool.submit(_work, work, job): i for i, job in enumerate(jobs)}
        while waiting:
            done, _ = wait(waiting, timeout=LOOK, return_when=FIRST_COMPLETED)
            yield from ((waiting.pop(future), future.result()) for future in done)
            look()
            if time.perf_counter() > deadline + GRACE:
                self.terminate()
                return

    def _started(self) -> ProcessPoolExecutor:
        if "fork" not in get_all_start_methods():
            raise ConfigError("several workers need a system that can fork processes", hint="leave --workers out; or share a --study URL")
        if self.executor is None:
            with warnings.catch_warnings():
                # Children use one thread and none of their parent's, as data loaders' do.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.executor = ProcessPoolExecutor(self.workers, get_context("fork"), _begin, (self.lab,))
        return self.executor

    def terminate(self) -> None:
        """Terminates the processes at once."""
        if self.executor is None:
            return
        processes = list((self.executor._processes or {}).values())
        self.executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(OSError, ValueError):
                process.terminate()
        for process in processes:
            process.join()
        self.executor = None


def usual_workers(workload: Workload) -> int:
    """As many as there are processors, for models on the CPU that fit into memory several times; one if forking is not safe."""
    if sys.platform != "linux" or workload.device.type != "cpu" or accelerator_in_use() is not None:
        return 1
    if sum(p.numel() for p in workload.model.parameters()) > LARGEST_MODEL:
        return 1
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


_LAB: list[Any] = []  # of a worker process: what it works in


def _begin(lab: Any) -> None:
    """One thread each; an interrupt is for the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _LAB[:] = [lab]


def _work(work: Callable[[Any, Any], Any], job: Any) -> Any:
    return work(_LAB[0], job)
