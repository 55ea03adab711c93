"""Measures one workload with one seed: the first step watched closely, a short training, experiments when it fails."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from gradcheck.errors import GradcheckError, TargetError
from gradcheck.measure import data, disconnected, experiments, losses, numerics
from gradcheck.measure.fork import Trainee, fork
from gradcheck.measure.layers import Layers
from gradcheck.measure.observe import SeenSoftmax, Tracer
from gradcheck.measure.parameters import StepWatch, Watched, total_norm, watch
from gradcheck.measure.probe import EARLY, Training, lr_of, take_step
from gradcheck.measure.profile import profile
from gradcheck.measure.structure import Fate, Graph, producer
from gradcheck.measure.taps import Taps
from gradcheck.measure.untouched import untouched
from gradcheck.nouns.measurement import (
    Ascent,
    Cut,
    DataFacts,
    Environment,
    HiddenTensor,
    LayerKind,
    LossCall,
    Measurement,
    NonFinite,
    NotMeasured,
    OptimizerFacts,
    Profile,
    Run,
    Softmax,
)
from gradcheck.nouns.places import Location
from gradcheck.progress import outcome
from gradcheck.target.comments import ignores, snippets
from gradcheck.target.sites import location_of_traceback
from gradcheck.target.workload import Workload

Tick = Callable[[str, float], None]  # phase, fraction done

LONGER = 3  # a probe that has not learned is given this many times its steps before it is called failed
PROBE_SHARE = 0.6  # of the time budget; the rest is for experiments
FINAL_STEPS = 2  # measured steps at the end
# Seconds. Steps shorter than this gain nothing from a second thread, and lose much to it on a machine that is busy otherwise.
SMALL_STEP = 0.03
_ADAPTIVE = re.compile(r"ada|rms|lion|rprop|muon|lamb|sophia|soap|shampoo", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long it may take."""

    steps: int = 100
    seconds: float = 60.0
    seed: int = 0
    needs: Collection[str] | None = None  # quantities that the selected rules ask for; None: all
    profile: bool = False

    @property
    def probe_steps(self) -> int:
        if self.needs is None or "probe" in self.needs:
            return self.steps
        return min(self.steps, 11 if {"signals", "parameters", "units", "similarity"} & set(self.needs) else 1)


