"""Runs of a script, as it is and edited: what is found in each, and the losses that the script itself computed."""

import itertools
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from gradcheck.capture.script import Capture, captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import Training, trainings_of
from gradcheck.config.settings import Settings
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.pipeline import SCRIPT_BUDGET, Progress, scan_training
from gradcheck.repair.own_losses import Losses, Standing, alone, compare
from gradcheck.repair.rescan import severities
from gradcheck.types.finding import Severity
from gradcheck.types.location import Location
from gradcheck.types.report import Report
from gradcheck.types.rule import Need
from gradcheck.workload.comments import places
from gradcheck.workload.device import wide

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
