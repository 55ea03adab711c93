"""The entries of a trial, their results by seed, and how they compare with the untreated model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev

from gradcheck.training.paired import paired_effect
from gradcheck.training.result import Result
from gradcheck.trials.lab import OTHER_LOSS, Answer
from gradcheck.types.fix import Effect, Fix

RELEVANT_SHARE = 0.02  # of the loss at the start, or of the best constant prediction: SCIENCE, fix verification protocol
HOPEFUL = 2.0  # how much further the interval of an undecided effect reaches to the good side
RELEVANT_SCORE = 0.02  # of accuracy or R2, where losses cannot be compared


@dataclass
class Candidate:
    """A remedy at one strength, or several remedies together. `family`: the remedy, whatever its strength."""

    name: str
    title: str
    fixes: tuple[Fix, ...] = ()
    results: dict[int, Result] = field(default_factory=dict)
    failure: str = ""  # why it cannot be applied, or what it raised
    inapplicable: bool = False
    variant: bool = False  # at another strength than the proposed one

    def note(self, seed: int, answer: Answer) -> bool:
        """Keeps the result of a run, or the reason why there is none. Returns whether the run was complete."""
        result = answer.result
        if result is None:
            if answer.begun:
                self.failure, self.inapplicable = answer.failure, answer.inapplicable
            return False
        if result.cut:
            return False
        if result.run.ended == "raised" and self.fixes:
            self.failure = str(result.run.error)
        self.results[seed] = result
        return True

    @property
    def judged_by_score(self) -> bool:
        return any(p.treatment in OTHER_LOSS for p in self.fixes)


@dataclass(frozen=True)
class ComparisonMetric:
    """How differences are measured."""

    name: str
    relevant: float  # smallest difference of the metric that counts
    score: str | None  # metric for entries whose losses mean something else
    overlap: float = 0.0  # see `paired_interval`
    sampled: bool = False  # all seeds have the same validation samples


def values(candidate: Candidate, base: Candidate, seeds: Sequence[int], metric: ComparisonMetric) -> tuple[list[float], list[float]]:
    """Untreated and treated value on each seed. Divergence is infinitely bad."""
    if not candidate.judged_by_score or metric.score is None:
        return [base.results[s].value for s in seeds], [candidate.results[s].value for s in seeds]
    pairs = [[x.results[s].scores.get(metric.score, -math.inf) for s in seeds] for x in (base, candidate)]
    return pairs[0], pairs[1]


def shared(candidate: Candidate, base: Candidate, seeds: Sequence[int] | None = None) -> list[int]:
    """Seeds on which both have run."""
    return [s for s in sorted(candidate.results) if s in base.results and (seeds is None or s in seeds)]


def gain(candidate: Candidate, base: Candidate, metric: ComparisonMetric, seeds: Sequence[int] | None = None) -> float:
    """How much better than untreated, in units of the smallest difference that counts; the mean over the seeds."""
    both = shared(candidate, base, seeds)
    if not both:
        return -math.inf
    before, after = values(candidate, base, both, metric)
    scored = candidate.judged_by_score and metric.score is not None
    unit = RELEVANT_SCORE if scored else metric.relevant
    signs = -1.0 if scored else 1.0
    if not scored and all(0 < x < math.inf for x in (*before, *after)):
        ratio = fmean(math.log(a / b) for a, b in zip(after, before, strict=True))
        return -median(before) * math.expm1(ratio) / unit
    differences = [0.0 if a == b else signs * (a - b) / unit for a, b in zip(before, after, strict=True)]
    return fmean(differences) if all(map(math.isfinite, differences)) else median(differences)


def compare(
    candidate: Candidate, base: Candidate, metric: ComparisonMetric, seeds: Sequence[int] | None = None, confidence: float = 0.95
) -> Effect | None:
    """The paired effect on the seeds that both ran on; None when there are none."""
    both = shared(candidate, base, seeds)
    if not both:
        return None
    before, after = values(candidate, base, both, metric)
    scored = candidate.judged_by_score and metric.score is not None
    error = 0.0 if scored or not metric.sampled else sampling_error(candidate, base, both)
    return paired_effect(
        before,
        after,
        metric=str(metric.score) if scored else metric.name,
        lower_is_better=not scored,
        confidence=confidence,
        overlap=metric.overlap,
        sampling_error=error,
        ratios=not scored,
        ceiling=None if scored else ceiling([*before, *after], [base.results[s] for s in both]),
    )


def ceiling(losses: Sequence[float], untreated: Sequence[Result]) -> float | None:
    """The value of a diverged run in an interval: the worst loss seen, that of the untrained model included."""
    starts = [r.run.validated[0][1] if r.run.validated else r.run.losses[0] for r in untreated if r.run.validated or r.run.losses]
    return max((x for x in (*losses, *starts) if math.isfinite(x)), default=None)


def sampling_error(candidate: Candidate, base: Candidate, seeds: Sequence[int]) -> float:
    """Standard error of the logarithm of the ratio of mean losses: how much it depends on which samples happen to be for validation.

    From the losses a and b on each validation batch, by the delta method: the error of  mean(b / mean b - a / mean a).
    """
    rows = [(base.results[s].parts, candidate.results[s].parts) for s in seeds]
    rows = [(a, b) for a, b in rows if a and len(a) == len(b)]
    if not rows or len(rows[0][0]) < 2:
        return 0.0
    before, after = ([fmean(row[side][i] for row in rows) for i in range(len(rows[0][0]))] for side in (0, 1))
    if not all(0 < fmean(x) < math.inf for x in (before, after)):
        return 0.0
    spread = [b / fmean(after) - a / fmean(before) for a, b in zip(before, after, strict=True)]
    return stdev(spread) / math.sqrt(len(spread))


def is_undecided(effect: Effect, metric: ComparisonMetric) -> bool:
    """Whether an improvement large enough to count cannot be told from chance, though most of its interval is on the better side."""
    unit = metric.relevant if effect.lower_is_better else RELEVANT_SCORE
    low, middle, high = effect.low, effect.difference, effect.high
    if not effect.lower_is_better:
        low, middle, high = -high, -middle, -low
    return middle <= -unit and high >= 0 and -low > HOPEFUL * high


def is_relevant(effect: Effect, metric: ComparisonMetric) -> bool:
    """Whether the difference is large enough to matter; divergence always is."""
    unit = metric.relevant if effect.lower_is_better else RELEVANT_SCORE
    return not abs(effect.difference) < unit  # NaN and infinities count
