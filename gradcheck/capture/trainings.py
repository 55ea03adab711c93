"""The trainings of a captured script: one for each optimizer that stepped, or that should have, also by hand."""

import math
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradcheck.analysis.convergence import FEWEST_STEPS, outcome
from gradcheck.analysis.gaps import described
from gradcheck.capture.build import workload_of
from gradcheck.capture.clock import WAITED
from gradcheck.capture.events import OptimizerTrace, taken_alike
from gradcheck.capture.facts import loop_facts
from gradcheck.capture.nodes import nodes_behind
from gradcheck.capture.observed import observed, own_run
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.replay import Models
from gradcheck.capture.script import Capture
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.together import call_through, joined, opponents, pulls_along
from gradcheck.capture.twins import ReplayMismatch
from gradcheck.capture.unseen import CORRECT, nothing_seen
from gradcheck.capture.update_rule import UpdateRule, recognised
from gradcheck.errors import TargetError
from gradcheck.instrument.loop_journal import ClipCalls
from gradcheck.rank import is_initialized, launched, rank_and_world_size
from gradcheck.types.gauges import RankFacts
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.report import LATER, Report
from gradcheck.types.training import Run
from gradcheck.workload.comments import places, snippets
from gradcheck.workload.source_sites import failure, location_of_traceback
from gradcheck.workload.workload import Workload

SMALLEST = 1e-12  # norm that is divided by
LONGER = 10 * WAITED  # seconds of a budget under which a script is followed further than without one
SELDOM = 0.1  # of the steps of the busiest training: what changes weights less often prepares or ends one


