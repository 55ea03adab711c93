"""What watching costs: blocks of watched steps and of bare ones, in random order, on one model in one process.

For a bare block the hooks are taken out, and the clock that the cadence goes by stands still: it counts the CPU time of the watched run
alone. The ratio is that of all blocks together; that of a second bare block to the first is the control. The first steps, all of which
are measured and judged, are spent once a run, and given apart.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

SECONDS = 0.5  # of a block
STEPS = 150  # watched ones, at least: several measured ones are among them
START = 8  # steps before the blocks
ARMS = ("bare", "control", "watched")


def measure(train: Callable[[int], None], board: Any, rounds: int, clock: list[float]) -> dict[str, Any]:
    """`train` takes so many steps. `clock[0]`: seconds of CPU time that the board's clock leaves out."""

    def timed(count: int) -> float:
        began = time.process_time()
        train(count)
        return time.process_time() - began

    def bare(count: int) -> float:
        began = time.process_time()
        hooks.remove()
        taken = timed(count)
        hooks.install()
        clock[0] += time.process_time() - began
        return taken

    timed(START)
    step = min(timed(START) for _ in range(3)) / START
    follower, began = board._follower, time.process_time()
    hooks = follower.hooks
    board.start()
    train(START)
    start = time.process_time() - began - START * step
    before, count = board.record.log.steps, max(round(SECONDS / step), -(-STEPS // rounds))
    taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm in random.sample(ARMS, len(ARMS)):
            while arm != "watched" and follower.measures:  # the taps are in
                train(1)
            taken[arm].append(timed(count) if arm == "watched" else bare(count))
    board.close()
    sums = {arm: sum(values) for arm, values in taken.items()}
    pairs = {a: statistics.median(x / y for x, y in zip(taken[a], taken["bare"], strict=True)) for a in ARMS[1:]}
    return {
        "step_ms": 1000 * sums["bare"] / rounds / count,
        "steps": count * rounds,
        "measured": board.record.log.steps - before,
        "start": start,
        **{arm: {"all": sums[arm] / sums["bare"], "median": pairs[arm]} for arm in ARMS[1:]},
    }


def own_clock() -> list[float]:
    """Makes what is imported from now on count the CPU time of this process, without what the list's number says."""
    left_out = [0.0]
    time.perf_counter = lambda: time.process_time() - left_out[0]
    return left_out
