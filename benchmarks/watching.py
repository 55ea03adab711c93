"""What watching costs: three processes train the same model, one of them watched, a block of steps at a time, in random order.

Each process counts its CPU time, which is also what the watched one's cadence goes by: the blocks of the others are no time of its run.
The ratio is that of all blocks together; that of the second bare process to the first is the control. The first steps, all of which are
measured and judged, are spent once a run, and given apart.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from typing import Any

ARMS = ("bare", "control", "watched")
SECONDS = 1.0  # of a block
START = 8  # steps before the blocks


def measure(name: str, rounds: int, every: int | None = None) -> dict[str, Any]:
    """Ratios, the length of a bare step in ms, seconds of the start beyond that of a bare run, and how many steps were measured."""
    children = {arm: _start(name, arm, every) for arm in ARMS}
    try:
        begun = {arm: _ask(children[arm], START)[0] for arm in ARMS}
        step = statistics.median(_ask(children["bare"], 4)[0] / 4 for _ in range(5))
        count = max(1, round(SECONDS / step))
        taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(rounds):
            for arm in random.sample(ARMS, len(ARMS)):
                taken[arm].append(_ask(children[arm], count)[0])
        measured = _ask(children["watched"], 1)[1]
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    sums = {arm: sum(values) for arm, values in taken.items()}
    pairs = {a: statistics.median(x / y for x, y in zip(taken[a], taken["bare"], strict=True)) for a in ("control", "watched")}
    return {
        "step_ms": 1000 * sums["bare"] / rounds / count,
        "steps": count * rounds,
        "measured": int(measured),
        "start": begun["watched"] - begun["bare"],
        **{arm: {"all": sums[arm] / sums["bare"], "median": pairs[arm]} for arm in ("control", "watched")},
    }


def _start(name: str, arm: str, every: int | None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.watching", name, arm, str(every or "")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(child: subprocess.Popen[str], steps: int) -> tuple[float, float]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(f"{steps}\n")
    child.stdin.flush()
    seconds, measured = child.stdout.readline().split()
    return float(seconds), float(measured)


def _child(name: str, arm: str, every: str) -> None:
    time.perf_counter = time.process_time
    import torch

    import gradcheck
    from benchmarks.overhead import MODELS, bare_step, keep_memory

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    workload = MODELS[name]()
    measured, done = [0], [0]

    def note(board: gradcheck.Board) -> None:
        measured[0] += 1

    board = gradcheck.watch(
        workload.model, workload.optimizer, every=int(every) if every else None, stop_on="error", on_measured=note
    )  # fmt: skip
    for _ in range(START):  # of torch itself, and of the optimizer's state: the same in all arms
        bare_step(workload.model, workload.optimizer, workload.training_step, workload.batches[0])
    for text in sys.stdin:
        began = time.process_time()
        if arm == "watched":
            board.start()
        for _ in range(int(text)):
            bare_step(workload.model, workload.optimizer, workload.training_step, workload.batches[done[0] % 4])
            done[0] += 1
        print(time.process_time() - began, measured[0], flush=True)


if __name__ == "__main__":
    _child(*sys.argv[1:])
