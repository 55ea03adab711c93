"""Runs of a script, as it is and edited: what is found in each, and the losses that the script itself computed, over the same steps."""

import itertools
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, get_args

from gradcheck.analysis.convergence import Outcome, outcome, start_and_end
from gradcheck.analysis.wording import number
from gradcheck.capture.script import Capture, captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import Training, trainings_of
from gradcheck.config.settings import Settings
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.pipeline import SCRIPT_BUDGET, Progress, scan_training
from gradcheck.repair.rescan import severities
from gradcheck.training.paired import paired_interval
from gradcheck.types.finding import Severity
from gradcheck.types.location import Location
from gradcheck.types.report import Report
from gradcheck.types.rule import Need
from gradcheck.types.training import Run
from gradcheck.workload.comments import places
from gradcheck.workload.device import wide

FEWEST = 12  # losses of both; fewer allow no verdict
LAST_SHARE = 0.25  # share of the losses that is compared,
BLOCKS = 5  # in so many groups, whose means count as independent
CLEAR = 0.05  # of how far the better of the two fell: a difference counts if it is larger, and exceeds the noise

Kind = Literal["better", "same", "worse", "unknown"]
Losses = tuple[float, ...]


@dataclass(frozen=True)
class Standing:
    """How the edited script trains compared with the original, or by itself where its loss measures something else."""

    kind: Kind
    numbers: str  # in words for the user
    alone: bool = False  # nothing was compared: the loss measures something else than before
    share: float = 1.0  # of how far the loss of the script as it is fell: how far that of the edited one did
    learns: bool = False  # the loss of the edited script falls

    def text(self, *, hoped: bool = False) -> str:
        """The verdict on the edited script. `hoped`: it was expected to train better."""
        if self.kind == "same" and not self.alone:
            return f"it trains no {'better' if hoped else 'worse'}: {self.numbers}"
        return f"{(_ALONE if self.alone else _BESIDE)[self.kind]}: {self.numbers}"


_KINDS: dict[Outcome, Kind] = {"learns": "better", "stalls": "same", "diverges": "worse", "unknown": "unknown"}
_BESIDE: dict[Kind, str] = {"better": "it trains better", "worse": "it trains worse", "unknown": "nothing is known about its training"}
_ALONE: dict[Kind, str] = {**_BESIDE, "better": "it learns", "same": "it learns nothing"}


