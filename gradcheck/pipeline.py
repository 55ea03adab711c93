"""The story of a scan: a target becomes a workload, is measured, judged, and reported."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import get_args

from torch import nn

from gradcheck.analysis.gaps import described
from gradcheck.capture.ranks import rank_facts
from gradcheck.capture.script import Capture, captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import Training, explain_ending, left_alone, print_ending, trainings_of
from gradcheck.capture.twins import ReplayMismatch
from gradcheck.capture.unseen import nothing_seen
from gradcheck.config.settings import Settings
from gradcheck.errors import GradcheckError, TargetError
from gradcheck.instrument.handwritten_loss import POLICY_GRADIENTS
from gradcheck.judge.gate_rules import asserted
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen, needs
from gradcheck.loading.load import load, outline
from gradcheck.loading.over_ranks import over_ranks
from gradcheck.loading.spec import TargetSpec
from gradcheck.measure.faithful import ensure_faithful
from gradcheck.measure.fitting import fitted, require_memory
from gradcheck.measure.initialization import initialization
from gradcheck.measure.session import MeasurePlan, measure
from gradcheck.rank import is_rank_zero, rank_and_world_size
from gradcheck.remedies.costs import with_costs
from gradcheck.types.measurement import Assumption, Measurement, NotMeasured
from gradcheck.types.report import Report
from gradcheck.types.rule import Need
from gradcheck.version import __version__
from gradcheck.workload.lockstep import agreed, everyone, in_step, ranks_of_script
from gradcheck.workload.process_state import fewer_collections, untouched
from gradcheck.workload.ranks import RankGroup
from gradcheck.workload.sharding import is_sharded, kept_sharded
from gradcheck.workload.training_copy import fork
from gradcheck.workload.workload import Workload

# Seconds a seed: a scan is something that one waits for.
SCRIPT_PHASE = "the script's own steps"  # its key in `Measurement.seconds`
SCRIPT_BUDGET = 9.0  # seconds for what is measured after the steps of a script, over all its trainings
LARGE_SCRIPT_BUDGET, LARGE = 30.0, 50_000_000  # the same for models with more parameters: nine seconds are two of their steps
MANY = 5_000  # modules: making these took 3 s, and 22 s of 60 those of a model of 50,000
LOADING_SHARE = 0.05  # of a large model's budget, that loading may take beside it: 354 million parameters took 10 s of 60
LEAST_SHARE = 0.1  # of a budget that the user sets, for measuring, however long the script took to begin to train
DEFAULT_BUDGET = 60.0
SMALL_BUDGET = 30.0  # for models with fewer parameters than
SMALL = 1_000_000
SAME_BATCH = "LOOP005"

Progress = Callable[[str, float], None]  # phase, fraction done
Seen = Callable[[Measurement], Measurement]


def scan_target(spec: TargetSpec, settings: Settings, progress: Progress | None = None, started: float | None = None) -> Report:
    """A target that is named: a model file or an import path. `started`: when the seconds of the report begin."""
    started = time.perf_counter() if started is None else started
    tick = progress or _silent
    tick("loading", 0.0)
    with untouched():
        if spec.init_only:
            return replace(_scan_outline(spec, settings), seconds=time.perf_counter() - started)
        began = time.perf_counter()
        workload = load(spec)
        report = scan_workload(workload, settings, _measuring(tick), loading=time.perf_counter() - began)
        return replace(report, seconds=time.perf_counter() - started)


def _scan_outline(spec: TargetSpec, settings: Settings) -> Report:
    """Of a model that no machine need hold: how it is built, and nothing that takes numbers."""
    o, rules = outline(spec), chosen(settings)
    measurement = initialization(
        o.name, o.model, o.optimizer, o.draws, get_args(Need), optimizer_given=o.optimizer_given, said=o.said, files=o.files, seed=spec.seed
    )
    findings, suppressed, states = judge([measurement], rules, settings)
    return asserted(Report(measurement.target, findings, states, (measurement,), suppressed, 0.0, __version__), settings)


def default_budget(model: nn.Module) -> float:
    """Seconds that measuring may take when the user sets no budget."""
    return SMALL_BUDGET if _size(model) < SMALL else DEFAULT_BUDGET


def _counted(loading: float, budget: float, model: nn.Module) -> float:
    """Of the seconds that loading took, those that its budget pays for: the making of a large model."""
    large = _size(model) >= LARGE or sum(1 for _ in model.modules()) >= MANY
    return min(max(0.0, loading - LOADING_SHARE * budget), budget / 2) if large else 0.0


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def scan_script(spec: ScriptSpec, settings: Settings, progress: Progress | None = None, started: float | None = None) -> list[Report]:
    """The same for a training script: it is run until it has taken some steps; a report for each of its optimizers.

    Of several processes of one training rank 0 reports, the others return nothing.
    Raises TargetError when it trains nothing, or fails for a reason that no finding explains.
    """
    tick = progress or _silent
    began = time.perf_counter()
    spec = replace(spec, offload=settings.offload)
    if spec.replay:  # one batch again and again, on purpose
        settings = replace(settings, ignore=(*settings.ignore, SAME_BATCH))
    with untouched(), captured(spec, tick) as run, ranks_of_script(run.trained, failed=run.ending.how == "raised") as ranks:
        if ranks is None and not is_rank_zero():
            print_ending(run, spec)
            return []
        tick("reading what was recorded", 0.0)
        trainings = trainings_of(run, spec)
        spent = time.perf_counter() - began
        seconds = _left(settings, spent, max(map(_size_of, trainings)))
        before = spent if started is None else time.perf_counter() - started
        try:

            def within(training: Training, seconds: float) -> Report | None:
                return _over_ranks(training, replace(settings, budget=seconds), ranks, _measuring(tick), run)

            reports = _in_turn(trainings, seconds, within, alone=ranks is None)
        except TargetError as error:
            raise (nothing_seen(run, spec) if run.error is not None else error) from error
        if not is_rank_zero():
            return []
        found = _rewarded([report for report in reports if report is not None], settings)
        explain_ending(run, spec, found)
        return [_after_script(report, before, spent) for report in found]


def _in_turn(
    trainings: list[Training], seconds: float, scanned: Callable[[Training, float], Report | None], *, alone: bool
) -> list[Report | None]:
    """The report of each, the smallest model's first: what it leaves of its share of the seconds goes to the others, unless the clocks of
    several ranks would have to agree on it."""
    found = dict[int, Report | None]()
    order = sorted(trainings, key=_size_of) if alone else trainings
    for share, training in zip(range(len(order), 0, -1), order, strict=True):
        begun, given = time.perf_counter(), seconds / share
        found[id(training)] = scanned(training, given)
        seconds -= min(time.perf_counter() - begun, given) if alone else given
    return [found[id(t)] for t in trainings]


def _size_of(training: Training) -> int:
    return _size(training.workload.model) if training.workload else 0


def _rewarded(reports: list[Report], settings: Settings) -> list[Report]:
    """Beside a policy gradient, what other trainings of the script regress on is what the policy earned: judged again, knowing that."""
    if not any(m.probe.surrogate in POLICY_GRADIENTS for r in reports for m in r.measurements):
        return reports
    again = []
    for report in reports:
        told = tuple(replace(m, loop=replace(m.loop, rewarded=True)) if m.loop is not None else m for m in report.measurements)
        findings, suppressed, states = judge(list(told), chosen(settings), settings)
        changed = replace(report, findings=findings, suppressed=suppressed, rules=states, measurements=told)
        again.append(asserted(changed, settings))
    return again


def _over_ranks(training: Training, settings: Settings, ranks: RankGroup | None, tick: Progress, run: Capture) -> Report | None:
    """None on ranks that have nothing to measure."""
    if ranks is None:
        alone, lack = scan_training(training, settings, tick), left_alone(run)
        return replace(alone, measurements=tuple(_lacking(m, lack) for m in alone.measurements)) if lack is not None else alone
    with in_step(ranks):
        workload = training.workload
        if all(everyone(workload is not None)) and workload is not None:
            sharded = is_sharded(workload.model)
            with kept_sharded(workload.model) if sharded else nullcontext():
                training.workload, same = over_ranks(workload, lambda whole: fork(whole).loss(whole.batches[0]).item())
                training.ranks = rank_facts(training.watched, workload, same) if training.watched is not None else None
                if sharded:
                    return scan_training(training, settings, tick)
        else:
            said = f"{ranks.count} processes run the script, and not all of them a step that can be repeated: rank 0's is looked at"
            lack = NotMeasured("the other ranks", said, remedy="`gradcheck watch -- torchrun ...` judges all ranks as they run")
            report = scan_training(training, settings, tick) if ranks.leads else None
            return replace(report, measurements=tuple(_lacking(m, lack) for m in report.measurements)) if report is not None else None
    return scan_training(training, settings, tick) if ranks.leads else None


def _after_script(report: Report, before: float, spent: float) -> Report:
    """With the seconds that the script's own steps took, and everything `before` measuring."""
    first, *others = report.measurements
    timed = replace(first, seconds={SCRIPT_PHASE: spent} | first.seconds)
    return replace(report, seconds=before + report.seconds, measurements=(timed, *others))


