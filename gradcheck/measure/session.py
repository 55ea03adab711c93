"""Measures one workload with one seed: the first step watched closely, a short training, experiments when it fails."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradcheck.analysis.convergence import creeps, held_up, outcome
from gradcheck.analysis.gaps import described, gaps, more_time, unread_layers
from gradcheck.errors import GradcheckError, TargetError
from gradcheck.instrument import data_flow, handwritten_loss, kinds
from gradcheck.instrument.activation_recorder import ActivationRecorder
from gradcheck.instrument.disconnected import lasting
from gradcheck.instrument.first_pass_recorder import FirstPassRecorder
from gradcheck.instrument.graph_structure import Downstream, Graph, remember
from gradcheck.measure import data, experiments, facts, first_step, non_finite
from gradcheck.measure.checks import registry
from gradcheck.measure.checks.context import LATE, CheckContext, CheckResults
from gradcheck.measure.facts import shown_places
from gradcheck.measure.fitting import COMPARED, cut_to
from gradcheck.measure.layers import Layers
from gradcheck.measure.parameters import StepWatch, Watched, mark_moved, records, watch
from gradcheck.measure.parts import put_together
from gradcheck.measure.probe import FINAL_STEPS, Probe, told_by
from gradcheck.measure.profile import profile
from gradcheck.training.trainer import Trainer, lr_of, take_step
from gradcheck.types.layers import Profile
from gradcheck.types.location import Location
from gradcheck.types.losses import Ascent
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.training import NonFinite, Run
from gradcheck.workload.comments import ignores, snippets
from gradcheck.workload.lockstep import agreed, now, several
from gradcheck.workload.process_state import untouched
from gradcheck.workload.sharding import shows_parts
from gradcheck.workload.source_sites import location_of_traceback
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import TrainingCopy, fork
from gradcheck.workload.workload import Workload

Tick = Callable[[str, float], None]  # phase, fraction done

PROBE_SHARE = 0.6  # of the time budget; the rest is for experiments and checks
LEAST_STEPS = 20  # that the probe takes in this time even if the checks then run short: without it, most rules have nothing to look at
EXPERIMENTS_END = 0.9  # of the time budget
FINAL_END, SPARE = 0.8, 0.1  # of the time budget: the end of the last measured steps, and what they may take in any case
CHECK_SHARE = 0.1  # of the time budget, for the checks when the experiments have used up theirs
PARTS = "under tensor parallelism each rank has a part of a layer's output: only that of rank 0 was looked at"
FEW_STEPS = 11  # enough for the measured steps 0, 1, 3 and 10, when no rule asks for the probe itself


@dataclass(frozen=True)
class MeasurePlan:
    """What to measure, and how long it may take."""

    steps: int = 100
    seconds: float = 60.0
    seed: int = 0
    needs: Collection[str] | None = None  # quantities that the selected rules ask for; None: all
    profile: bool = False
    fast: bool = False  # the first steps only: no probe, no experiments, no checks beside it
    spent: float = 0.0  # of these seconds, before

    @property
    def probes(self) -> bool:
        if self.fast:
            return False
        return self.needs is None or not {"probe", "normalization"}.isdisjoint(self.needs)

    @property
    def probe_steps(self) -> int:
        if self.probes:
            return self.steps
        return min(self.steps, FEW_STEPS if {"signals", "parameters", "units", "similarity", "reach"} & set(self.needs or ()) else 1)


def measure(workload: Workload, plan: MeasurePlan, tick: Tick = lambda phase, fraction: None) -> Measurement:
    """Measures a workload; nothing of the user's is changed, random state and global flags included.

    Raises TargetError when the workload cannot be copied or its training step does not run.
    """
    with on_copies(workload):
        return Session(workload, plan, tick).run()


@contextmanager
def on_copies(workload: Workload) -> Iterator[None]:
    """The context in which copies are trained: gradients on, compiled modules run eagerly, and the process left as it was."""
    with ExitStack() as stack:
        stack.enter_context(untouched())
        stack.enter_context(torch.enable_grad())
        if any(type(m).__name__ == "OptimizedModule" for m in workload.model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if workload.borrowed is not None:
            stack.callback(workload.borrowed.give_back)
        yield


class Session:
    """One workload being measured with one seed. `run` is the whole of it; `observe` takes a single measured step."""

    def __init__(self, workload: Workload, plan: MeasurePlan, tick: Tick) -> None:
        self.workload, self.plan, self.tick = workload, plan, tick
        self.started = now() - plan.spent
        self.copy: TrainingCopy = fork(workload, seed=plan.seed)
        self.pretrained = facts.pretrained(self.copy.model, self.copy.optimizer)  # before any step
        self.training = Trainer(self.copy, workload.batches)
        self.names = _names(self.copy)
        self.sites: dict[str, Location | None] = {name: workload.sites.get(id(m)) for name, m in workload.model.named_modules()}
        self.watched: list[Watched] = []
        self.layers = Layers()
        self.first = first_step.FirstStep()
        self.linked = data_flow.Linked()
        self.cosine: float | None = None  # of the first update with the negative gradient
        self.measured: list[int] = []
        self.functional = True  # whether functional calls need taps after the first step
        self.split = several() and shows_parts(workload.model)  # layers give a part of their output on each rank
        self.partial: set[str] = set()  # needs of which only a part is known
        self.not_measured: list[NotMeasured] = []
        self.failures: dict[str, str] = {}  # layers that could not be measured, and why
        self.seconds: dict[str, float] = {}

    def run(self) -> Measurement:
        self._probe()
        self._explain_exception()
        taken = self.training.record("probe")
        if self.workload.uncut is not None and taken.ended == "done":  # few samples make noise, which may explain a plateau
            taken = replace(taken, ended="budget")
        self.not_measured += [NotMeasured(what, PARTS, "short") for what in sorted(self.partial)]
        probe = told_by(taken, self.workload.own_losses, self.plan.probe_steps, self.first.chance)
        others = self._experiments(probe)
        bad = self._locate(taken)
        checked = self._checks(taken)
        profiles = self._profile()
        if self.workload.borrowed is not None:
            self.workload.borrowed.give_back()
        self.seconds["total"] = now() - self.started
        m = self._measurement(probe, others, bad, checked, profiles)
        missing = gaps(m, self.plan.probe_steps, self.plan.seconds, layers=kinds.holds_layers(self.workload.model))
        return replace(m, not_measured=(*m.not_measured, *missing))

    # ----------------------------------------------------------------------- probe

    def _probe(self) -> None:
        probe = Probe(self.training, self.plan.probe_steps, self.observe, lambda: self.first.chance, self.tick)
        seconds = self.plan.seconds
        probe.run(self._until, whole=self.plan.probes, end=self.started + FINAL_END * seconds, spare=SPARE * seconds)
        if probe.final < FINAL_STEPS:
            why = f"there was time for {probe.final} of the {FINAL_STEPS} measured steps at the end of the short training"
            lacking = ("units",) if probe.final else ("signals", "parameters", "units", "similarity")
            self.not_measured += [NotMeasured(what, why, "short", more_time(seconds)) for what in lacking]
        self.seconds["probe"] = now() - self.started

    def _until(self) -> float:
        """The latest time at which the probe ends: what comes after it needs time, too."""
        seconds, step = self.plan.seconds, self.training.step_seconds
        rest = (FINAL_STEPS + registry.forecast(self._context(math.inf), self.plan.needs)) * step
        return self.started + min(PROBE_SHARE * seconds, max(seconds - rest, self.plan.spent + LEAST_STEPS * step))

    def observe(self, step: int, batch: Any) -> float:
        """One measured step. Returns the loss before it."""
        copy, first = self.copy, step == 0
        copy.optimizer.zero_grad(set_to_none=True)
        taps: ActivationRecorder = FirstPassRecorder(self.names) if first else ActivationRecorder(self.names, functions=self.functional)
        taps.heads = self.layers.heads
        with taps:
            loss = copy.loss(batch)
        if isinstance(taps, FirstPassRecorder):
            taps.ends_in(loss)
        fates: Mapping[int, Downstream] | None = None
        graph = Graph(loss.grad_fn) if first and loss.grad_fn is not None else None
        if first:
            self.watched = watch(copy.model, copy.optimizer)
            fates = graph.fates(taps.calls) if graph is not None else {}
            self.training.surrogate = handwritten_loss.why(graph, taps.calls, own_past=self.workload.own_past)
            self._link(taps, graph)
        values: list[torch.Tensor] = []
        taps.bring(loss.detach().clone(), values.append)
        if loss.requires_grad:
            loss.backward()
        taps.settle()
        if self.split:
            self.partial |= put_together(taps.calls)
        value = agreed(float(values[0]))
        if isinstance(taps, FirstPassRecorder):
            self.first = first_step.read(taps, graph, copy, self.watched, self.workload, self.sites, value)
            self.training.floor = self.first.floor
            self.functional = any(c.module is None for c in taps.calls)
        watching = StepWatch(self.watched, step, look_at_rows=first or step >= 3)
        self.training.norms.append(watching.total_norm)
        take_step(copy, batch)
        cosine = watching.after()
        if first:
            self.cosine = cosine
        self.layers.add(step, step % len(self.workload.batches), taps.calls, fates)
        self.measured.append(step)
        self.failures |= taps.failures
        seen = {n for c in taps.calls for n in (c.output_node, *c.input_nodes) if n is not None} if not first else set()
        remember(seen, len(seen))
        taps.release()
        return value

    def _link(self, taps: ActivationRecorder, graph: Graph | None) -> None:
        if not isinstance(taps, FirstPassRecorder):
            return
        try:
            stopped = {node for cut in taps.cuts.values() if cut.reaches for node in cut.nodes}
            self.linked = data_flow.read(graph, taps.calls, taps.seen, self.sites, stopped)
        except Exception as error:  # there are more shapes of graphs than anyone thought of
            why = "how the layers are connected could not be read in full"
            self.not_measured.append(NotMeasured("graph", why, "short", detail=described(error)))

    # ------------------------------------------------------------- after the probe

    def _explain_exception(self) -> None:
        """A loss or batch normalization that rejects its input is a finding; anything else that a step raises stops the scan."""
        error, step = self.training.exception, self.training.step
        if error is None:
            return
        if isinstance(error, GradcheckError) or self._runs(step):
            raise error  # gradcheck's own
        replay = self._replayed(step)
        taps = FirstPassRecorder(_names(replay.copy))
        try:
            with taps:
                replay.take_step(self._batch(step))
        except Exception:
            pass  # it is the one that is being explained
        refused = data_flow.refused(taps.seen, self.sites)
        if not refused and (not taps.losses or taps.losses[-1].raised is None):
            raise TargetError(
                f"{self.workload.name} could not run{f' step {step}' if step else ''}: {type(error).__name__}: {error}",
                location=location_of_traceback(error.__traceback__),
                hint="check the shapes and dtypes of the data against the model; `--data` and `--input` set them",
            ) from error
        if refused:
            who, self.training.error = "a batch normalization", refused[0].raised
            self.linked = replace(self.linked, norms=(*self.linked.norms, *refused))
        else:
            raised = first_step.loss_calls(taps, self.sites)[-1]
            self.first.losses = (*(c for c in self.first.losses if c.site != raised.site or c.function != raised.function), raised)
            who, self.training.error = "the loss", raised.raised
        why = f"{who} raised an error in step {step}, which ended it"
        self.not_measured.append(NotMeasured("probe", why, detail=described(error)))
        if step == 0:
            self.watched = watch(self.copy.model, self.copy.optimizer)
            self.layers.add(0, 0, taps.calls, {})
            self.measured.append(0)
            self.not_measured += [NotMeasured(what, why, detail=described(error)) for what in ("graph", "reach")]

    def _runs(self, step: int) -> bool:
        """Whether the user's code takes this step when nobody is watching."""
        replay = self._replayed(step)
        replay.train(step + 1, norms=False)
        return replay.exception is None

    def _replayed(self, step: int) -> Trainer:
        """A training of another copy that has taken `step` steps as the probe did."""
        replay = Trainer(fork(self.workload, seed=self.plan.seed), self.workload.batches)
        replay.train(step, norms=False)
        return replay

    def _batch(self, step: int) -> Any:
        return self.workload.batches[step % len(self.workload.batches)]

    def _experiments(self, probe: Run) -> tuple[Run, ...]:
        chance, plan, w = self.first.chance, self.plan, self.workload
        failed = outcome(probe, chance) in ("stalls", "diverges") or held_up(probe, chance) or creeps(probe, chance)
        if not plan.probes or probe.ended == "raised" or not failed:
            return ()
        if len(probe.losses) < 2 and probe.ended == "non-finite":
            return ()
        deadline = self.started + EXPERIMENTS_END * plan.seconds
        steps = max(plan.steps, len(probe.losses))
        each = self.seconds["probe"] / max(1, self.training.step)
        tell: Callable[[str], None] = lambda what: self.tick(f"experiment: {what}", 0.0)  # noqa: E731
        failure = experiments.Failure(w, probe, steps, plan.seed, chance, deadline, tell, each)
        rated = lr_of(self.copy.optimizer) is not None
        runs = experiments.after(failure, self.watched, self.first.levels_on, rated=rated)
        if now() > deadline and not any(map(failure.learns, runs)):
            self.not_measured.append(NotMeasured("why the short training failed", LATE, remedy=more_time(plan.seconds)))
        self.seconds["experiments"] = sum(r.seconds for r in runs)
        return tuple(runs)

    def _locate(self, probe: Run) -> tuple[NonFinite, ...]:
        if probe.ended != "non-finite":
            return ()
        self.tick("locating NaN", 0.0)
        step = len(probe.losses) - 1
        copy = self._replayed(step).copy
        return non_finite.locate(copy, self._batch(step), step, _names(copy))

    def _checks(self, probe: Run) -> CheckResults:
        """The checks, which need the step to run; they may use up the copy that the probe trained."""
        if probe.ended == "raised":
            return CheckResults()
        plan = self.plan
        self.copy.optimizer.zero_grad(set_to_none=True)  # with large models, the checks need this memory for copies of their own
        self.copy.optimizer.state.clear()
        context = self._context(max(self.started + plan.seconds, now() + CHECK_SHARE * plan.seconds), probe)
        done = registry.check(context, plan.needs, plan.fast, self.tick)
        late = more_time(plan.seconds)
        self.not_measured += [replace(n, remedy=late) if n.why == LATE else n for n in done.not_measured]
        self.seconds |= done.seconds
        return done

    def _context(self, deadline: float, probe: Run | None = None) -> CheckContext:
        w, first, step = self.workload, self.first, self.training.step_seconds
        few = w.uncut is not None and batch_size(w.batches[0]) < COMPARED
        return CheckContext(
            w,
            self.plan.seed,
            deadline,
            self.sites,
            self.copy,
            probe or self.training.record("probe"),
            first.chance,
            self.layers.half,
            first.targets,
            step,
            cut_to(w, COMPARED) if few else None,
        )

    def _profile(self) -> Mapping[str, Profile]:
        if not self.plan.profile:
            return {}
        self.tick("profile", 0.0)
        return profile(fork(self.workload, seed=self.plan.seed), self.workload.batches[0])

    # ------------------------------------------------------------------ the result

    def _measurement(
        self, probe: Run, others: tuple[Run, ...], bad: tuple[NonFinite, ...], checked: CheckResults, profiles: Mapping[str, Profile]
    ) -> Measurement:
        w, first = self.workload, self.first
        layers = self.layers.records(self.sites, profiles)
        moved = mark_moved(self.watched, w.model)
        reached = {p.name for p in self.watched if p.used and any(s.gradient_norm for s in p.steps)}
        cuts = lasting(self.first.cuts, reached | moved)
        places = shown_places(w, self.sites, first, (*layers, *cuts, *bad), checked.values)
        creation = w.sites.get(id(w.optimizer))
        optimizer = facts.optimizer_facts(w.optimizer, w.model, given=w.optimizer_given, hidden=len(first.hidden), site=creation)
        ascent = None if self.cosine is None else Ascent(self.cosine, not probe.surrogate and facts.unbounded(probe.losses))
        return Measurement(
            target=w.name,
            seed=self.plan.seed,
            steps=len(probe.losses),
            measured_steps=tuple(self.measured),
            environment=facts.environment(w.model),
            layers=layers,
            parameters=records(self.watched, w.model, w.sites),
            optimizer=optimizer,
            data=data.data_facts(
                (w.uncut or w).batches,
                given=w.data_given,
                steps=self.plan.steps,
                targets=first.targets,
                classes=first.classes,
                ignore_index=first.ignore_index,
                first=first.first_kind,
                inputs=w.inputs,
                one_pass=w.one_pass,
            ),
            probe=handwritten_loss.noted(probe, checked.values.get("derivatives")),
            experiments=others,
            losses=first.losses,
            loss_given=w.loss_given,
            chance=first.chance,
            softmaxes=first.softmaxes,
            similarities=first.similarities,
            scrambles=first.scrambles,
            shared=first.shared,
            mixes=first.mixes,
            loss_operations=first.loss_operations,
            differences=first.differences,
            entering=first.entering,
            norms=self.linked.norms,
            pairs=self.linked.pairs,
            streams=self.linked.streams,
            cuts=cuts,
            zero_derivatives=first.zero_derivatives,
            hidden=first.hidden,
            non_finite=bad,
            ascent=ascent,
            pretrained=self.pretrained,
            training=w.model.training,
            not_measured=(*self.not_measured, *unread_layers(self.failures)),
            assumptions=tuple(w.assumptions),
            ignores=ignores(w.files),
            snippets=snippets(places),
            seconds=dict(self.seconds),
            **checked.values,
        )


def _names(copy: TrainingCopy) -> dict[int, str]:
    return {id(m): name for name, m in copy.model.named_modules()}
