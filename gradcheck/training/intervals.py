"""Intervals and p-values of paired differences with few seeds: Student's t, which is honest from three seeds on.

A rank test cannot reach 5 % with fewer than six pairs, and a bootstrap of three to ten values is too narrow; the t interval assumes that
the differences are normal, and is wide where there are few of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

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
