"""The entries of a trial, their results by seed, and how they compare with the untreated model, also in plain words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, stdev

from gradcheck.analysis.wording import counted, number
from gradcheck.training.paired import paired_effect
from gradcheck.training.result import Result
from gradcheck.trials.lab import OTHER_LOSS, Answer
from gradcheck.trials.plan import LONGER
from gradcheck.types.fix import Effect, Fix
from gradcheck.types.trial import Entry

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


TOWARDS = f"but would not get there in {LONGER:g} times as many steps."
EVEN = 1.5  # an interval is written with ± when its longer side is no more than this many times the shorter one
CALM = 3.0  # largest over median gradient norm of a training without spikes: CLIP001's healthy trainings
REGULARIZING = frozenset(
    "l1 l2 elastic-net dropout early-stopping label-smoothing mixup random-flip random-shift random-crop input-noise token-dropout "
    "decoupled-weight-decay smaller-network".split()
)


def explained(entry: Entry, base: Entry, metric: ComparisonMetric, falling: bool = False) -> Entry:
    """The entry with its sentence. `falling`: the untreated model's loss was, when its training ended."""
    return replace(entry, text=sentence(entry, base, metric, falling))


def sentence(entry: Entry, base: Entry, metric: ComparisonMetric, falling: bool = False) -> str:
    effect = entry.effect
    if entry.status == "inapplicable":
        return f"{entry.title} is not applicable: {entry.reason}"
    if entry.status == "failed":
        return f"{entry.title} could not be tried: {entry.reason}"
    if entry.status == "untried" or effect is None:
        return f"{entry.title} was not tried: time ran out"
    if entry.status == "diverged":
        return f"{entry.title} diverges in {entry.diverged} of {counted(entry.seeds, 'seed')}"
    if entry.status == "helps" and math.isinf(effect.base):
        trained = f"{effect.metric} {number(effect.treated)}"
        return f"{entry.title} trains ({trained}) where the untreated model diverges in {base.diverged} of {counted(base.seeds, 'seed')}"
    if entry.status in ("helps", "worse"):
        return f"{entry.title} {moves(effect)}{sparse(entry, base)}"
    if entry.status == "promising":
        tried = f"in {counted(entry.seeds, 'seed')} of the screening"
        return f"{entry.title} {moves(effect)} {tried}; whether that is chance was not tested in the final"
    return f"{entry.title} {nothing(effect, metric)}{why_nothing(entry, base, metric, falling)}{sparse(entry, base)}"


def moves(effect: Effect) -> str:
    """`lowers validation loss by 0.12 ± 0.03 (1.5 -> 1.38)`."""
    verb = "lowers" if effect.difference < 0 else "raises"
    return f"{verb} {effect.metric} by {amount(effect)} ({number(effect.base)} -> {number(effect.treated)})"


def amount(effect: Effect) -> str:
    ends = sorted((abs(effect.difference - effect.low), abs(effect.high - effect.difference)))
    if not math.isfinite(ends[1]):
        return number(abs(effect.difference))
    if ends[1] <= EVEN * ends[0]:
        return f"{number(abs(effect.difference))} ± {number(sum(ends) / 2)}"
    low, high = sorted((effect.low, effect.high), key=abs) if effect.low * effect.high > 0 else (effect.low, effect.high)
    sign = 1 if low * high < 0 else math.copysign(1, effect.difference)
    return f"{number(abs(effect.difference))} ({number(sign * low)} to {number(sign * high)})"


def nothing(effect: Effect, metric: ComparisonMetric) -> str:
    if effect.difference == 0 or not math.isfinite(effect.difference):
        return "changes nothing"
    shown = f"{'+' if effect.difference > 0 else '-'}{amount(effect)}"
    small = effect.lower_is_better and abs(effect.difference) < metric.relevant
    return f"changes {effect.metric} by {shown}: {'too little to count' if small else 'that may be chance'}"


def why_nothing(entry: Entry, base: Entry, metric: ComparisonMetric, falling: bool = False) -> str:
    """Why the remedy has nothing to do in the untreated training."""
    calm = base.gradient_spread is not None and base.gradient_spread < CALM
    if "clip" in entry.name and "+" not in entry.name and calm:
        return f"; your gradients never spike (the largest is {number(base.gradient_spread or 0.0)} times the median)"
    gap = next((s.median for s in base.scores if s.metric == "generalization gap"), None)
    if entry.name in REGULARIZING and gap is not None and gap < metric.relevant:
        so_far = f"after {counted(base.steps, 'step')}, too few to overfit" if falling else "validation loss is as low as training loss"
        return f"; there is nothing to regularize: {so_far}"
    return ""


def sparse(entry: Entry, base: Entry) -> str:
    if entry.sparsity is None or entry.sparsity <= (base.sparsity or 0.0) + 0.01:
        return ""
    return f"; {entry.sparsity:.0%} of the weights are exactly zero"


def too_short(entries: Sequence[Entry], base: Entry) -> str:
    """What to say of a trial that ended before the untreated model had learned what it can."""
    ahead = [e for e in entries if e.status in ("helps", "promising", "undecided")]
    names = [e.text if e.status == "helps" and i == 0 else e.title for i, e in enumerate(ahead[:4])]
    seen = f" Ahead so far: {'; '.join(names)}. That is no recommendation: more steps may undo it." if ahead else ""
    steps = counted(base.steps, "step")
    return f"After {steps} the untreated model's loss was still falling; too short to show overfitting: raise --budget.{seen}"


def verdict(entries: Sequence[Entry], recommended: str, base: Entry, metric: ComparisonMetric, ended: str, falling: bool = False) -> str:
    """The trial in one or two sentences; in front, whether it was too short to tell."""
    chosen = next((e for e in entries if e.name == recommended), None) if recommended else None
    cut = {"budget": " Time ran out before the end.", "interrupted": " It was interrupted: what is shown is partial."}.get(ended, "")
    if chosen is not None:
        others = [e for e in entries if e.status == "helps" and e is not chosen and " + " not in e.name]
        more = f" Also better than untreated: {', '.join(e.title for e in others[:4])}." if others else ""
        further = f" The untreated model was still falling, {TOWARDS}" if falling else ""
        return f"{chosen.text[:1].upper()}{chosen.text[1:]}.{more}{further}{cut}"
    if falling:
        return too_short(entries, base) + cut
    tested = [e for e in entries if e.effect is not None]
    hopeful = [e.title for e in entries if e.status in ("promising", "undecided")]
    if not tested:
        return f"Nothing was compared.{cut}"
    if hopeful:
        more = "" if cut else " More seeds would tell: raise the budget."
        return f"Undecided: {', '.join(hopeful[:4])} looked better, but that may be chance.{more}{cut}"
    if base.diverged > base.seeds / 2:
        return f"The untreated model diverges, and none of the {len(tested)} that entered cures that.{cut}"
    least = number(metric.relevant)
    return f"No difference: none of {len(tested)} lowers the {metric.name} by {least} or more beyond chance. Leave the model as it is.{cut}"
