"""The story of a trial: a scan says what is faulty, remedies enter, compete in paired training, and the best ones meet on fresh seeds."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from gradcheck.config.settings import Settings
from gradcheck.errors import ConfigError, GradcheckError
from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.pipeline import Progress, scan_workload
from gradcheck.remedies.writers import plan_edits
from gradcheck.training.pool import WorkerPool, usual_workers
from gradcheck.training.result import NAME as EARLY_STOPPING
from gradcheck.training.skill import require_scikit_learn
from gradcheck.training.splits import Splitter, splitter_of
from gradcheck.trials.candidates import entries, treatment_named
from gradcheck.trials.lab import TrialLab, pace
from gradcheck.trials.options import Options
from gradcheck.trials.plan import SPARSE, Planner, still_falling
from gradcheck.trials.ranking import base_entry, entry_of, interactions, ranked, recommendation
from gradcheck.trials.rounds import NEXT_TO, Tournament
from gradcheck.trials.standings import RELEVANT_SHARE, Candidate, ComparisonMetric, explained, verdict
from gradcheck.trials.yardstick import yardstick_of
from gradcheck.types.measurement import Assumption, Measurement
from gradcheck.types.report import Report
from gradcheck.types.trial import SearchPoint, Task, TrialResult
from gradcheck.version import __version__
from gradcheck.workload.process_state import untouched
from gradcheck.workload.workload import Workload

SCAN_SHARE, LONGEST_SCAN = 0.15, 20.0  # of the budget, and seconds
CONCLUDING_SHARE, LONGEST_CONCLUDING = 0.03, 4.0  # the same, for the result, its edits and its page
SCANNED_BATCHES = 32
BATCHES = 512  # collected of a target's data: a trial trains longer than a scan
TIMING_SHARE = 0.05  # of the time that is left, at most, to see how long a step takes
SCORES: dict[Task, str] = {
    "classification": "accuracy",
    "binary": "accuracy",
    "multilabel": "accuracy",
    "language": "accuracy",
    "regression": "R2",
}


def trial_target(
    spec: TargetSpec, options: Options, settings: Settings, progress: Progress | None = None, started: float | None = None
) -> Report:
    """Of a target that is named; the report of its scan, with the result in `trial`. `started`: when the budget began."""
    started = time.perf_counter() if started is None else started
    require_scikit_learn()
    with untouched():
        return trial_workload(load(replace(spec, batches=BATCHES)), options, settings, progress, started)


def trial_workload(
    workload: Workload, options: Options, settings: Settings, progress: Progress | None = None, started: float | None = None
) -> Report:
    """Scan, run the tournament, rank. After a KeyboardInterrupt, what has run is ranked."""
    require_scikit_learn()
    for name in options.remedies:
        treatment_named(name)  # misspelt names are reported before anything is measured
    started = time.perf_counter() if started is None else started
    deadline = started + options.budget - min(LONGEST_CONCLUDING, CONCLUDING_SHARE * options.budget)
    tick = progress or (lambda phase, fraction: None)
    splitter = splitter_of(workload, folds=options.folds, time_ordered=options.time_ordered)
    report = _scanned(workload, options, settings, tick)
    tick("preparing", 0.0)
    lab = TrialLab(workload, splitter)
    task = lab.tell_task()
    found = entries(report, task, options.remedies, variants=options.search is None)
    lab.yardstick = yardstick_of((fix for candidate in found for fix in candidate.fixes), report.measurement)
    ended: str = "done"
    points: tuple[SearchPoint, ...] = ()
    with WorkerPool(lab, options.workers or usual_workers(workload)) as pool:
        tournament = _tournament(lab, found, report, options, pool, deadline, tick)
        try:
            points = _searched(tournament, options, report)
            tournament.run()
        except KeyboardInterrupt:
            ended = "interrupted"
    if ended == "done" and not tournament.complete:
        ended = "budget"
    result = concluded(tournament, task, ended, points)
    result = with_edits(result, report, workload)
    samples = _sample_counts(lab)
    said = (*report.measurement.assumptions, *assumptions(splitter, workload, samples), *_compared_by(lab))
    result = replace(
        result, target=workload.name, samples=samples, assumptions=said, budget=options.budget, seconds=time.perf_counter() - started
    )
    return replace(report, trial=result)


def _scanned(workload: Workload, options: Options, settings: Settings, tick: Progress) -> Report:
    """A scan on the first batches, with a small part of the budget; one seed is enough to know what to try."""
    seconds = min(LONGEST_SCAN, SCAN_SHARE * options.budget)
    few = replace(workload, batches=list(workload.batches[:SCANNED_BATCHES]), val_batches=list(workload.val_batches[:SCANNED_BATCHES]))
    return scan_workload(few, replace(settings, seeds=1, budget=seconds), lambda phase, fraction: tick(f"scanning: {phase}", 0.0))


def _tournament(
    lab: TrialLab, found: list[Candidate], report: Report, options: Options, pool: WorkerPool[TrialLab], deadline: float, tick: Progress
) -> Tournament:
    """Times a few steps of the untreated model, and plans with what is left of the budget."""
    timed = pace(pool, TIMING_SHARE * (deadline - time.perf_counter()))
    able = [c for c in found if not c.failure]
    others = Counter(c.name for c in able if c.variant)
    variants = sum(min(NEXT_TO, n) for n in others.values())
    planner = Planner(len(able) - others.total(), variants, options.steps, options.seeds)
    left = pool.workers * max(deadline - time.perf_counter(), 0.0) * (0.6 if options.search is not None else 1.0)
    chosen = planner.plan(left, timed.step + timed.validating / SPARSE)
    metric = ComparisonMetric(
        lab.metric,
        _relevant(timed.start, report.measurement.chance if lab.yardstick is None else None),
        SCORES.get(lab.task),
        lab.splitter.overlap,
        lab.splitter.how in ("given", "time-ordered"),
    )
    return Tournament(lab, found, metric, chosen, pool, deadline, tick, planner if options.search is None else None)


def _relevant(start: float, chance: float | None) -> float:
    """2 % of the untrained model's loss, or of the best constant prediction's if that is less."""
    known = [abs(x) for x in (start, chance) if x is not None and math.isfinite(x) and x != 0]
    return RELEVANT_SHARE * min(known, default=1.0)


def _searched(tournament: Tournament, options: Options, report: Report) -> tuple[SearchPoint, ...]:
    if options.search is None:
        return ()
    return require_search()(tournament, options, report.measurement)


def require_search() -> Callable[[Tournament, Options, Measurement], tuple[SearchPoint, ...]]:
    """Raises ConfigError when the extra is missing."""
    try:
        from gradcheck.trials.search import search
    except ImportError as error:
        raise ConfigError("a search needs optuna, which is not installed", hint="pip install 'gradcheck[search]'") from error
    return search


def concluded(tournament: Tournament, task: Task, ended: str, points: Sequence[SearchPoint] = ()) -> TrialResult:
    """The result from the runs so far."""
    base = base_entry(tournament)
    falling = still_falling(base, tournament.metric.relevant)
    judged = [explained(entry_of(tournament, c), base, tournament.metric, falling) for c in _one_each(tournament)]
    recommended = recommendation(tournament, judged, base, falling)
    order = ranked(judged, recommended)
    return TrialResult(
        "",
        task,
        tournament.metric.name,
        base,
        tuple(order),
        verdict(order, recommended, base, tournament.metric, ended, falling),
        tournament.metric.relevant,
        interactions=interactions(tournament),
        recommended=recommended,
        searched=(*points, *_variants(tournament)) if not points else tuple(points),
        steps=tournament.plan.steps,
        ended=ended,  # type: ignore[arg-type]
        version=__version__,
        falling=falling,
    )


def _one_each(tournament: Tournament) -> list[Candidate]:
    """For every remedy its finalist, else its best strength, else why there is none; and the combinations."""
    found: dict[str, Candidate] = {}
    for candidate in (*tournament.finalists, *tournament.best_of_each(tournament.candidates), *tournament.candidates):
        found.setdefault(candidate.name, candidate)
    return list(found.values())


def _variants(tournament: Tournament) -> tuple[SearchPoint, ...]:
    """The strengths that entered, with their value in the first round."""
    points = []
    for c in tournament.candidates:
        names = [s for p in c.fixes for s in p.settings.items() if isinstance(s[1], float)]
        if names and sum(c.name == d.name for d in tournament.candidates) > 1 and 0 in c.results:
            points.append(SearchPoint(c.name, {k: float(v) for k, v in names}, c.results[0].value, "complete"))
    return tuple(points)


def with_edits(result: TrialResult, report: Report, workload: Workload) -> TrialResult:
    """The result with the source edits of what it recommends, as `fix` would write them."""
    if not result.recommended:
        return result
    wanted = [p for p in result.prescriptions if p.treatment != EARLY_STOPPING]
    missing = [(EARLY_STOPPING, "it belongs into the training loop")] if len(wanted) < len(result.prescriptions) else []
    try:
        plan = plan_edits(wanted, report.measurement, list(workload.files))
    except GradcheckError as error:
        return replace(result, unwritten=(*missing, *((p.treatment, error.message) for p in wanted)))
    return replace(result, diff=plan.diff, unwritten=(*missing, *((p.treatment, why) for p, why in plan.unwritten)))


def _compared_by(lab: TrialLab) -> tuple[Assumption, ...]:
    if lab.yardstick is None or lab.splitter.how == "none":
        return ()
    return (Assumption("comparison", f"runs are compared by {lab.yardstick.said}"),)


def _sample_counts(lab: TrialLab) -> tuple[int, int]:
    from gradcheck.workload.tensors import batch_size

    w = lab.base(0).workload
    return sum(map(batch_size, w.batches)), sum(map(batch_size, w.val_batches))


def assumptions(splitter: Splitter, workload: Workload, samples: tuple[int, int]) -> tuple[Assumption, ...]:
    """The assumptions about data and weights."""
    texts = {
        "held out": f"no validation data given: for every seed another {samples[1]} of {sum(samples)} samples are held out",
        "batches": f"no validation data given: for every seed other batches with {samples[1]} of {sum(samples)} samples are held out",
        "none": "nothing to validate on: training losses are compared, which says nothing about new data",
    }
    said = [Assumption("validation", texts[splitter.how])] if splitter.how in texts else []
    if workload.rebuild is None:
        said.append(Assumption("model", "all seeds start from the same weights: a seed is an order of batches and a draw of dropout"))
    return tuple(said)
