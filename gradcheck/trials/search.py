"""The search for strengths: Optuna proposes, paired training evaluates. One study per remedy; a stored study can be continued."""

import contextlib
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gradcheck import files
from gradcheck.errors import ConfigError
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.definition import RemedyDefinition, Strength
from gradcheck.training.trainer import Trainer
from gradcheck.trials.candidates import title, within
from gradcheck.trials.lab import TrialLab
from gradcheck.trials.options import DEFAULT_TRIALS, Options
from gradcheck.trials.plan import Plan
from gradcheck.trials.rounds import Tournament
from gradcheck.trials.standings import Candidate
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.types.trial import SearchPoint

SHARE = 0.5  # of the time that is left
SEEDS = (0, 1)  # that every strength is tried on; the final has others
STARTUP, WARMUP = 3, 3  # trials, and checkpoints of a trial, before anything is pruned: UX, Optuna for trialling remedies


@dataclass(frozen=True)
class Quest:
    """The strengths of one remedy, and where the search for them is kept."""

    candidate: Candidate
    strengths: tuple[Strength, ...]
    study: str  # its name in the storage

    @property
    def treatment(self) -> RemedyDefinition:
        return CATALOGUE[self.candidate.name]

    @property
    def fix(self) -> Fix:
        return self.candidate.fixes[0]

    def at(self, values: dict[str, float]) -> Fix:
        return self.treatment.at(self.fix, **values)


@dataclass(frozen=True)
class Order:
    """The search of one process. `deadline`: of the search; `end`: of the trainings in it."""

    quests: Sequence[Quest]
    options: Options
    place: str | None
    steps: int
    deadline: float
    end: float


def search(tournament: Tournament, options: Options, measurement: Measurement) -> tuple[SearchPoint, ...]:
    """Tries strengths, and leaves in the tournament each remedy at its best one. Returns everything that was tried."""
    quests = [
        Quest(c, within(CATALOGUE[c.name], measurement), f"{tournament.lab.workload.name}: {c.name}")
        for c in tournament.candidates
        if not c.failure and CATALOGUE[c.name].strengths
    ]
    with _quiet(), _place(options, tournament.pool.workers) as place:
        storage = _opened(place)
        tournament.plan = _agreed_plan(storage, quests, tournament, options)
        deadline = time.perf_counter() + SHARE * (tournament.deadline - time.perf_counter())
        order = Order(quests, options, place, tournament.plan.steps, deadline, tournament.deadline)
        try:
            _try_all(tournament, order, storage)
        finally:  # what was found before an interrupt counts, too
            points = tuple(p for quest in quests for p in _points(storage, quest))
            tournament.candidates = [_at_best(c, quests, points) for c in tournament.candidates]
    return points


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines and no warnings about features that may change, in our use of Optuna only."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


@contextlib.contextmanager
def _place(options: Options, workers: int) -> Iterator[str | None]:
    """Where the study is kept: a URL, a file, or None for memory; a temporary file where several processes need one."""
    if options.study is not None or workers == 1:
        yield options.study
        return
    with files.temporary_folder() as folder:
        yield str(Path(folder) / "study.log")


def _opened(place: str | None) -> Any:
    """Optuna's storage. Every process opens its own. Raises ConfigError when it cannot be used."""
    if place is None:
        return optuna.storages.InMemoryStorage()
    try:
        if "://" in place:
            return optuna.storages.RDBStorage(place)
        path = files.place(place)
        _refuse_other_files(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:  # no such folder, no permission, no such driver, or a file that is something else
        why = f"{type(error).__name__}: {error}"
        hint = "give a new file, one that --study wrote, or a URL such as sqlite:///trial.db"
        raise ConfigError(f"the study {place} cannot be used: {why}", hint=hint) from error


def _refuse_other_files(path: Path) -> None:
    """Raises ValueError, or OSError, for a file that is not a journal of Optuna's: it would be appended to."""
    if path.exists() and path.stat().st_size:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
        if not isinstance(first, dict) or "op_code" not in first:
            raise ValueError("it is not a journal of Optuna's")


def _agreed_plan(storage: Any, quests: Sequence[Quest], tournament: Tournament, options: Options) -> Plan:
    """The tournament's, with the steps of the study that is gone on with, since values after other numbers of steps cannot be compared."""
    known = {s.study_name: s.user_attrs.get("steps") for s in optuna.get_all_study_summaries(storage)}
    stored = next((known[q.study] for q in quests if known.get(q.study)), None)
    if stored is None:
        return tournament.plan
    if options.steps is not None and options.steps != stored:
        raise ConfigError(f"the study's runs have {stored} steps, not {options.steps}", hint="leave --steps out, or begin another --study")
    return replace(tournament.plan, steps=int(stored))


def _try_all(tournament: Tournament, order: Order, storage: Any) -> None:
    def tick(what: str = "strengths") -> None:
        span = tournament.deadline - tournament.started
        tournament.tick(f"searching {what}", (time.perf_counter() - tournament.started) / span)

    if tournament.pool.workers == 1:
        _try_here(tournament.lab, order, storage, tick)
        return
    for quest in order.quests:  # two processes must not make the same one
        _study(quest, order.options, storage, order.steps)
    turns = [[*order.quests[i:], *order.quests[:i]] for i in (n % max(1, len(order.quests)) for n in range(tournament.pool.workers))]
    try:
        for _ in tournament.pool.map(_work, [replace(order, quests=quests) for quests in turns], tournament.deadline, look=tick):
            pass
    except KeyboardInterrupt:
        tournament.pool.terminate()
        raise


def _work(lab: TrialLab, order: Order) -> None:
    """In a process of its own, with its own access to the study."""
    _try_here(lab, order, _opened(order.place), lambda what: None)


def _try_here(lab: TrialLab, order: Order, storage: Any, tick: Callable[[str], None]) -> None:
    """Remedy by remedy, each with an equal share of the time that is left."""
    for i, quest in enumerate(order.quests):
        until = time.perf_counter() + (order.deadline - time.perf_counter()) / (len(order.quests) - i)
        study = _study(quest, order.options, storage, order.steps)
        while _open_trials(study, quest, order.options) > 0 and time.perf_counter() < until:
            asked = study.ask()
            tick(quest.candidate.name)
            _answer(lab, order, quest, study, asked)


def _study(quest: Quest, options: Options, storage: Any, steps: int) -> optuna.Study:
    samplers = {
        "random": lambda: optuna.samplers.RandomSampler(seed=0),
        "bayes": lambda: optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=4),
        "grid": lambda: optuna.samplers.RandomSampler(seed=0),  # the points wait in the study's queue
    }
    study = optuna.create_study(
        storage=storage,
        sampler=samplers[str(options.search)](),
        pruner=optuna.pruners.MedianPruner(STARTUP, WARMUP),
        study_name=quest.study,
        load_if_exists=True,
    )
    if "steps" not in study.user_attrs:
        study.set_user_attr("steps", steps)
        for values in _queued(quest, options):
            study.enqueue_trial(values, skip_if_exists=True)
    return study