def compare(before: Losses, after: Losses, *, ended: bool = False) -> Standing:
    """Compares two series of the same loss. `ended`: the original script failed after its last loss."""
    steps = min(len(before), len(after))
    if not _finite(after[: max(steps, FEWEST)]):
        kind: Kind = "worse" if _finite(before) else "same"
        return Standing(kind, f"its loss is {number(after[_first_bad(after)])} at step {_first_bad(after)}")
    if ended and len(after) > len(before) + 1:
        return Standing("better", f"it takes {len(after)} steps where the script as it is fails after {len(before)}")
    if not _finite(before):
        bad = _first_bad(before)
        if len(after) <= bad:
            return Standing("unknown", f"only {len(after)} steps were seen of it")
        return Standing("better", f"its loss stays finite, where that of the script as it is becomes {number(before[bad])} at step {bad}")
    if steps < FEWEST:
        return Standing("unknown", f"only {steps} losses were seen of it")
    before, after = before[:steps], after[:steps]
    last = max(FEWEST // 2, round(LAST_SHARE * steps))
    a, b = before[-last:], after[-last:]
    start = fmean(before[: max(1, steps // 20)])
    scale = max(abs(start - fmean(a)), abs(start - fmean(b)))
    gap = paired_interval([y - x for x, y in zip(_blocks(a), _blocks(b), strict=True)])
    text = f"its own loss is {number(fmean(b))} instead of {number(fmean(a))} over the last {last} of {steps} steps"
    same = abs(gap.mean) <= CLEAR * scale or gap.low <= 0 <= gap.high
    share = (start - fmean(b)) / (start - fmean(a)) if start > fmean(a) else 1.0
    kind = "same" if same else "better" if gap.mean < 0 else "worse"
    return Standing(kind, text, share=share, learns=_outcome(after) == "learns")


def alone(after: Losses) -> Standing:
    """Whether a loss that measures something other than the original script's falls."""
    if not _finite(after):
        return Standing("worse", f"its loss is {number(after[_first_bad(after)])} at step {_first_bad(after)}", alone=True)
    start, end, _ = start_and_end(_as_run(after))
    text = f"its loss, which measures something else now, goes from {number(start)} to {number(end)} in {len(after)} steps"
    return Standing(_KINDS[_outcome(after)], text, alone=True)


def _as_run(losses: Losses) -> Run:
    return Run("the edited script", losses, batches=max(1, len(losses) // 20))


def _outcome(losses: Losses) -> Outcome:
    return outcome(_as_run(losses))


def _blocks(losses: Losses) -> list[float]:
    edges = [round(i * len(losses) / BLOCKS) for i in range(BLOCKS + 1)]
    return [fmean(losses[a:b]) for a, b in itertools.pairwise(edges)]


def _finite(losses: Losses) -> bool:
    return all(map(math.isfinite, losses))


def _first_bad(losses: Losses) -> int:
    return next(i for i, x in enumerate(losses) if not math.isfinite(x))


Judge = Callable[[Sequence[Training]], list[Report]]


@dataclass(frozen=True)
class ScriptRun:
    """A run that is over. Losses are told apart by the places of their `backward()`, in the order in which these come first."""

    reports: list[Report]  # one a training
    files: tuple[str, ...]
    losses: tuple[Losses, ...]
    places: dict[str, int]  # by name of the training: which of the losses are its own
    error: str = ""  # the exception that ended the run
    ended: bool = False  # by itself
    unrepeatable: tuple[str, ...] = ()  # trainings of which only the loop could be judged
    several: bool = False  # the trainings are adversaries: their losses need not all fall

    @property
    def severities(self) -> dict[str, Severity]:
        """The worst of each code, over the trainings."""
        return severities(replace(self.reports[0], findings=tuple(f for r in self.reports for f in r.findings)))

    def report_of(self, target: str) -> Report:
        return next((r for r in self.reports if r.target == target), self.reports[0])

    @property
    def steps(self) -> int:
        return max((r.measurement.loop.steps for r in self.reports if r.measurement.loop is not None), default=0)


def noted(run: Capture, trainings: Sequence[Training], reports: list[Report]) -> ScriptRun:
    """The record of a run, when its trainings have been judged."""
    sites = list(dict.fromkeys(place for place, _ in run.recorder.losses))
    homes = {t.name: sites.index(t.loop.backward_site) if t.loop.backward_site in sites else 0 for t in trainings}
    weights = {homes[t.name]: t.loop.weight / (t.loop.accumulated or 1) for t in trainings if t.loop.weight}
    return ScriptRun(
        reports,
        _files(run, trainings),
        tuple(_losses(run, site, weights.get(i, 1.0)) for i, site in enumerate(sites)),
        homes,
        run.ending.error if run.ending.how == "raised" else "",
        run.ending.how in ("end", "exit", "raised"),
        tuple(t.name for t in trainings if t.workload is None),
        sum(a != b for a, b in itertools.pairwise(place for place, _ in run.recorder.losses)) > 2 * len(sites),
    )


def _losses(run: Capture, site: Location | None, weight: float) -> Losses:
    """`weight`: what the script multiplies the loss of each accumulated batch by."""
    return tuple(float(wide(value).sum()) / weight for place, value in run.recorder.losses if place == site)


def _files(run: Capture, trainings: Sequence[Training]) -> tuple[str, ...]:
    """The user's files, with those beside the script that only hold a part of the loop."""
    home = os.path.dirname(os.path.abspath(run.files[0])) + os.sep
    own = (p.path for t in trainings for p in places(t.loop) if p.detail is None and os.path.abspath(p.path).startswith(home))
    return tuple(dict.fromkeys([*run.files, *own]))


# ---------------------------------------------------------------------------------------- judging


def share(settings: Settings, trainings: Sequence[Training]) -> Settings:
    """The time for measuring, for each of the trainings."""
    return replace(settings, budget=(settings.budget or SCRIPT_BUDGET) / len(trainings))


def scanned(trainings: Sequence[Training], settings: Settings, progress: Progress | None = None) -> list[Report]:
    """What `gradcheck scan` says of each."""
    return [scan_training(t, share(settings, trainings), progress) for t in trainings]


LOOP_ALONE = ("loop",)  # what the rules about the loop alone need


def loops_judged(trainings: Sequence[Training], settings: Settings, whole: Collection[str] | None) -> list[Report]:
    """What the rules about the loop alone say. `whole`: trainings that are judged by all rules; None: all."""
    rules = [r for r in chosen(settings) if r.needs == LOOP_ALONE]
    quick = replace(share(settings, trainings), fast=True, profile=False, seeds=1)
    reports = []
    for training in trainings:
        if training.workload is None or whole is None or training.name in whole:
            reports.append(scan_training(training, quick))
            continue
        measurement = training.observed(get_args(Need))
        findings, suppressed, states = judge([measurement], rules, settings)
        reports.append(Report(training.name, findings, states, (measurement,), suppressed))
    return reports


def run_script(spec: ScriptSpec, judged: Judge) -> ScriptRun:
    """Runs a script and judges its trainings. Raises TargetError when it trains nothing."""
    with captured(spec) as run:
        trainings = trainings_of(run, spec)
        return noted(run, trainings, judged(trainings))


# ------------------------------------------------------------------------------------- comparing


def standing(before: ScriptRun, after: ScriptRun, target: str, *, same_loss: bool) -> Standing:
    """Compares a training of the edited script with the original's. `same_loss`: both losses measure the same."""
    place = after.places.get(target, 0)
    if place >= len(after.losses) or len(after.losses) != len(before.losses):
        return Standing("unknown", "its losses cannot be told apart from others")
    if after.error and after.error != before.error:
        return Standing("worse", f"it fails: {after.error}")
    if not same_loss:
        return alone(after.losses[place])
    return compare(before.losses[place], after.losses[place], ended=bool(before.error))