class NormalizedSGD(torch.optim.Optimizer):
    """Steps of one length, along the gradient."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, *, maximize: bool = False) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p, _ in moved])
        for p, group in moved:
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] * (-1 if group["maximize"] else 1) * p.grad / norm.clamp(min=SMALLEST))


def tell_rules(recorder: Recorder) -> None:
    """Gives each update by hand the equivalent optimizer. Forgets those that turn out not to be training."""
    for watched in list(recorder.optimizers.values()):
        if watched.changes is not None and not watched.changes.happened and len(watched.steps) == 1:
            del recorder.optimizers[id(watched.optimizer)]  # the function that was to change them raised
            recorder.unclaimed += watched.steps[0].passes
    stepped = [w for w in recorder.optimizers.values() if w.steps]
    most = max((len(w.steps) for w in stepped), default=0)
    by_torch = [w for w in stepped if w.changes is None]
    held = frozenset[int]().union(*(w.ids for w in by_torch))
    for watched in [w for w in stepped if w.changes is not None]:
        rule = _rule(watched)
        if watched.ids <= held or len(watched.steps) < SELDOM * most or (by_torch and rule is None):
            del recorder.optimizers[id(watched.optimizer)]
        elif rule is not None:
            _follow(recorder, watched, rule)


def _rule(watched: OptimizerTrace) -> UpdateRule | None:
    assert watched.changes is not None
    changes = watched.changes.by_leaf
    return recognised(list(changes.values()), [torch.finfo(watched.memo[key].dtype).eps for key in changes], watched.changes.norms)


def _follow(recorder: Recorder, watched: OptimizerTrace, rule: UpdateRule) -> None:
    assert watched.changes is not None
    groups: dict[tuple[float, float], list[int]] = {}
    for key, factor, decay in zip(watched.changes.by_leaf, rule.factors, rule.decays, strict=True):
        groups.setdefault((factor, decay), []).append(key)
    climbs = sum(rule.rates) < 0
    rates = [abs(r) for r in rule.rates]
    first = next((r for r in rates if r), 0.0)
    given = [
        {"params": [watched.memo[key] for key in keys], "lr": first * factor, **_decay(rule, decay)}
        for (factor, decay), keys in groups.items()
    ]
    watched.keys = tuple(key for keys in groups.values() for key in keys)
    watched.copy = _class(rule)(given, maximize=climbs, **_settings(rule))
    if rule.clipped is not None:
        clip = ClipCalls("norm", rule.clipped, watched.step_site, {id(watched)}, len(watched.steps), len(watched.parameters))
        recorder.journal.clips["norm", watched.step_site] = clip
    watched.base_rate = first
    watched.site = watched.step_site
    for step, rate in zip(watched.steps, [*rates, *rates[-1:] * len(watched.steps)], strict=False):
        step.rates = tuple(rate * factor for factor, _ in groups)
        step.rate = max(step.rates)


def _class(rule: UpdateRule) -> Any:
    """Adam with decoupled decay is AdamW; so is RMSprop with decoupled decay, but for its first steps."""
    if rule.normalized:
        return NormalizedSGD
    shrinks = any(rule.decays) and rule.kind in ("Adam", "RMSprop")
    return torch.optim.AdamW if shrinks else getattr(torch.optim, rule.kind)


def _settings(rule: UpdateRule) -> dict[str, Any]:
    if rule.kind == "RMSprop" and _class(rule) is torch.optim.AdamW:
        return {"betas": (0.0, rule.settings["alpha"]), "eps": rule.settings["eps"]}
    return dict(rule.settings)


def _decay(rule: UpdateRule, decay: float) -> dict[str, float]:
    """SGD adds decay to the gradient, so momentum amplifies it."""
    if rule.kind == "SGD" and decay:
        decay *= 1 - rule.settings.get("momentum", 0.0)
    return {"weight_decay": max(0.0, decay or rule.coupled)}


REPEATED = NotMeasured("probe", "")
THROWN_AWAY = 32  # passes whose gradients an optimizer cleared and never used, while others took steps: its own were forgotten


@dataclass
class Training:
    """One optimizer's training. Without a workload only what the run showed can be judged."""

    name: str
    recorder: Recorder
    watched: OptimizerTrace | None
    loop: LoopFacts
    files: Sequence[str]
    workload: Workload | None = None
    blind: NotMeasured = REPEATED  # why it could not be repeated, where there is no workload
    several: bool = False  # other optimizers train against it, or beside it
    brief: bool = False  # it is one of many alike, each of a few steps
    lacks: tuple[NotMeasured, ...] = ()  # what else the run did not show
    ranks: RankFacts | None = None  # of the processes that take its steps together

    def seen(self, m: Measurement) -> Measurement:
        """A measurement of the workload, with the loop.

        The loss of one of several trainings need not fall. Of accumulated batches the first one stands for all.
        Raises ReplayMismatch where the measured steps are not those of the script.
        """
        _require_alike(m, self.workload.filled if self.workload is not None else ())
        own = replace(own_run(self.loop), surrogate=m.probe.surrogate)
        if outcome(own, m.chance) == "diverges" and outcome(m.probe, m.chance) != "diverges":
            m = replace(m, probe=own)  # on other data, or later, than the probe
        m = replace(m, probe=replace(m.probe, beside=self.several or self.brief))
        m = self._with_births(m)
        if _learns(self.loop.losses):  # then the script itself showed what a short probe could not
            m = replace(m, not_measured=tuple(n for n in m.not_measured if (n.what, n.lack) != ("probe", "short")))
        if self.workload is not None and isinstance(self.workload.model, Models):  # what lies between two models is the loop's own affair
            m = replace(m, pairs=tuple(x for x in m.pairs if x.first.partition(".")[0] == x.second.partition(".")[0]))
        accumulated = self.loop.accumulated or 1
        if accumulated > 1 and self.workload is not None:
            of_one = {str(i) for i in range((len(self.workload.batches[0]) - 1) // accumulated)}
            m = replace(m, data=replace(m.data, inputs=tuple(x for x in m.data.inputs if x.name in of_one)))
        return with_loop(replace(m, ranks=self.ranks, not_measured=(*m.not_measured, *self.lacks)), self.loop)

    def _with_births(self, m: Measurement) -> Measurement:
        """If no operation of the repeated step made the first non-finite number, the loop made it before the step."""
        if m.probe.ended != "non-finite" or self.watched is None or any(e.direction != "backward" for e in m.non_finite):
            return m
        step = max(0, len(m.probe.losses) - 1)
        refs = [p.ref for s in self.watched.steps for p in s.passes if p.ref is not None]
        nodes = nodes_behind([r.node for r in refs])
        births = self.recorder.tape.births.of_all([x for n in nodes for x in (n, *n.constants())])
        found = tuple(replace(b, step=step) for b in sorted(births, key=lambda b: b.kind != "nan")[:1])
        texts = snippets([b.site for b in found if b.site is not None])
        return replace(m, non_finite=(*m.non_finite, *found), snippets={**texts, **m.snippets})

    def cannot_repeat(self, why: str, detail: str = "") -> None:
        self.workload = None
        self.blind = replace(self.blind, why=f"could not repeat the training step: {why}", detail=detail)

    def observed(self, needs: Collection[str]) -> Measurement:
        """What the run itself showed. `needs`: all that rules may ask for."""
        m = observed(self.recorder, self.watched, self.loop, self.name, self.files, self.blind, needs)
        m = self._with_births(m)
        return with_loop(replace(m, ranks=self.ranks, not_measured=(*m.not_measured, *self.lacks)), self.loop)


def trainings_of(capture: Capture, spec: ScriptSpec) -> list[Training]:
    """Raises TargetError when no backward pass was seen, or when the script trains without an optimizer of torch."""
    recorder = capture.recorder
    tell_rules(recorder)
    failed = recorder.tape.failed is not None and recorder.tape.failed[1] is capture.error
    if not recorder.backwards and not failed and not any(w.steps for w in recorder.optimizers.values()):
        raise nothing_seen(capture, spec)
    chosen = _chosen(recorder)
    found = [_training(capture, spec, w, name) for w, name in zip(chosen, _names(spec, chosen), strict=True)]
    for training in found:
        training.brief = training.loop.steps < FEWEST_STEPS and training.loop.steps < taken_alike(recorder.optimizers.values())
    found[-1].lacks = _not_reached(capture, spec)
    for training in found if len(found) > 1 else ():
        _look_at_opponents(training, found)
    if not recorder.backwards and found[0].workload is None:
        raise nothing_seen(capture, spec)
    if chosen == [None] and found[0].loop.moved != 0:
        explain_failure(capture, spec, 0)
        hint = (
            "gradcheck follows optimizers of torch, and updates of the tensors that backward() or torch.autograd.grad() gives gradients to"
        )
        raise TargetError(f"{spec.target} changes its weights in a way that cannot be followed", hint=hint, location=recorder.backward_site)
    return found


def _not_reached(capture: Capture, spec: ScriptSpec) -> tuple[NotMeasured, ...]:
    """A training that the script was ended before."""
    place = capture.ending.further
    if place is None:
        return ()
    where = f"line {place.line}" if place.path in capture.files else f"line {place.line} of {place.path}"
    budget = 10 * math.ceil(max(2 * (spec.budget or 0), 4 * capture.seconds, LONGER) / 10)
    more = f"--budget {budget} waits longer for it" if spec.steps is None else "leave out --steps"
    why = f"{spec.target} trains further from {where}: that was not reached"
    return (NotMeasured(LATER, why, remedy=f"{more}; or shorten what trains before it"),)


def _look_at_opponents(training: Training, every: Sequence[Training]) -> None:
    """Notes whether a training goes the way of the one that it is to go against."""
    for other in every:
        if training.watched is None or other.watched is None or training.workload is None or other.workload is None:
            continue
        if other.watched in opponents(training.watched, [other.watched]):
            try:
                along = pulls_along(training.workload, other.workload)
            except Exception:  # a step that does not run on a copy says so when it is measured
                continue
            if along:
                site = call_through(training.watched, other.watched)
                training.loop = replace(training.loop, along=other.watched.label or "the other optimizer", along_site=site)


def _chosen(recorder: Recorder) -> list[OptimizerTrace | None]:
    stepped = [w for w in recorder.optimizers.values() if w.steps]
    if stepped:
        moved = frozenset[int]().union(*(w.ids for w in stepped))  # an optimizer inside another one takes the steps for it
        idle = [w for w in recorder.optimizers.values() if not w.steps and len(w.cleared) >= THROWN_AWAY and w.ids - moved]
        return [*joined(_first_of_their_kind(stepped)), *idle[:1]]
    waiting = [w for w in recorder.optimizers.values() if w.live or w.cleared]
    return list(waiting[:1]) or [next(iter(recorder.optimizers.values()), None)]


def _first_of_their_kind(stepped: Sequence[OptimizerTrace]) -> list[OptimizerTrace]:
    """Of trainings one after another that are alike, as those of folds, tasks or members of an ensemble are, the first."""
    kept: list[OptimizerTrace] = []
    last: dict[Any, OptimizerTrace] = {}
    for watched in sorted(stepped, key=lambda w: w.steps[0].number):
        kind = watched.site, type(watched.optimizer), tuple(p.shape for p in watched.parameters)
        before = last.get(kind) if watched.site is not None else None
        last[kind] = watched
        if before is None or before.steps[-1].number > watched.steps[0].number:
            kept.append(watched)
    return [w for w in stepped if w in kept]


def _names(spec: ScriptSpec, chosen: Sequence[OptimizerTrace | None]) -> list[str]:
    """The target; with several optimizers the variable of each, and a number from the second on that is called so."""
    if len(chosen) < 2:
        return [spec.target]
    labels = [w.label or type(w.optimizer).__name__ if w is not None else "" for w in chosen]
    alike = [labels[: i + 1].count(label) for i, label in enumerate(labels)]
    return [f"{spec.target} ({label}{f' {n}' if n > 1 else ''})" for label, n in zip(labels, alike, strict=True)]


def _training(capture: Capture, spec: ScriptSpec, watched: OptimizerTrace | None, name: str) -> Training:
    recorder = capture.recorder
    if watched is not None:
        watched.claim_near()
    loop = loop_facts(recorder, watched, capture.ending)
    training = Training(name, recorder, watched, loop, capture.files, several=name != spec.target)
    command = shlex.join(["python", spec.path, *spec.arguments])
    training.blind = replace(REPEATED, remedy=f"`gradcheck watch -- {command}` judges the training as it runs, and repeats nothing")
    try:
        workload = workload_of(recorder, watched, name, capture.files, capture.error)
        training.workload = replace(workload, own_losses=loop.losses)
    except ReplayMismatch as reason:
        training.cannot_repeat(reason.why, reason.detail)
    except Exception as error:  # models are made in more ways than were thought of
        training.cannot_repeat("the model, its data or its optimizer could not be copied", described(error))
    return training


def _require_alike(m: Measurement, filled: Collection[str]) -> None:
    """That no weight is without a gradient at every measured step which had one in the script. `filled`: those that had."""
    at_work = {x.name for x in m.layers if any(s.step and s.output is not None and s.output.count for s in x.snapshots)}
    for p in m.parameters:
        lost = not p.used or (p.layer in at_work and p.steps and all(s.gradient_norm == 0 for s in p.steps))
        if p.name in filled and p.trainable and lost and len(m.measured_steps) > 1:
            raise ReplayMismatch(f"the gradient of {p.name} is zero in it, not in the script, whose model keeps more than its weights")


def _learns(losses: Sequence[float]) -> bool:
    """Whether the script's own steps brought its loss down."""
    return len(losses) > 1 and outcome(Run("the script", tuple(losses), live=True)) == "learns"


def with_loop(m: Measurement, loop: LoopFacts) -> Measurement:
    """The measurement with the loop, and the source lines around its places."""
    texts = snippets(list(places(loop)))
    merged = {path: {**m.snippets.get(path, {}), **lines} for path, lines in texts.items()}
    return replace(m, loop=loop, snippets={**m.snippets, **merged})


def explain_ending(capture: Capture, spec: ScriptSpec, reports: Sequence[Report]) -> None:
    """Raises the script's own exception as a TargetError, unless a finding at error level tells what is wrong."""
    if not any(r.count("error") for r in reports):
        explain_failure(capture, spec, max(r.measurement.loop.steps for r in reports if r.measurement.loop is not None))


def print_ending(capture: Capture, spec: ScriptSpec) -> None:
    """Of a rank that the others did not meet, since it ended or they did: all that rank 0 sees of it is that it has gone."""
    ending, place = capture.ending, stopped_at(capture)
    ends = {"raised": f"raised {ending.error}", "exit": f"called {ending.error}", "end": "ended", "budget": f"ran out of time{place}"}
    if ending.how in ends and is_initialized():
        steps = f"{capture.recorder.steps} optimizer step{'s' if capture.recorder.steps != 1 else ''}"
        print(f"gradcheck: rank {rank_and_world_size()[0]}: {spec.target} {ends[ending.how]}, after {steps}", file=sys.stderr)


def left_alone(capture: Capture) -> NotMeasured | None:
    """What a report of rank 0 lacks that the other ranks did not meet; None for a process by itself."""
    if rank_and_world_size()[1] < 2:
        return None
    late = f"; time ran out for rank 0{stopped_at(capture)}" if capture.ending.how == "budget" else ""
    return NotMeasured("the other ranks", f"they did not come to be measured with rank 0{late}")


def stopped_at(capture: Capture) -> str:
    place = location_of_traceback(capture.error.__traceback__) if capture.error is not None else None
    return f" in line {place.line}" if place is not None else ""


def explain_failure(capture: Capture, spec: ScriptSpec, steps: int) -> None:
    error = capture.error
    if capture.ending.how == "raised" and error is not None:
        if not capture.recorder.backwards:
            raise nothing_seen(capture, spec) from error
        hint = _advice(error, capture.recorder.updates.computed)
        raise failure(f"{spec.target} failed after {steps} step{'s' if steps != 1 else ''}", error, hint=hint) from error


def _advice(error: BaseException, computed: Location | None) -> str:
    """`computed`: where new weights may have been computed with gradients recorded."""
    if "a leaf Variable that requires grad" in str(error):
        return "update weights under `with torch.no_grad():`"
    if computed is not None and "NoneType" in str(error):
        line = f"line {computed.line} puts the result of a computation in place of a weight"
        return f"{line}: backward() leaves it no .grad. Update the weight in place, under `with torch.no_grad():`"
    return CORRECT if launched()[1] < 2 else "what the other ranks say is above: one that ends takes the connections of all with it"
