"""Paired trainings, with a fix and without, on the same batches with the same random numbers; and intervals of their differences."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TypeVar

from gradcheck.types.fix import Effect
from gradcheck.types.training import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences, its interval, and the two-sided p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p: float


def paired_interval(
    differences: Sequence[float], *, confidence: float = CONFIDENCE, overlap: float = 0.0, sampling_error: float = 0.0
) -> Interval:
    """A single difference has an infinite interval. Infinite differences (divergence) leave only the range.

    `overlap`: validation over training samples, when every seed splits the same samples afresh. Then the differences are not independent,
    and their variance is corrected as Nadeau and Bengio (2003, Inference for the generalization error) do. `sampling_error`: standard
    error of the mean difference that comes from the choice of the validation samples, when all seeds have the same ones.
    """
    n = len(differences)
    if n == 0:
        return Interval(math.nan, -math.inf, math.inf, 1.0)
    if not all(map(math.isfinite, differences)):
        return _of_infinities(differences)
    mean = fmean(differences)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1.0)
    error = math.hypot(stdev(differences) * math.sqrt(1 / n + overlap), sampling_error)
    if error == 0:
        return Interval(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    half = t_quantile(n - 1, confidence) * error
    return Interval(mean, mean - half, mean + half, t_p_value(mean / error, n - 1))


def _of_infinities(differences: Sequence[float]) -> Interval:
    """The range of the differences, and a sign test: diverged runs count by their direction only."""
    known = [d for d in differences if not math.isnan(d)]
    low, high = (min(known), max(known)) if known else (-math.inf, math.inf)
    ups, downs = sum(d > 0 for d in known), sum(d < 0 for d in known)
    n, k = ups + downs, min(ups, downs)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n if n else 1.0
    middle = sorted(known)[len(known) // 2] if known else math.nan
    return Interval(middle, low, high, min(1.0, 2 * tail))


def t_p_value(t: float, freedom: int) -> float:
    """Two-sided tail of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2 == 0:
        term = total = 1.0
        for i in range(2, freedom, 2):
            term *= cosine**2 * (i - 1) / i
            total += term
        inside = sine * total
    else:
        term, total = cosine, cosine if freedom > 1 else 0.0
        for i in range(3, freedom, 2):
            term *= cosine**2 * (i - 1) / i
            total += term
        inside = 2 / math.pi * (angle + sine * total)
    return max(0.0, 1.0 - inside)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The half width, in standard errors, of a two-sided interval."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_p_value(middle, freedom) > 1 - confidence else (low, middle)
    return (low + high) / 2


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
