"""What is tried when the probe did not learn: other rates of the user's optimizer, and one small batch with Adam.

They separate a wrong learning rate from a model that cannot learn. Nothing here runs on a workload that learns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradcheck.measure.data import batch_size
from gradcheck.measure.fork import fork
from gradcheck.measure.parameters import Watched
from gradcheck.measure.probe import Training
from gradcheck.nouns.measurement import Run
from gradcheck.progress import CLEAR_FALL, fall, outcome
from gradcheck.target.workload import Workload

BEST_UPDATE = 0.01  # update ratio that suits most nets, whatever the optimizer (calibration E3: 1.5e-2, sd 0.4 decades)
ONE_BATCH = 16  # samples
ONE_BATCH_STEPS = 200  # a healthy net needs 9 to 155 (calibration E16)
ONE_BATCH_RATES = (3e-3, 1e-3)
WINDOW = 5  # last losses that must all have fallen before a run is stopped as learned


def rate_factors(probe: Run, chance: float | None, watched: Sequence[Watched]) -> tuple[float, ...]:
    """Factors on the user's rate that are worth a try, the most promising first."""
    ratios = sorted(s.update_ratio for w in watched if w.tensor.dim() >= 2 for s in w.steps[:3] if s.update_ratio)
    typical = ratios[len(ratios) * 3 // 4] if ratios else None  # upper quartile: layers that hardly move say nothing about the rate
    if outcome(probe, chance) == "diverges" or typical is None or not math.isfinite(typical):
        return (0.1, 0.01, 0.001, 1e-4)
    best = BEST_UPDATE / typical
    candidates = (best, best / 10, 0.1, 10.0) if best > 3 else (0.1, best, 0.01) if best < 0.3 else (0.1, 10.0, 0.01)
    return tuple(dict.fromkeys(float(f"{c:.2g}") for c in candidates))


def other_rates(
    workload: Workload, steps: int, chance: float | None, factors: Sequence[float], seed: int, deadline: float, tick: Callable[[str], None]
) -> list[Run]:
    """The probe again, from the same weights and batches, at other rates; until one learns."""
    runs = []
    for factor in factors:
        if time.perf_counter() > deadline:
            break
        tick(f"rate x{factor:g}")
        trainee = fork(workload, seed=seed)
        for group in trainee.optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        training = Training(trainee, workload.batches)
        training.run(steps, deadline, norms=False, enough=lambda losses: _clearly_fallen(losses, len(workload.batches), chance))
        runs.append(training.noun(f"rate x{factor:g}", rate_factor=factor))
        if outcome(runs[-1], chance) == "learns":
            break
    return runs


def one_batch(
    workload: Workload, chance_of: Callable[[Any], float | None], seed: int, deadline: float, tick: Callable[[str], None]
) -> list[Run]:
    """Adam on a few samples of the first batch, at two rates; until one learns more than their mean."""
    runs = []
    batch = few_samples(workload.batches[0], ONE_BATCH)
    chance = chance_of(batch)
    for rate in ONE_BATCH_RATES:
        if time.perf_counter() > deadline:
            break
        tick(f"one batch, Adam {rate:g}")
        trainee = fork(workload, seed=seed)
        trainee.optimizer = torch.optim.Adam([p for p in trainee.model.parameters() if p.requires_grad], lr=rate)
        training = Training(trainee, [batch])
        training.run(ONE_BATCH_STEPS, deadline, norms=False, enough=lambda losses: _clearly_fallen(losses, 1, chance, 0.5))
        runs.append(training.noun(f"adam {rate:g} on one batch", chance=chance))
        if outcome(runs[-1]) == "learns":
            break
    return runs


def _clearly_fallen(losses: list[float], batches: int, chance: float | None, share: float = 2 * CLEAR_FALL) -> bool:
    """A fall by `share` of the reference that holds over a whole round of batches, twice what counts as learning."""
    window = max(WINDOW, batches)
    if len(losses) < 2 * window:
        return False
    run = Run("", tuple(losses), batches=batches)
    return fall(run, chance) >= share and all(b < losses[0] for b in losses[-WINDOW:])


def few_samples(batch: Any, count: int) -> Any:
    """The first samples of every tensor that has one entry a sample; the batch itself when that cannot be told."""
    size = batch_size(batch)
    if size <= count:
        return batch

    def cut(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[:count] if value.dim() and value.shape[0] == size else value
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(cut(v) for v in value))
        if isinstance(value, (list, tuple)):
            return type(value)(cut(v) for v in value)
        return value

    return cut(batch)
