"""The search for strengths: Optuna proposes, paired training answers. One study a remedy, which a stored one can go on from."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from gradcheck.errors import ConfigError
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.definition import RemedyDefinition, Strength
from gradcheck.training.trainer import Trainer
from gradcheck.trials.candidates import title, within
from gradcheck.trials.options import DEFAULT_TRIALS, Options
from gradcheck.trials.plan import Plan
from gradcheck.trials.rounds import Tournament
from gradcheck.trials.standings import Contestant
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.types.trial import SearchPoint

if TYPE_CHECKING:
    import optuna

SHARE = 0.5  # of the time that is left
SEEDS = (0, 1)  # that every strength is tried on; the final has others
STARTUP, WARMUP = 3, 3  # trials, and checkpoints of a trial, before anything is pruned: UX, Optuna for trialling remedies


def require_optuna() -> Any:
    """Raises ConfigError when the extra is missing."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a search needs optuna, which is not installed", hint="pip install 'gradcheck[search]'") from error
    return optuna


@dataclass(frozen=True)
class Quest:
    """The strengths of one remedy, and where the search for them is kept."""

    contestant: Contestant
    treatment: RemedyDefinition
    strengths: tuple[Strength, ...]
    study: str  # its name in the storage

    @property
    def prescription(self) -> Fix:
        return self.contestant.prescriptions[0]

    def at(self, values: dict[str, float]) -> Fix:
        return self.treatment.at(self.prescription, **values)


def search(contest: Tournament, options: Options, measurement: Measurement) -> tuple[SearchPoint, ...]:
    """Tries strengths, and leaves in the contest each remedy at its best one. Returns everything that was tried."""
    optuna = require_optuna()
    quests = [
        Quest(c, CATALOGUE[c.name], within(CATALOGUE[c.name], measurement), f"{contest.ward.workload.name}: {c.name}")
        for c in contest.contestants
        if not c.failure and CATALOGUE[c.name].strengths
    ]
    with _quiet(optuna), _place(options, contest.crew.workers) as place:
        storage = _opened(optuna, place)
        contest.plan = _agreed_plan(optuna, storage, quests, contest, options)
        deadline = time.perf_counter() + SHARE * (contest.deadline - time.perf_counter())
        try:
            _try_all(contest, quests, options, storage, place, deadline)
        finally:  # what was found before an interrupt counts, too
            points = tuple(p for quest in quests for p in _points(optuna, storage, quest))
            contest.contestants = [_at_best(c, quests, points) for c in contest.contestants]
    return points


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
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
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "study.log")


def _opened(optuna: Any, place: str | None) -> Any:
    """Optuna's storage. Every process opens its own. Raises ConfigError when it cannot be used."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if place is None:
        return optuna.storages.InMemoryStorage()
    try:
        if "://" in place:
            return optuna.storages.RDBStorage(place)
        path = Path(place).expanduser()
        _refuse_other_files(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:  # no such folder, no permission, no such driver, or a file that is something else
        why = f"{type(error).__name__}: {error}"
        hint = "give a new file, one that --study wrote, or a URL such as sqlite:///trial.db"
        raise ConfigError(f"the study {place} cannot be used: {why}", hint=hint) from error


def _refuse_other_files(path: Path) -> None:
    """Raises ValueError, or OSError, for a file that is no journal of Optuna's: it would be appended to."""
    if path.exists() and path.stat().st_size:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
        if not isinstance(first, dict) or "op_code" not in first:
            raise ValueError("it is no journal of Optuna's")


def _agreed_plan(optuna: Any, storage: Any, quests: Sequence[Quest], contest: Tournament, options: Options) -> Plan:
    """The contest's, with the steps of the study that is gone on with, since values after other numbers of steps cannot be compared."""
    known = {s.study_name: s.user_attrs.get("steps") for s in optuna.get_all_study_summaries(storage)}
    stored = next((known[q.study] for q in quests if known.get(q.study)), None)
    if stored is None:
        return contest.plan
    if options.steps is not None and options.steps != stored:
        raise ConfigError(f"the study's runs have {stored} steps, not {options.steps}", hint="leave --steps out, or begin another --study")
    return replace(contest.plan, steps=int(stored))


