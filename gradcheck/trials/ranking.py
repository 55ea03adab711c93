"""From the results of a tournament to ranked entries, additive effects, and a recommendation."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from gradcheck.training.paired import CONFIDENCE, paired_interval
from gradcheck.training.result import Result
from gradcheck.training.skill import LOWER_IS_BETTER
from gradcheck.trials.lab import spread
from gradcheck.trials.plan import gets_further
from gradcheck.trials.rounds import Tournament
from gradcheck.trials.standings import Candidate, compare, is_relevant, is_undecided, shared, values
from gradcheck.types.fix import Effect
from gradcheck.types.trial import Curve, Entry, EntryStatus, Interaction, MetricRange

FEWEST = 3  # seeds of the final from which an effect is told
WINDOW = 0.05  # of the steps: a point of the training curve is the mean over so many
ORDER: tuple[EntryStatus, ...] = (
    "helps", "promising", "undecided", "no-difference", "untried", "worse", "diverged", "inapplicable", "failed", "untreated",
)  # fmt: skip


def simultaneous(tournament: Tournament) -> float:
    """Confidence of each interval of the final, so that all hold at once with 95 % (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(1, len(tournament.finalists))


def entry_of(tournament: Tournament, candidate: Candidate) -> Entry:
    """Judged on the fresh seeds of the final if it took part, else on those of the screening."""
    seeds = shared(candidate, tournament.base, tournament.fresh)
    final = len(seeds) >= FEWEST and candidate in tournament.finalists
    seeds = seeds if final else shared(candidate, tournament.base)
    effect = compare(candidate, tournament.base, tournament.metric, seeds, simultaneous(tournament) if final else CONFIDENCE)
    results = [candidate.results[s] for s in seeds]
    status = status_of(tournament, candidate, effect, final)
    return _described(candidate.name, candidate, status, results, effect, final)


def base_entry(tournament: Tournament) -> Entry:
    base = tournament.base
    seeds = [s for s in tournament.fresh if s in base.results] or sorted(base.results)
    return _described("untreated", base, "untreated", [base.results[s] for s in seeds], None, seeds[:1] == tournament.fresh[:1])


def _described(
    name: str, candidate: Candidate, status: EntryStatus, results: Sequence[Result], effect: Effect | None, fresh: bool
) -> Entry:
    spreads = [x for r in results if (x := spread(r.run)) is not None]
    sparsities = [r.sparsity for r in results if r.sparsity is not None]
    return Entry(
        name,
        candidate.title,
        status,
        prescriptions=candidate.fixes,
        effect=effect,
        fresh=fresh,
        seeds=len(results),
        steps=max((len(r.run.losses) for r in results), default=0),
        training=curve([smoothed(r) for r in results]),
        validation=curve([r.run.validated for r in results]),
        scores=_scores(results),
        gradient_spread=median(spreads) if spreads else None,
        step_ms=1e3 * median(r.step_seconds for r in results) if results else None,
        sparsity=median(sparsities) if sparsities else None,
        diverged=sum(r.run.ended == "non-finite" or math.isinf(r.value) for r in results),
        reason=candidate.failure,
    )


def status_of(tournament: Tournament, candidate: Candidate, effect: Effect | None, final: bool) -> EntryStatus:
    if candidate.failure:
        return "inapplicable" if candidate.inapplicable else "failed"
    if effect is None:
        return "untried"
    lost = [candidate.results[s].failed for s in shared(candidate, tournament.base)]
    if sum(lost) > len(lost) / 2:
        return "diverged"
    bad = effect.low > 0 if effect.lower_is_better else effect.high < 0
    if not is_relevant(effect, tournament.metric):
        return "no-difference"
    if final:
        undecided = is_undecided(effect, tournament.metric)
        return "helps" if effect.better else "worse" if bad else "undecided" if undecided else "no-difference"
    down = effect.difference < 0 if effect.lower_is_better else effect.difference > 0
    return "promising" if down else "worse" if bad else "no-difference"


def smoothed(result: Result) -> tuple[tuple[int, float], ...]:
    """Training loss at the steps of the validations, or twenty of them: means over the steps just before."""
    losses = result.run.losses
    window = max(1, round(WINDOW * len(losses)), min(result.run.batches, len(losses) // 4))
    steps = [s for s, _ in result.run.validated if s] or [max(1, round(len(losses) * (i + 1) / 20)) for i in range(20 if losses else 0)]
    return tuple((s, sum(part) / len(part)) for s in dict.fromkeys(steps) if (part := losses[max(0, s - window) : s]))


def curve(runs: Sequence[Sequence[tuple[int, float]]]) -> Curve:
    """Over the seeds whose runs got that far."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, value in run:
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    parts: list[Callable[[list[float]], float]] = [median, min, max]
    middle, low, high = (tuple(part(by_step[s]) for s in steps) for part in parts)
    return Curve(tuple(steps), middle, low, high)


def _scores(results: Sequence[Result]) -> tuple[MetricRange, ...]:
    names = dict.fromkeys(name for r in results for name in r.scores)
    found = {name: [r.scores[name] for r in results if name in r.scores] for name in names}
    return tuple(MetricRange(name, median(xs), min(xs), max(xs), name in LOWER_IS_BETTER) for name, xs in found.items())


def ranked(entries: Sequence[Entry], recommended: str) -> list[Entry]:
    """By status, then by effect; a combination that is not recommended comes after the single remedies that help."""

    def key(entry: Entry) -> tuple[int, bool, bool, float]:
        plus = " + " in entry.name and entry.name != recommended
        return ORDER.index(entry.status), entry.name != recommended, plus, _loss_of(entry)

    return sorted(entries, key=key)


def _loss_of(entry: Entry) -> float:
    """Signed so that less is better; entries without an effect come last."""
    if entry.effect is None or math.isnan(entry.effect.difference):
        return math.inf
    return entry.effect.difference if entry.effect.lower_is_better else -entry.effect.difference


def best_single(helpful: Sequence[Entry], relevant: float) -> Entry | None:
    """Among those whose loss ends within the smallest difference of the lowest, the one whose loss fell soonest."""
    lowest = min(helpful, key=_loss_of, default=None)
    if lowest is None or lowest.effect is None or not lowest.effect.lower_is_better:
        return lowest
    limit = _loss_of(lowest) + relevant
    as_low = [e for e in helpful if e.effect is not None and e.effect.lower_is_better and _loss_of(e) <= limit and e.validation.median]
    return min(as_low, key=lambda e: fmean(e.validation.median), default=lowest)


def recommendation(tournament: Tournament, entries: Sequence[Entry], base: Entry, falling: bool) -> str:
    """The best single remedy that helps; a combination only where it is better than that by more than chance.

    If the untreated model was still `falling`, only what ended at a loss that it would not reach by going on.
    """
    helpful = [e for e in entries if e.status == "helps" and (not falling or gets_further(e, base))]
    single = best_single([e for e in helpful if " + " not in e.name], tournament.metric.relevant)
    pairs = sorted((e for e in helpful if " + " in e.name), key=_loss_of)
    if single is None:
        return pairs[0].name if pairs else ""
    for pair in pairs:
        effect = beside(tournament, pair.name, single.name)
        if effect is not None and effect.better and is_relevant(effect, tournament.metric):
            return pair.name
    return single.name


def beside(tournament: Tournament, name: str, other: str) -> Effect | None:
    """The paired effect of one finalist against another one, on the fresh seeds."""
    found = {c.name: c for c in tournament.finalists}
    if name not in found or other not in found or found[name].judged_by_score != found[other].judged_by_score:
        return None
    seeds = shared(found[name], found[other], tournament.fresh)
    return compare(found[name], found[other], tournament.metric, seeds) if len(seeds) >= FEWEST else None


def interactions(tournament: Tournament) -> tuple[Interaction, ...]:
    """Of the combinations in the final: is their effect the sum of the single ones?"""
    found = {c.name: c for c in tournament.finalists}
    result = []
    for name, pair in found.items():
        team = [found[part] for part in name.split(" + ") if part in found]
        seeds = [s for s in tournament.fresh if all(s in c.results for c in (tournament.base, pair, *team))]
        if len(team) > 1 and len(seeds) >= FEWEST and not any(c.judged_by_score for c in team):
            known = _interaction(tournament, pair, team, seeds)
            result += [known] if known is not None else []
    return tuple(result)


def _interaction(tournament: Tournament, pair: Candidate, team: Sequence[Candidate], seeds: Sequence[int]) -> Interaction | None:
    metric, base = tournament.metric, tournament.base
    single = [[b - a for a, b in zip(*values(c, base, seeds, metric), strict=True)] for c in team]
    both = [b - a for a, b in zip(*values(pair, base, seeds, metric), strict=True)]
    excess = [x - sum(parts) for x, parts in zip(both, zip(*single, strict=True), strict=True)]
    if not all(map(math.isfinite, excess)):
        return None
    interval = paired_interval(excess, overlap=metric.overlap)
    sums = tuple(median(d) for d in single)
    verdict = "reinforce" if interval.high < 0 else "overlap" if interval.low > 0 else "undecided"
    if verdict != "undecided" and abs(interval.mean) < metric.relevant:
        verdict = "add up"
    if verdict == "undecided" and max(abs(interval.low), abs(interval.high)) < max(metric.relevant, 0.5 * abs(sum(sums))):
        verdict = "add up"
    return Interaction(tuple(c.name for c in team), sums, median(both), median(excess), interval.low, interval.high, verdict)  # type: ignore[arg-type]