def _measuring(tick: Progress) -> Progress:
    return lambda phase, fraction: tick(f"measuring: {phase}", fraction)


def _silent(phase: str, fraction: float) -> None:
    """Progress that nobody sees."""


def _left(settings: Settings, spent: float, size: int) -> float:
    """Seconds for measuring, after those that a script took for its own steps; `size`: of the largest model."""
    if settings.budget is None:
        return LARGE_SCRIPT_BUDGET if size >= LARGE else SCRIPT_BUDGET
    return max(settings.budget - spent, LEAST_SHARE * settings.budget)


def scan_training(training: Training, settings: Settings, progress: Progress | None = None) -> Report:
    """Of a training that cannot be repeated, what was seen of it in the script."""
    if training.workload is not None:
        try:
            return scan_workload(training.workload, settings, progress, training.seen)
        except ReplayMismatch as reason:
            training.cannot_repeat(reason.why)
        except TargetError as error:
            if not training.loop.backwards:
                raise
            training.cannot_repeat("it raised an error on a copy of the model", error.message)
        except GradcheckError:
            raise
        except Exception as error:  # a fault of gradcheck's own, which need not keep it from judging what the script showed
            training.cannot_repeat("gradcheck failed at it: please report this, with the detail of the JSON output", described(error))
    started = time.perf_counter()
    rules = chosen(settings)
    measurement = training.observed(get_args(Need))
    findings, suppressed, states = judge([measurement], rules, settings)
    report = Report(measurement.target, findings, states, (measurement,), suppressed, time.perf_counter() - started, __version__)
    return asserted(report, settings)


