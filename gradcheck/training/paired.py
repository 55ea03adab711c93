"""Paired trainings: one with a fix, one without, on the same batches with the same random numbers; and which candidates go on."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import TypeVar

from gradcheck.training.intervals import CONFIDENCE, paired_interval
from gradcheck.types.fix import Effect
from gradcheck.types.training import Run

LAST_SHARE = 0.1  # of the steps: their mean is a run's training loss, over every batch equally often if possible
LARGEST_LOG = 30.0  # ratio beyond which nothing is known


def training_loss(run: Run, steps: int | None = None) -> float:
    """Mean over the last tenth of the steps, or over the last pass through the batches if that is longer; infinite when it diverged."""
    if run.ended in ("non-finite", "raised"):
        return math.inf
    losses = run.losses[:steps]
    window = min(max(1, round(LAST_SHARE * len(losses)), run.batches), max(1, len(losses) // 2))
    return fmean(losses[-window:]) if losses else math.nan


def validation_loss(run: Run, steps: int | None = None) -> float:
    """The last one at or before a step; infinite when the run diverged."""
    if run.ended in ("non-finite", "raised"):
        return math.inf
    known = [value for step, value in run.validated if steps is None or step <= steps]
    return known[-1] if known else math.nan


METRICS: dict[str, Callable[[Run, int | None], float]] = {"training loss": training_loss, "validation loss": validation_loss}


def effect(base: Sequence[Run], treated: Sequence[Run], *, metric: str = "training loss", confidence: float = CONFIDENCE) -> Effect:
    """The paired difference of the runs, seed by seed, after as many steps as both of a pair took. Raises ValueError when none are paired.

    `better`: the interval of the difference (95 % as a rule) lies below zero, or most untreated runs diverged and no treated one did.
    """
    pairs = list(zip(base, treated, strict=True))
    value = METRICS[metric]
    lost = ("non-finite", "raised")
    common = [min((len(r.losses) for r in pair if r.ended not in lost), default=0) for pair in pairs]
    before = [value(a, n) for (a, _), n in zip(pairs, common, strict=True)]
    after = [value(b, n) for (_, b), n in zip(pairs, common, strict=True)]
    return paired_effect(before, after, metric=metric, confidence=confidence)


def paired_effect(
    before: Sequence[float],
    after: Sequence[float],
    *,
    metric: str,
    lower_is_better: bool = True,
    confidence: float = CONFIDENCE,
    overlap: float = 0.0,
    sampling_error: float = 0.0,
    ratios: bool = False,
    ceiling: float | None = None,
) -> Effect:
    """The same from a value of each run, seed by seed; infinite (or minus infinite) ones are of runs that diverged.

    `ratios`: positive values are compared by the logarithm of their ratio, since losses of different seeds may lie decades apart; the
    interval is then that of the ratio, applied to the median of the untreated runs. `sampling_error` is that of the difference, or of the
    logarithm of the ratio; for `overlap` see `paired_interval`. `ceiling`: what diverged runs count as in the differences; without it
    nothing but their direction counts.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"{len(before)} untreated and {len(after)} treated runs are not pairs")
    usual = median(before)
    pairs = [tuple(ceiling if ceiling is not None and math.isinf(x) else x for x in pair) for pair in zip(before, after, strict=True)]
    logs = ratios and all(0 < x < math.inf for pair in pairs for x in pair)
    differences = [math.log(b / a) if logs else (0.0 if a == b else b - a) for a, b in pairs]  # two diverged runs are equally bad
    interval = paired_interval(differences, confidence=confidence, overlap=overlap, sampling_error=sampling_error)
    shown = [median(differences), interval.low, interval.high]
    level = median(a for a, _ in pairs)
    middle, low, high = (_of_ratio(level, x) for x in shown) if logs else shown
    rescued = sum(map(math.isinf, before)) > len(before) / 2 and all(map(math.isfinite, after))
    good = high < 0 if lower_is_better else low > 0
    return Effect(metric, usual, median(after), middle, low, high, len(before), good or rescued, lower_is_better)


def _of_ratio(usual: float, logarithm: float) -> float:
    """The difference that a ratio amounts to; infinite where nothing is known."""
    return usual * math.expm1(logarithm) if logarithm < LARGEST_LOG else math.inf


T = TypeVar("T")


def survivors(ranked: Sequence[T], tried: int, share: float, fewest: int) -> list[T]:
    """The candidates that go on: a share of all that were tried, chosen from those that may, best first."""
    return list(ranked[: max(fewest, math.ceil(share * tried))])
