"""The story of a trial: a scan says what is faulty, remedies enter, compete in paired training, and the best ones meet on fresh seeds."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcheck.config.settings import Settings, settings_from
from gradcheck.errors import GradcheckError
from gradcheck.loading.load import load
from gradcheck.loading.objects import from_objects
from gradcheck.loading.spec import TargetSpec
from gradcheck.pipeline import Progress, scan_workload
from gradcheck.remedies.writers import plan_edits
from gradcheck.training.early_stopping import NAME as EARLY_STOPPING
from gradcheck.training.metrics import require_scikit_learn
from gradcheck.training.splits import Splitter, dealer
from gradcheck.trials.candidates import entries, treatment_named
from gradcheck.trials.lab import Lab
from gradcheck.trials.options import DEFAULT_BUDGET, Options
from gradcheck.trials.plan import SPARSE, Planner
from gradcheck.trials.ranking import base_entry, entry_of, interactions, ranked, recommendation
from gradcheck.trials.rounds import NEXT_TO, Tournament
from gradcheck.trials.standings import RELEVANT_SHARE, ComparisonMetric, Contestant
from gradcheck.trials.summary import explained, verdict
from gradcheck.trials.worker_pool import WorkerPool
from gradcheck.types.measurement import Assumption
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


def trial(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    val_data: Any = None,
    training_step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    remedies: Sequence[str] = (),
    budget: float = DEFAULT_BUDGET,
    steps: int | None = None,
    seeds: int | None = None,
    search: str | None = None,
    trials: int | None = None,
    study: str | None = None,
    workers: int | None = None,
    folds: int = 0,
    time_ordered: bool = False,
    config: Settings | Mapping[str, Any] | str | Path | None = None,
) -> TrialResult:
    """Trains copies of a model with and without remedies, and says which helps, by how much, and how surely. Changes nothing it is given.

    Model, data, loss and optimizer are those of `gradcheck.scan`. `remedies`: names; else what the scan proposes and what is usual.
    `budget`: seconds. `steps`: of every run, `seeds`: of the final; else what the budget allows. `search`: "grid", "random" or "bayes"
    over the strengths (`trials` of each remedy, stored in `study`). `workers`: processes (as many as
    processors). `folds`: of a cross-validation. `time_ordered`: validate on the last
    samples. Ctrl-C ends the trial early: the result has what was found by then. Raises TargetError and ConfigError as `scan` does.
    """
    names = (remedies,) if isinstance(remedies, str) else tuple(remedies)
    options = Options(names, budget, steps, seeds, search, trials, study, workers, folds, time_ordered)
    settings = settings_from(config)
    with untouched():
        workload = from_objects(
            model, data, loss=loss, optimizer=optimizer, val_data=val_data, training_step=training_step, batches=BATCHES
        )
        result = trial_workload(workload, options, settings).trial
    assert result is not None
    return result


def trial_target(
    spec: TargetSpec, options: Options, settings: Settings, progress: Progress | None = None, started: float | None = None
) -> Report:
    """The same for a target that is named; the report of its scan, with the result in `trial`. `started`: when the budget began."""
    started = time.perf_counter() if started is None else started
    require_scikit_learn()
    with untouched():
        return trial_workload(load(replace(spec, batches=BATCHES)), options, settings, progress, started)


def trial_workload(
    workload: Workload, options: Options, settings: Settings, progress: Progress | None = None, started: float | None = None
) -> Report:
    """Scan, hold the contest, rank. What a KeyboardInterrupt leaves of the contest is ranked, too."""
    require_scikit_learn()
    for name in options.remedies:
        treatment_named(name)  # what is misspelt is said before anything is measured
    started = time.perf_counter() if started is None else started
    deadline = started + options.budget - min(LONGEST_CONCLUDING, CONCLUDING_SHARE * options.budget)
    tick = progress or (lambda phase, fraction: None)
    dealing = dealer(workload, folds=options.folds, time_ordered=options.time_ordered)
    report = _scanned(workload, options, settings, tick)
    tick("preparing", 0.0)
    ward = Lab(workload, dealing)
    task = ward.tell_task()
    found = entries(report, task, options.remedies, variants=options.search is None)
    ended: str = "done"
    points: tuple[SearchPoint, ...] = ()
    with WorkerPool(ward, options.workers) as crew:
        contest = _contest(ward, found, report, options, crew, deadline, tick)
        try:
            points = _searched(contest, options, report)
            contest.hold()
        except KeyboardInterrupt:
            ended = "interrupted"
    if ended == "done" and not contest.complete:
        ended = "budget"
    result = concluded(contest, task, ended, points)
    result = with_edits(result, report, workload)
    samples = _sample_counts(ward)
    said = (*report.measurement.assumptions, *assumptions(dealing, workload, samples))
    result = replace(
        result, target=workload.name, samples=samples, assumptions=said, budget=options.budget, seconds=time.perf_counter() - started
    )
    return replace(report, trial=result)


def _scanned(workload: Workload, options: Options, settings: Settings, tick: Progress) -> Report:
    """A scan on the first batches, with a small part of the budget; one seed is enough to know what to try."""
    seconds = min(LONGEST_SCAN, SCAN_SHARE * options.budget)
    few = replace(workload, batches=list(workload.batches[:SCANNED_BATCHES]), val_batches=list(workload.val_batches[:SCANNED_BATCHES]))
    return scan_workload(few, replace(settings, seeds=1, budget=seconds), lambda phase, fraction: tick(f"scanning: {phase}", 0.0))


def _contest(
    ward: Lab, found: list[Contestant], report: Report, options: Options, crew: WorkerPool, deadline: float, tick: Progress
) -> Tournament:
    """Times a few steps of the untreated model, and plans with what is left of the budget."""
    pace = crew.pace(TIMING_SHARE * (deadline - time.perf_counter()))
    able = [c for c in found if not c.failure]
    others = Counter(c.name for c in able if c.variant)
    variants = sum(min(NEXT_TO, n) for n in others.values())
    planner = Planner(len(able) - others.total(), variants, options.steps, options.seeds)
    left = crew.workers * max(deadline - time.perf_counter(), 0.0) * (0.6 if options.search is not None else 1.0)
    chosen = planner.plan(left, pace.step + pace.validating / SPARSE)
    stick = ComparisonMetric(
        ward.metric,
        _relevant(pace.start, report.measurement.chance),
        SCORES.get(ward.task),
        ward.dealer.overlap,
        ward.dealer.how in ("given", "time-ordered"),
    )
    return Tournament(ward, found, stick, chosen, crew, deadline, tick, planner if options.search is None else None)


def _relevant(start: float, chance: float | None) -> float:
    """2 % of the untrained model's loss, or of the best constant prediction's if that is less."""
    known = [abs(x) for x in (start, chance) if x is not None and math.isfinite(x) and x != 0]
    return RELEVANT_SHARE * min(known, default=1.0)


def _searched(contest: Tournament, options: Options, report: Report) -> tuple[SearchPoint, ...]:
    if options.search is None:
        return ()
    from gradcheck.trials.search import search

    return search(contest, options, report.measurement)


def concluded(contest: Tournament, task: Task, ended: str, points: Sequence[SearchPoint] = ()) -> TrialResult:
    """The result from whatever runs there are."""
    base = base_entry(contest)
    judged = [explained(entry_of(contest, c), base, contest.stick) for c in _one_each(contest)]
    recommended = recommendation(contest, judged)
    order = ranked(judged, recommended)
    return TrialResult(
        "",
        task,
        contest.stick.metric,
        base,
        tuple(order),
        verdict(order, recommended, base, contest.stick, ended),
        contest.stick.relevant,
        interactions=interactions(contest),
        recommended=recommended,
        searched=(*points, *_variants(contest)) if not points else tuple(points),
        steps=contest.plan.steps,
        ended=ended,  # type: ignore[arg-type]
        version=__version__,
    )


def _one_each(contest: Tournament) -> list[Contestant]:
    """For every remedy its finalist, else its best strength, else why there is none; and the combinations."""
    found: dict[str, Contestant] = {}
    for contestant in (*contest.finalists, *contest.best_of_each(contest.contestants), *contest.contestants):
        found.setdefault(contestant.name, contestant)
    return list(found.values())


def _variants(contest: Tournament) -> tuple[SearchPoint, ...]:
    """The strengths that entered, with their value in the first round."""
    points = []
    for c in contest.contestants:
        names = [s for p in c.prescriptions for s in p.settings.items() if isinstance(s[1], float)]
        if names and sum(c.name == d.name for d in contest.contestants) > 1 and 0 in c.results:
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


def _sample_counts(ward: Lab) -> tuple[int, int]:
    from gradcheck.workload.tensors import batch_size

    w = ward.base(0).workload
    return sum(map(batch_size, w.batches)), sum(map(batch_size, w.val_batches))


def assumptions(dealing: Splitter, workload: Workload, samples: tuple[int, int]) -> tuple[Assumption, ...]:
    """What was decided about the data and the weights."""
    texts = {
        "held out": f"no validation data given: for every seed another {samples[1]} of {sum(samples)} samples are held out",
        "batches": f"no validation data given: for every seed other batches with {samples[1]} of {sum(samples)} samples are held out",
        "none": "nothing to validate on: training losses are compared, which says nothing about new data",
    }
    said = [Assumption("validation", texts[dealing.how])] if dealing.how in texts else []
    if workload.rebuild is None:
        said.append(Assumption("model", "all seeds start from the same weights: a seed is an order of batches and a draw of dropout"))
    return tuple(said)
