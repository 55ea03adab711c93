"""The rounds of a trial: every entry on few seeds, the better half on more, the best on fresh seeds that were not used for choosing."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from gradcheck.training.paired import survivors
from gradcheck.training.pool import WorkerPool
from gradcheck.training.result import stops_early
from gradcheck.trials.candidates import scheduled
from gradcheck.trials.lab import Job, TrialLab, answers
from gradcheck.trials.plan import COSTLIER, FEWEST_SEEDS, Plan, Planner
from gradcheck.trials.standings import Candidate, ComparisonMetric, gain, shared
from gradcheck.types.fix import STAGES

SCREENING_SHARE = 0.55  # of the time: the rest is for the final
FRESH = 1000  # seeds of the final begin at a multiple of the folds that is no less than this
RESERVE = 0.9  # of the time that is left, for the final: runs take longer when the machine has other work
ENOUGH_SEEDS = 6  # of the final, rather than more finalists: a t interval of three seeds is useless
NEXT_TO = 3  # other strengths of a remedy that are tried: those nearest to its best one
SMALL_FINAL = 3 * ENOUGH_SEEDS  # runs: the untreated model and two remedies
PROMISING = 0.5  # gain, in smallest differences that count, with which an entry enters the final
MUCH_LONGER = 1.5  # runs than planned, for which it is worth starting over
TOGETHER = 3  # remedies at most in a combination

# Remedies that take each other's place: one of a group at most is in a combination.
RIVALS = (
    ("l1", "l2", "elastic-net", "decoupled-weight-decay", "less-regularization", "weaker-weight-decay"),
    ("he-init", "lecun-init", "xavier-init", "orthogonal-init", "lsuv-init", "residual-scaling"),
    ("clip-gradient-norm", "clip-gradient-value", "adaptive-gradient-clipping"),
    ("lower-learning-rate", "raise-learning-rate", "adaptive-optimizer"),
    ("insert-normalization", "batch-normalization", "layer-normalization", "group-normalization", "batch-free-normalization"),
    ("dropout", "lower-dropout", "less-regularization"),
    ("cosine-schedule", "step-schedule"),
)

Tick = Callable[[str, float], None]


@dataclass
class Tournament:
    """`deadline`: of time.perf_counter(), for everything. Results are kept when a round is ended early, by time or by the user."""

    lab: TrialLab
    candidates: list[Candidate]
    metric: ComparisonMetric
    plan: Plan
    pool: WorkerPool[TrialLab]
    deadline: float
    tick: Tick = lambda phase, fraction: None
    planner: Planner | None = None  # where the plan may still be changed
    base: Candidate = field(default_factory=lambda: Candidate("untreated", "untreated"))
    finalists: list[Candidate] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    seeds: int = 0  # of the final; known when it begins
    run_seconds: float = 0.0  # from one finished run to the next, on the average

    @property
    def fresh(self) -> list[int]:
        """Seeds of the final."""
        folds = max(1, self.lab.splitter.folds)
        first = -(-FRESH // folds) * folds
        return list(range(first, first + (self.seeds or self.plan.seeds)))

    def run(self) -> None:
        """All rounds, as far as time allows."""
        self.first_round()
        if self.replanned():
            self.first_round()
        better = self.best_of_each(self.candidates)
        half = survivors(better, len(better), 1 / 2, self.plan.finalists)
        screening = self.half_time()
        if self.plan.variants:
            self.round("other strengths", self.near(half), list(range(self.plan.first)), screening)
        names = {c.name for c in half}
        better = [c for c in self.best_of_each(self.candidates) if c.name in names]
        self.round("second round", better, list(range(self.plan.first, self.plan.first + self.plan.second)), screening)
        self.finalists = self.chosen(better)
        gains = [gain(c, self.base, self.metric) for c in self.finalists]
        self.finalists += combinations(self.finalists, gains)[: self.plan.together]
        while len(self.finalists) > 1 and self.affordable() < min(ENOUGH_SEEDS, self.plan.seeds):
            self.finalists.pop()  # combinations come last, and before them the remedies that looked worst
        self.seeds = self.affordable()
        self.round("final", self.finalists, self.fresh, self.deadline)

    def first_round(self) -> None:
        self.candidates = [scheduled(c, self.plan.steps) for c in self.candidates]
        self.round("first round", by_turns([c for c in self.candidates if not c.variant]), list(range(self.plan.first)), self.half_time())

    def replanned(self) -> bool:
        """Whether runs were so much faster than planned that the trial should start over with longer ones (the machine was busy before)."""
        if self.planner is None or not self.run_seconds:
            return False
        left = self.deadline - time.perf_counter()
        plan = self.planner.plan(left, self.run_seconds / self.plan.steps / COSTLIER)
        if plan.steps < MUCH_LONGER * self.plan.steps:
            return False
        self.plan = plan
        for candidate in (self.base, *self.candidates):
            candidate.results.clear()
        return True

    def half_time(self) -> float:
        """When the screening ends: at its share of the time, earlier where runs take longer than planned, to leave time for the final."""
        now = time.perf_counter()
        left = max(0.0, self.deadline - now)
        return now + min(SCREENING_SHARE * left, max(0.0, left - SMALL_FINAL * self.run_seconds / RESERVE))

    def near(self, best: Sequence[Candidate]) -> list[Candidate]:
        """The strengths next to the best ones so far."""
        found: list[Candidate] = []
        for one in best:
            others = [c for c in self.candidates if c.variant and c.name == one.name]
            found += sorted(others, key=lambda c: apart(c, one))[:NEXT_TO]
        return found

    def affordable(self) -> int:
        """Seeds of the final that there is time for, by what runs took so far; three at least, with folds a multiple of them."""
        folds, runs = self.lab.splitter.folds, 1 + sum(not stops_early(c.fixes, only=True) for c in self.finalists)
        left = RESERVE * (self.deadline - time.perf_counter())
        seeds = min(self.plan.seeds, int(left / max(self.run_seconds * runs, 1e-9)))
        if folds:
            return max(folds, FEWEST_SEEDS, seeds // folds * folds)
        return max(FEWEST_SEEDS, seeds)

    @property
    def complete(self) -> bool:
        """Whether all finalists have run on all their seeds."""
        known = (c for c in (self.base, *self.finalists) if not c.failure)
        return bool(self.seeds) and all(s in c.results for c in known for s in self.fresh)

    def round(self, name: str, candidates: Sequence[Candidate], seeds: Sequence[int], deadline: float) -> None:
        """Seed by seed, so that the runs that exist when time runs out can be compared."""
        everyone = [(s, c) for s in seeds for c in (self.base, *candidates) if not c.failure and s not in c.results]
        same = [(s, c) for s, c in everyone if c.fixes and stops_early(c.fixes, only=True)]
        trained = [pair for pair in everyone if pair not in same]
        started, done = time.perf_counter(), 0
        for i, answer in answers(self.pool, [Job(s, c.fixes, self.plan.steps, deadline) for s, c in trained]):
            seed, candidate = trained[i]
            done += candidate.note(seed, answer)
            self.run_seconds = (time.perf_counter() - started) / max(1, done)
            self.tick(f"{name}, {candidate.title}", (time.perf_counter() - self.started) / (self.deadline - self.started))
        for seed, candidate in same:  # the untreated training, ended early
            if seed in self.base.results:
                candidate.results[seed] = self.lab.stopped(self.base.results[seed], seed)

    def best_of_each(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The best strength of each remedy, best remedy first; those without a result are left out."""
        known = [c for c in candidates if not c.failure and shared(c, self.base)]
        ranked = sorted(known, key=lambda c: gain(c, self.base, self.metric), reverse=True)
        return [c for i, c in enumerate(ranked) if c.name not in {d.name for d in ranked[:i]}]

    def chosen(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The finalists: entries that look better so far, and in any case the best one, so that "no difference" is a measured result."""
        ranked = [c for c in self.best_of_each(candidates) if not c.failure]
        promising = [c for c in ranked if gain(c, self.base, self.metric) >= PROMISING]
        return (promising or ranked[:1])[: self.plan.finalists]


def combinations(finalists: Sequence[Candidate], gains: Sequence[float]) -> list[Candidate]:
    """The best two, and the best three, that do not take each other's place."""
    team: list[Candidate] = []
    for candidate, value in sorted(zip(finalists, gains, strict=True), key=lambda pair: -pair[1]):
        if value >= 1 and not any(rivals(candidate.name, other.name) for other in team):
            team.append(candidate)
    return [together(team[:n]) for n in range(2, min(len(team), TOGETHER) + 1)]


def by_turns(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Every remedy once before any at another strength: when time is short, fewer strengths rather than fewer remedies."""
    turns: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        turns.setdefault(candidate.name, []).append(candidate)
    return [c for turn in zip_longest(*turns.values()) for c in turn if c is not None]


def apart(one: Candidate, other: Candidate) -> float:
    """How many times stronger or weaker, as a logarithm; 0 for remedies whose strengths are not on one scale."""
    values = [c.fixes[0].settings.get("strength") for c in (one, other) if c.fixes]
    known = [math.log(v) for v in values if isinstance(v, float) and v > 0]
    return abs(known[0] - known[1]) if len(known) == 2 else 0.0


def rivals(one: str, other: str) -> bool:
    return any(one in group and other in group for group in RIVALS)


def together(team: Sequence[Candidate]) -> Candidate:
    """In the order of the stages: wiring before tuning."""
    fixes = sorted((p for c in team for p in c.fixes), key=lambda p: STAGES.index(p.stage))
    return Candidate(" + ".join(c.name for c in team), " + ".join(c.title for c in team), tuple(fixes))