def measure(workload: Workload, plan: Plan, tick: Tick = lambda phase, fraction: None) -> Measurement:
    """Measures a workload on copies; nothing of the user's is changed, random state and global flags included.

    Raises TargetError when the workload cannot be copied or its training step does not run.
    """
    with ExitStack() as stack:
        stack.enter_context(untouched())
        stack.enter_context(torch.enable_grad())
        if any(type(m).__name__ == "OptimizedModule" for m in workload.model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        return _Session(workload, plan, tick).run()


@dataclass
class _Facts:
    """What the first step said."""

    losses: tuple[LossCall, ...] = ()
    softmaxes: tuple[Softmax, ...] = ()
    cuts: tuple[Cut, ...] = ()
    hidden: tuple[HiddenTensor, ...] = ()
    ascent: Ascent | None = None
    targets: list[torch.Tensor] = field(default_factory=list)
    classes: int | None = None
    ignore_index: int = -100
    chance: float | None = None
    main_loss: tuple[str, str, Any, float] | None = None  # name of the target in the batch, function, options, weight
    first_kind: LayerKind | None = None
    mixes: tuple[Any, ...] = ()


class _Session:
    def __init__(self, workload: Workload, plan: Plan, tick: Tick) -> None:
        self.workload, self.plan, self.tick = workload, plan, tick
        self.started = time.perf_counter()
        self.trainee: Trainee = fork(workload, seed=plan.seed)
        self.names = {id(m): name for name, m in self.trainee.model.named_modules()}
        self.sites: dict[str, Location | None] = {name: workload.sites.get(id(m)) for name, m in workload.model.named_modules()}
        self.watched: list[Watched] = []
        self.layers = Layers()
        self.facts = _Facts()
        self.measured: list[int] = []
        self.functional = True
        self.not_measured: list[NotMeasured] = []
        self.seconds: dict[str, float] = {}
        self.training = Training(self.trainee, workload.batches)

    # ------------------------------------------------------------------- the story

    def run(self) -> Measurement:
        self._probe()
        probe = self.training.noun("probe")
        others = self._experiments(probe)
        bad = self._locate(probe)
        profiles = self._profile()
        self.seconds["total"] = time.perf_counter() - self.started
        return self._measurement(probe, others, bad, profiles)

    # ----------------------------------------------------------------------- probe

    def _probe(self) -> None:
        steps = self.plan.probe_steps
        deadline = self.started + PROBE_SHARE * self.plan.seconds
        early = frozenset(t for t in EARLY if t < max(1, steps - FINAL_STEPS))
        training = self.training
        run = {"measured": early, "observe": self._observe, "tick": lambda t: self.tick("probe", (t + 1) / steps)}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        training.run(1, deadline, **run)
        if training.ended == "raised":
            return
        started = time.perf_counter()
        training.run(min(3, max(1, steps - FINAL_STEPS)), deadline, **run)
        if time.perf_counter() - started > SMALL_STEP * max(1, training.step - 1):
            torch.set_num_threads(threads)
        training.run(max(1, steps - FINAL_STEPS), deadline, **run)
        if training.ended == "done" and steps == self.plan.steps and self._outcome() != "learns":
            longer = LONGER * steps - FINAL_STEPS
            run["tick"] = lambda t: self.tick("probe, longer", (t + 1) / longer)
            training.run(longer, deadline, enough=lambda _: self._outcome() == "learns", **run)
        if training.ended in ("done", "budget", "learned") and steps > FINAL_STEPS:
            ended = training.ended
            training.ended = "done"
            last = frozenset(range(training.step, training.step + FINAL_STEPS))
            training.run(training.step + FINAL_STEPS, float("inf"), measured=last, observe=self._observe)
            if training.ended == "done":
                training.ended = "budget" if ended == "budget" else "done"
        self.seconds["probe"] = time.perf_counter() - self.started

    def _outcome(self) -> str:
        return outcome(Run("", tuple(self.training.losses), batches=len(self.workload.batches)), self.facts.chance)

    def _observe(self, step: int, batch: Any) -> float:
        """One measured step. Returns the loss before it."""
        trainee, first = self.trainee, step == 0
        trainee.optimizer.zero_grad(set_to_none=True)
        taps: Taps = Tracer(self.names) if first else Taps(self.names, functions=self.functional)
        try:
            with taps:
                loss = trainee.loss(batch)
        except Exception as error:
            return self._raised(error, taps, step)
        fates: Mapping[int, Fate] | None = None
        graph = Graph(loss.grad_fn) if first and loss.grad_fn is not None else None
        if first:
            self.watched = watch(trainee.model, trainee.optimizer)
            fates = graph.fates(taps.calls) if graph is not None else {}
        value = float(loss.detach())
        if loss.requires_grad:
            loss.backward()
        self.training.norms.append(total_norm(trainee.model.parameters()))
        taps.settle()
        if first:
            assert isinstance(taps, Tracer)
            self._first_step(taps, graph, batch, value)
        steps = StepWatch(self.watched, step, look_at_rows=first or step >= 3)
        take_step(trainee, batch)
        cosine = steps.after()
        if first and cosine is not None:
            self.facts.ascent = Ascent(cosine)
        self.layers.add(step, step % len(self.workload.batches), taps.calls, fates)
        self.measured.append(step)
        taps.release()
        if first:
            self.functional = any(c.module is None for c in taps.calls)
        return value

    def _raised(self, error: Exception, taps: Taps, step: int) -> float:
        """A loss that rejects its arguments is a finding; anything else that the first step raises stops the scan."""
        if isinstance(taps, Tracer) and taps.losses and taps.losses[-1].raised is not None:
            self.facts.losses = tuple(losses.facts(seen, None, None, None) for seen in taps.losses)
            self.training.ended, self.training.error = "raised", taps.losses[-1].raised
            self.watched = watch(self.trainee.model, self.trainee.optimizer)
            self.layers.add(step, 0, taps.calls, {})
            self.measured.append(step)
            self.not_measured += [NotMeasured(need, "the loss raised") for need in ("graph", "probe")]
            return float("nan")
        if isinstance(error, GradcheckError):
            raise error
        if step > 0:
            self.training.ended, self.training.error = "raised", f"{type(error).__name__}: {error}"
            return float("nan")
        raise TargetError(
            f"{self.workload.name} could not run: {type(error).__name__}: {error}",
            location=location_of_traceback(error.__traceback__),
            hint="check the shapes and dtypes of the data against the model; `--data` and `--input` set them",
        ) from error

    # ------------------------------------------------------------------ first step

    def _first_step(self, taps: Tracer, graph: Graph | None, batch: Any, value: float) -> None:
        """Reads structure, losses, cuts and hidden tensors, while the graph is there."""
        facts, model = self.facts, self.trainee.model
        leaves = graph.leaves() if graph is not None else []
        facts.losses = tuple(self._loss_call(seen, taps) for seen in taps.losses)
        facts.softmaxes = tuple(self._softmax(seen, taps, graph) for seen in taps.softmaxes)
        facts.mixes = tuple(taps.mixes)
        reached = {id(t) for t in leaves}
        for w in self.watched:
            w.used = id(w.tensor) in reached
        unreached = {id(w.tensor): w.name for w in self.watched if w.tensor.requires_grad and w.tensor.grad is None}
        holder = {w.name: w.layer for w in self.watched}
        called = {c.name for c in taps.calls}
        facts.cuts = disconnected.cuts(unreached, taps.cuts.values(), called, holder, self.sites)
        optimized = {id(p) for group in self.trainee.optimizer.param_groups for p in group["params"]}
        facts.hidden = disconnected.hidden(model, leaves, taps.hidden.values(), batch, optimized, self.workload.sites)
        first = next((c for c in taps.calls if c.kind in ("linear", "conv", "recurrent", "embedding", "norm")), None)
        facts.first_kind = first.kind if first else None
        self._targets(taps, batch, value)

    def _loss_call(self, seen: losses.SeenLoss, taps: Tracer) -> LossCall:
        name, node = producer(seen.input)
        maker = next((c for c in taps.calls if c.output_node is node), None) if node is not None else None
        softmax = next((s for s in taps.softmaxes if s.node is node), None) if node is not None else None
        layer = maker.name if maker else softmax.layer if softmax else None
        site = (maker.site or self.sites.get(maker.name)) if maker else softmax.site if softmax else None
        return losses.facts(seen, name, layer, site)

    def _softmax(self, seen: SeenSoftmax, taps: Tracer, graph: Graph | None) -> Softmax:
        ends = {producer(call.input)[1] for call in taps.losses}
        size = data.batch_size(self.workload.batches[0])
        over_batch = seen.axis == 0 and len(seen.shape) >= 2 and seen.shape[0] == size > 1
        return Softmax(seen.layer, seen.site, seen.shape, seen.axis, seen.implicit, seen.log, seen.node in ends and seen.node is not None, over_batch)

    def _targets(self, taps: Tracer, batch: Any, value: float) -> None:
        """Finds the target of the loss in every batch, and from all of them the chance level of the whole loss."""
        facts = self.facts
        total, known = 0.0, 0.0
        for seen, call in zip(taps.losses, facts.losses, strict=True):
            weight = call.weight_in_total
            if seen.target is None or weight is None or call.value is None or call.chance is None:
                continue
            targets = self._pooled(seen.target, batch)
            chance, _ = losses.chance_level(call.function, call.classes, targets or [seen.target], seen.options)
            if chance is None:
                continue
            total += weight * chance
            known += weight * call.value
            if targets and not facts.targets:
                facts.targets, facts.classes = targets, call.classes
                facts.ignore_index = int(seen.options.get("ignore_index", -100))
                facts.main_loss = (self._target_names(seen.target, batch)[0], call.function, seen.options, weight)
        rest = value - known
        if known > 0 and total > 0 and abs(rest) <= 0.2 * abs(value):
            facts.chance = total + max(0.0, rest)

    def _pooled(self, target: torch.Tensor, batch: Any) -> list[torch.Tensor]:
        """The same entry of every batch, when the target is one of the batch's own tensors (or a view of it)."""
        same = self._target_names(target, batch)
        if not same:
            return []
        found = [dict(data.named_tensors(b)).get(same[0]) for b in self.workload.batches]
        return [t for t in found if t is not None]

    @staticmethod
    def _target_names(target: torch.Tensor, batch: Any) -> list[str]:
        place = (target.data_ptr(), target.numel())
        return [name for name, t in data.named_tensors(batch) if t is target or (t.data_ptr(), t.numel()) == place]

    def _chance_of(self, batch: Any) -> float | None:
        """Loss of the best constant prediction on one small batch, where the loss is a single known one."""
        if self.facts.main_loss is None or self.facts.chance is None or len(self.facts.losses) != 1:
            return None
        name, function, options, weight = self.facts.main_loss
        target = dict(data.named_tensors(batch)).get(name)
        if target is None:
            return None
        chance, _ = losses.chance_level(function, self.facts.classes, [target], options, fewest_labels=0)
        return weight * chance if chance else None

    # ---------------------------------------------------------------- after the probe

    def _experiments(self, probe: Run) -> tuple[Run, ...]:
        wanted = self.plan.needs is None or "probe" in self.plan.needs
        if not wanted or probe.ended == "raised" or outcome(probe, self.facts.chance) not in ("stalls", "diverges"):
            return ()
        if len(probe.losses) < 2 and probe.ended == "non-finite":
            return ()
        deadline = self.started + self.plan.seconds
        say = lambda what: self.tick(f"experiment: {what}", 0.0)  # noqa: E731
        factors = experiments.rate_factors(probe, self.facts.chance, self.watched)
        arguments = (self.workload, probe, self.facts.chance, factors, self.plan.seed, deadline, say)
        rates = experiments.other_rates(*arguments) if lr_of(self.trainee.optimizer) is not None else []
        learned = any(outcome(r, self.facts.chance) == "learns" for r in rates)
        runs = rates if learned else [*rates, *experiments.one_batch(self.workload, self._chance_of, self.plan.seed, deadline, say)]
        if time.perf_counter() > deadline and not learned:
            self.not_measured.append(NotMeasured("experiments", f"the time budget of {self.plan.seconds:g} s ran out"))
        self.seconds["experiments"] = sum(r.seconds for r in runs)
        return tuple(runs)

    def _locate(self, probe: Run) -> tuple[NonFinite, ...]:
        if probe.ended != "non-finite":
            return ()
        self.tick("locating NaN", 0.0)
        trainee = fork(self.workload, seed=self.plan.seed)
        replay = Training(trainee, self.workload.batches)
        step = len(probe.losses) - 1
        replay.run(step, float("inf"), norms=False)
        names = {id(m): name for name, m in trainee.model.named_modules()}
        return numerics.locate(trainee, self.workload.batches[step % len(self.workload.batches)], step, names)

    def _profile(self) -> Mapping[str, Profile]:
        if not self.plan.profile:
            return {}
        self.tick("profile", 0.0)
        return profile(fork(self.workload, seed=self.plan.seed), self.workload.batches[0])

    # --------------------------------------------------------------------- the result

    def _measurement(self, probe: Run, others: tuple[Run, ...], bad: tuple[NonFinite, ...], profiles: Mapping[str, Profile]) -> Measurement:
        w, facts = self.workload, self.facts
        layers = self.layers.nouns(self.sites, profiles)
        locations = [x.site for x in layers if x.site] + [c.site for c in facts.cuts if c.site] + [c.site for c in facts.losses if c.site]
        locations += [s.site for s in facts.softmaxes if s.site] + [b.site for b in bad if b.site] + [h.site for h in facts.hidden if h.site]
        locations += [m.site for m in facts.mixes if m.site] + [s for s in self.sites.values() if s]
        return Measurement(
            target=w.name,
            seed=self.plan.seed,
            steps=len(probe.losses),
            measured_steps=tuple(self.measured),
            environment=self._environment(),
            layers=layers,
            parameters=tuple(p.noun() for p in self.watched),
            optimizer=self._optimizer(),
            data=self._data(),
            probe=probe,
            experiments=others,
            losses=facts.losses,
            loss_given=w.loss_given,
            chance=facts.chance,
            softmaxes=facts.softmaxes,
            mixes=facts.mixes,
            cuts=facts.cuts,
            hidden=facts.hidden,
            non_finite=bad,
            ascent=self._ascent(probe),
            pretrained=_pretrained(w.model, w.optimizer),
            training=w.model.training,
            not_measured=tuple(self.not_measured),
            assumptions=tuple(w.assumptions),
            ignores=ignores(w.files),
            snippets=snippets(locations),
            seconds=dict(self.seconds),
        )

    def _ascent(self, probe: Run) -> Ascent | None:
        if self.facts.ascent is None:
            return None
        return replace(self.facts.ascent, unbounded=_unbounded(probe.losses))

    def _data(self) -> DataFacts:
        facts = self.facts
        return data.data_facts(
            self.workload.batches,
            given=self.workload.data_given,
            steps=self.plan.steps,
            targets=facts.targets,
            classes=facts.classes,
            ignore_index=facts.ignore_index,
            first=facts.first_kind,
        )

    def _optimizer(self) -> OptimizerFacts:
        optimizer = self.workload.optimizer
        groups = optimizer.param_groups
        first: Mapping[str, Any] = groups[0] if groups else {}
        listed = {id(p) for p in self.workload.model.parameters()}
        stale = sum(id(p) not in listed for g in groups for p in g["params"])
        betas = first.get("betas") or (first.get("momentum", 0.0),)
        lr, initial = lr_of(optimizer) or 0.0, float(first.get("initial_lr", 0.0) or 0.0)
        return OptimizerFacts(
            type(optimizer).__name__,
            self.workload.optimizer_given,
            bool(_ADAPTIVE.search(type(optimizer).__name__)),
            lr,
            tuple(float(g.get("lr") or 0.0) for g in groups),
            float(betas[0] or 0.0),
            max((float(g.get("weight_decay") or 0.0) for g in groups), default=0.0),
            bool(first.get("maximize", False)),
            lr < initial,
            max(0, stale - len(self.facts.hidden)),
        )

    def _environment(self) -> Environment:
        p = next(self.workload.model.parameters(), None)
        dtype = str(p.dtype).removeprefix("torch.") if p is not None else "float32"
        device = str(p.device) if p is not None else "cpu"
        return Environment(platform.python_version(), torch.__version__, platform.platform(), device, dtype, torch.get_num_threads())


def _pretrained(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Traces of earlier training: normalization statistics that have seen batches, or a filled optimizer state."""
    tracked = (b for name, b in model.named_buffers() if name.endswith("num_batches_tracked"))
    return any(bool(b.item()) for b in tracked if b.numel() == 1) or bool(optimizer.state)


def _unbounded(series: Sequence[float]) -> bool:
    """The loss fell far below zero, and faster in the second half of the run than in the first."""
    n = len(series)
    if n < 8 or not series[-1] < -10 * max(1.0, abs(series[0])):
        return False
    return series[n // 2] - series[-1] > series[0] - series[n // 2] > 0