def _queued(quest: Quest, options: Options) -> list[dict[str, float]]:
    """What is tried first: the proposed strength, or all points of a grid."""
    if options.search == "grid":
        axes = grid(quest.strengths, options.trials or DEFAULT_TRIALS)
        return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    now = {s.setting: float(quest.fix.settings.get(s.setting, s.default)) for s in quest.strengths}
    return [now] if all(s.low <= now[s.setting] <= s.high for s in quest.strengths) else []


def grid(strengths: Sequence[Strength], trials: int) -> dict[str, list[float]]:
    """As many values of each strength as fit into the number of trials, evenly spaced on its scale."""
    each = max(2, int(trials ** (1 / len(strengths)) + 1e-9))
    found = {}
    for s in strengths:
        shares = [i / (each - 1) for i in range(each)]
        found[s.setting] = [s.low * (s.high / s.low) ** x if s.log else s.low + x * (s.high - s.low) for x in shares]
    return found


def _open_trials(study: optuna.Study, quest: Quest, options: Options) -> int:
    wanted = options.trials or DEFAULT_TRIALS
    if options.search == "grid":
        wanted = math.prod(len(values) for values in grid(quest.strengths, wanted).values())
    return wanted - sum(t.state.name in ("COMPLETE", "PRUNED", "RUNNING", "FAIL") for t in study.get_trials(deepcopy=False))


def _answer(lab: TrialLab, order: Order, quest: Quest, study: optuna.Study, asked: optuna.Trial) -> None:
    """Trains with the proposed strength. Pruned if its first seed lags behind; failed if it diverges or cannot be applied."""
    values = {s.setting: asked.suggest_float(s.setting, s.low, s.high, log=s.log) for s in quest.strengths}
    found: list[float] = []

    def watch(course: Trainer) -> bool:
        if found or not course.validated:
            return True
        asked.report(course.validated[-1][1], course.step)
        return not asked.should_prune()

    try:
        for seed in SEEDS:
            result = lab.run(seed, [quest.at(values)], order.steps, order.end, watch)
            if result.cut:
                study.tell(asked, state=TrialState.PRUNED)
                return
            found.append(result.value)
    except KeyboardInterrupt:
        study.tell(asked, state=TrialState.FAIL)
        raise
    except Exception:  # it cannot be applied at this strength, or training it raised: no value
        study.tell(asked, state=TrialState.FAIL)
        return
    value = fmean(found)
    study.tell(asked, value if math.isfinite(value) else None, TrialState.COMPLETE if math.isfinite(value) else TrialState.FAIL)


def _points(storage: Any, quest: Quest) -> list[SearchPoint]:
    try:
        study = optuna.load_study(study_name=quest.study, storage=storage)
    except KeyError:  # time ran out before its first trial
        return []
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    return [
        SearchPoint(quest.candidate.name, dict(t.params), t.value if t.state.name == "COMPLETE" else None, states[t.state.name])  # type: ignore[arg-type]
        for t in study.get_trials(deepcopy=False)
        if t.state.name in states and t.params
    ]


def _at_best(candidate: Candidate, quests: Sequence[Quest], points: Sequence[SearchPoint]) -> Candidate:
    """The remedy at the strength with the lowest value; unchanged if nothing was found."""
    quest = next((q for q in quests if q.candidate is candidate), None)
    known = [p for p in points if p.remedy == candidate.name and p.value is not None]
    if quest is None or not known:
        return candidate
    best = min(known, key=lambda p: p.value if p.value is not None else math.inf)
    fix = quest.at(best.settings)
    return Candidate(candidate.name, title(quest.treatment, fix), (fix,))