def scan_over_ranks(
    workload: Workload, settings: Settings, ranks: RankGroup, progress: Progress | None = None, seen: Seen | None = None
) -> Report:
    """The same in each process of a distributed training, which all come to it together: one report, of the batches of all.

    A sharded model all of them measure in step; of one that each has whole rank 0 does, and the others wait. Rank 0's report has the
    findings. Raises on all ranks what is raised on one.
    """
    with in_step(ranks):
        whole, _ = over_ranks(workload)
        if is_sharded(workload.model):
            with kept_sharded(workload.model):
                return _of_rank(scan_workload(whole, settings, progress, seen), ranks)
    if not ranks.leads:
        said = ranks.wait_for_lead()
        if isinstance(said, Exception):
            raise said
        return _of_rank(said, ranks)
    answer: Report | TargetError = TargetError("rank 0 ended before it had measured the model", hint="what it printed says why")
    try:
        answer = scan_workload(whole, settings, progress, seen)
        return answer
    except GradcheckError as error:
        answer = TargetError(f"rank 0: {error.message}", hint=error.hint)
        raise
    finally:
        ranks.leave_for_others(answer)


def by_itself(ranks: RankGroup | None) -> Seen:
    """Adds that one process was measured, of several. `ranks`: those that did not come; None where the model is not spread over them."""
    rank, count = rank_and_world_size()
    why = ranks.why if ranks is not None else "its model is neither sharded nor in DistributedDataParallel"
    lack = NotMeasured("the other ranks", f"rank {rank} of {count} was judged by itself, on its own batches: {why}")
    return lambda m: _lacking(m, lack) if count > 1 else m


def _lacking(m: Measurement, lack: NotMeasured) -> Measurement:
    return replace(m, not_measured=(*m.not_measured, lack))


def _of_rank(report: Report, ranks: RankGroup) -> Report:
    return report if ranks.leads else replace(report, findings=(), suppressed=(), rules=())


def scan_workload(
    workload: Workload,
    settings: Settings,
    progress: Progress | None = None,
    seen: Seen | None = None,
    *,
    costs: bool = True,
    loading: float = 0.0,
) -> Report:
    """Measure, judge, report. `seen` adds to a measurement what was seen of the user's own loop; `costs`: say what findings cost.
    `loading`: seconds that it took."""
    with fewer_collections(workload.model):
        return _scanned(workload, settings, progress, seen, costs, loading)


def _scanned(workload: Workload, settings: Settings, progress: Progress | None, seen: Seen | None, costs: bool, loading: float) -> Report:
    started = time.perf_counter()
    rules = chosen(settings)
    measurements = []
    for seed in range(settings.seeds):
        if seed and workload.rebuild is not None:
            workload = workload.rebuild(seed)
        budget = settings.budget or default_budget(workload.model)
        began, tick = time.perf_counter() - (0.0 if seed else _counted(loading, budget, workload.model)), progress or _silent
        require_memory(workload, copied=not settings.offload)
        ensure_faithful(workload, seed, offload=settings.offload)
        cut = fitted(workload, budget, seed)
        memory = require_memory(cut)
        if settings.profile:
            cut.assumptions = [*cut.assumptions, Assumption("memory", f"a training takes {memory.text}", given=True)]
        plan = MeasurePlan(settings.steps, budget, seed, needs(rules), settings.profile, settings.fast, agreed(time.perf_counter() - began))
        measured = measure(cut, plan, tick)
        measured = seen(measured) if seen is not None else measured
        measurements.append(with_costs(measured, cut, plan, began, rules, settings, tick) if costs else measured)
    findings, suppressed, states = judge(measurements, rules, settings)
    seconds = time.perf_counter() - started
    report = Report(measurements[0].target, findings, states, tuple(measurements), suppressed, seconds, __version__)
    return asserted(report, settings)