def _try_all(contest: Tournament, quests: Sequence[Quest], options: Options, storage: Any, place: str | None, deadline: float) -> None:
    if contest.crew.workers == 1:
        _try_here(contest, quests, options, storage, deadline)
        return
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError("several workers need a system that can fork processes", hint="leave --workers out; or share a --study URL")
    for quest in quests:  # two processes must not make the same one
        _study(quest, options, storage, contest.plan.steps)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(contest, quests, options, place, deadline, i)) for i in range(contest.crew.workers)]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            contest.tick("searching strengths", (time.perf_counter() - contest.started) / (contest.deadline - contest.started))
            time.sleep(0.1)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            worker.join()


def _work(contest: Tournament, quests: Sequence[Quest], options: Options, place: str | None, deadline: float, number: int) -> None:
    """A worker process: one thread, its own place to begin, silent when the user ends it."""
    torch.set_num_threads(1)
    contest.tick = lambda phase, fraction: None
    turned = [*quests[number % max(1, len(quests)) :], *quests[: number % max(1, len(quests))]]
    try:
        _try_here(contest, turned, options, _opened(require_optuna(), place), deadline)
    except KeyboardInterrupt:
        os._exit(130)


def _try_here(contest: Tournament, quests: Sequence[Quest], options: Options, storage: Any, deadline: float) -> None:
    """Remedy by remedy, each with an equal share of the time that is left."""
    for i, quest in enumerate(quests):
        until = time.perf_counter() + (deadline - time.perf_counter()) / (len(quests) - i)
        study = _study(quest, options, storage, contest.plan.steps)
        while _open_trials(study, quest, options) > 0 and time.perf_counter() < until:
            asked = study.ask()
            contest.tick(
                f"searching {quest.contestant.name}", (time.perf_counter() - contest.started) / (contest.deadline - contest.started)
            )
            _answer(contest, quest, study, asked, until)


def _study(quest: Quest, options: Options, storage: Any, steps: int) -> optuna.Study:
    import optuna

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
    """What is tried first: the prescribed strength, or all points of a grid."""
    if options.search == "grid":
        axes = grid(quest.strengths, options.trials or DEFAULT_TRIALS)
        return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    now = {s.setting: float(quest.prescription.settings.get(s.setting, s.default)) for s in quest.strengths}
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


def _answer(contest: Tournament, quest: Quest, study: optuna.Study, asked: optuna.Trial, until: float) -> None:
    """Trains with the proposed strength. Pruned where its first seed lags behind; failed when it diverges or cannot be applied."""
    from optuna.trial import TrialState

    values = {s.setting: asked.suggest_float(s.setting, s.low, s.high, log=s.log) for s in quest.strengths}
    found: list[float] = []

    def watch(course: Trainer) -> bool:
        if found or not course.validated:
            return True
        asked.report(course.validated[-1][1], course.step)
        return not asked.should_prune()

    try:
        for seed in SEEDS:
            result = contest.ward.run(seed, [quest.at(values)], contest.plan.steps, contest.deadline, watch)
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


def _points(optuna: Any, storage: Any, quest: Quest) -> list[SearchPoint]:
    try:
        study = optuna.load_study(study_name=quest.study, storage=storage)
    except KeyError:  # time was up before its first trial
        return []
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    return [
        SearchPoint(quest.contestant.name, dict(t.params), t.value if t.state.name == "COMPLETE" else None, states[t.state.name])  # type: ignore[arg-type]
        for t in study.get_trials(deepcopy=False)
        if t.state.name in states and t.params
    ]


def _at_best(contestant: Contestant, quests: Sequence[Quest], points: Sequence[SearchPoint]) -> Contestant:
    """The remedy at the strength with the lowest value; as it was where nothing was found."""
    quest = next((q for q in quests if q.contestant is contestant), None)
    known = [p for p in points if p.remedy == contestant.name and p.value is not None]
    if quest is None or not known:
        return contestant
    best = min(known, key=lambda p: p.value if p.value is not None else math.inf)
    prescription = quest.at(best.settings)
    return Contestant(contestant.name, title(quest.treatment, prescription), (prescription,))
