"""What has been measured of a live run so far, in bounded memory, and the Measurement made from it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import nn

from gradcheck.analysis.gaps import unread_layers
from gradcheck.instrument import data_flow
from gradcheck.instrument.averages import Averages
from gradcheck.instrument.disconnected import lasting
from gradcheck.instrument.traced_optimizer import TracedOptimizer
from gradcheck.live.instruments import Instruments
from gradcheck.live.loop_log import LoopLog
from gradcheck.live.models import living_modules
from gradcheck.measure import facts, first_step
from gradcheck.measure.layers import LayerAccumulator, Layers
from gradcheck.measure.parameters import Watched
from gradcheck.measure.probe import FINAL_STEPS
from gradcheck.types.data import DataFacts
from gradcheck.types.gauges import RankFacts, Spike
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Assumption, Measurement, NotMeasured
from gradcheck.types.rule import Need
from gradcheck.types.training import UNBINNED, LogColumn, LogFacts, NonFinite, OptimizerFacts, Run
from gradcheck.workload.comments import ignores, places, snippets

MOST = 1024  # bins behind them; when there are twice as many, neighbours are joined
EARLY, LATE = 4, 6  # measured steps that are always kept


@dataclass
class DownsampledSeries:
    """The first numbers as they came, the later ones as means over equally many steps each; one that is not finite makes its mean so."""

    count: int = 0
    last: float = math.nan
    first: list[float] = field(default_factory=list)
    bins: list[float] = field(default_factory=list)
    width: int = 1  # numbers in a bin
    _sum: float = 0.0
    _filled: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.last = value
        if len(self.first) < UNBINNED:
            self.first.append(value)
            return
        self._sum += value
        self._filled += 1
        if self._filled == self.width:
            self.bins.append(self._sum / self.width)
            self._sum, self._filled = 0.0, 0
            if len(self.bins) >= 2 * MOST:
                self.bins = [(a + b) / 2 for a, b in zip(self.bins[::2], self.bins[1::2], strict=True)]
                self.width *= 2

    def values(self) -> tuple[float, ...]:
        """In order. The last one is the last number itself if that is not finite: a run that ends like this must say so."""
        rest = [self._sum / self._filled] if self._filled else []
        if rest and not math.isfinite(self.last):
            rest = [self.last]
        return (*self.first, *self.bins, *rest)

    def steps(self) -> tuple[float, ...]:
        """Of each of `values`: the last step of its bin."""
        first, ends = len(self.first), range(len(self.first) + self.width - 1, self.count, self.width)
        rest = [self.count - 1] if self._filled else []
        return tuple(map(float, (*range(first), *ends[: len(self.bins)], *rest)))


def thinned(steps: Sequence[int], most: int) -> frozenset[int]:
    """Which of the measured steps are kept: the first, the last, and every second of those between when there are too many."""
    if len(steps) <= most:
        return frozenset(steps)
    return frozenset((*steps[:EARLY], *steps[EARLY:-LATE:2], *steps[-LATE:]))


FEWEST_STEPS = 4  # before the course of a training is judged at all
MOST_SNAPSHOTS, FEWEST_SNAPSHOTS = 60, 12  # measured steps that are kept, fewer of large models
# Bytes of a saved run that a measured step takes: of a layer, of a parameter (measured: 436 and 187 in a GPT); and those of all of them.
BYTES, MOST_BYTES = (600, 220), 12_000_000
SEEN: tuple[Need, ...] = (
    "signals", "units", "similarity", "parameters", "graph", "reach", "optimizer", "losses", "probe", "numerics", "loop", "routing", "log",
    "gauges",
)  # fmt: skip
NEEDS_TAPS: frozenset[Need] = frozenset(("signals", "units", "similarity", "graph", "reach", "losses", "routing"))
NEVER = "watching makes no copies and no experiments; `gradcheck scan` does"
WATCHED = "the watched run"
CAPTURED = "its steps are recorded as a graph (CUDA graphs): no hook runs when it is replayed, and nothing may be read while it is recorded"
UNCAPTURED = "watch it once without the graph, or scan the script with the graph switched off"
UNSEEN = "no layer of the model was seen to run in the measured steps: torch.compile may have compiled what calls it"
UNCOMPILED = "watch it once with TORCH_COMPILE_DISABLE=1 in the environment, or scan the script"
LONGER = "watch a longer run"
WARM = 0.9  # of the highest rate so far: a first rate below it is one that is being warmed up


@dataclass
class Record:
    """Filled by the monitor, read by `measurement`."""

    model: nn.Module
    name: str
    sites: Mapping[int, Location] = field(default_factory=dict)  # id(module or optimizer) -> the expression that constructed it
    files: Sequence[str] = ()  # the user's own source files
    layers: Layers = field(default_factory=Layers)
    watched: list[Watched] = field(default_factory=list)
    losses: DownsampledSeries = field(default_factory=DownsampledSeries)
    norms: list[float] = field(default_factory=list)  # total gradient norm at the measured steps
    measured: list[int] = field(default_factory=list)
    first: first_step.FirstStep = field(default_factory=first_step.FirstStep)
    linked: data_flow.Linked = field(default_factory=data_flow.Linked)
    failures: dict[str, str] = field(default_factory=dict)
    not_measured: list[NotMeasured] = field(default_factory=list)
    untapped: str = ""  # why the layers cannot be seen
    alone: bool = True  # no other optimizer steps
    others: set[int] = field(default_factory=set)  # ids of optimizers that have stepped and are not counted
    made: int = 0  # optimizers, since the run began
    several: bool = False  # other optimizers step as well: the loss of one need not fall
    optimizer: torch.optim.Optimizer | None = None
    pretrained: bool = False  # when the run began, as `training`
    training: bool = True
    rates: list[float] = field(default_factory=list)  # largest of the groups, at the measured steps
    peak: float = 0.0  # the largest of them so far
    log: LoopLog = field(default_factory=LoopLog)
    instruments: Instruments = field(default_factory=Instruments)
    backwards: int = 0
    accumulated: int = 1  # backward passes of the first step, all of one line; 0 when they are of several
    scale: float = 1.0  # of the loss, at the last measured step
    clipped: bool = False  # the norms were read after the gradients had been changed by hand
    graded: set[int] = field(default_factory=set)  # ids of the optimizer's tensors that were seen with a gradient
    non_finite: list[NonFinite] = field(default_factory=list)
    spikes: list[Spike] = field(default_factory=list)
    bad_losses: int = 0  # non-finite ones in a row, up to the last step
    steps: int = 0
    busy: int = 0  # what listens to a recorded script asks; a watched run is never recorded at the same time
    backward_site: Location | None = None
    traced: TracedOptimizer | None = None  # what is known of the optimizer
    ranks: RankFacts | None = None  # of a distributed training
    apart: list[NotMeasured] = field(default_factory=list)  # what is not known of the other ranks
    started: float = field(default_factory=time.perf_counter)

    def note_loss(self, value: float) -> None:
        self.losses.add(value)
        self.bad_losses = 0 if math.isfinite(value) else self.bad_losses + 1

    def note_step(self, step: int, norm: float, rate: float, leftover: bool) -> None:
        """A measured one. `leftover`: gradients of the step before were still there when it began."""
        self.log.steps += 1
        self.log.leftover += leftover
        self.measured.append(step)
        self.norms.append(norm)
        self.rates.append(rate)
        self.peak = max(self.peak, rate)

    def averages(self) -> Averages:
        """Models of the process that follow this one, or a part of it where gradcheck has put several together."""
        model = self.model
        return Averages(
            lambda: [m for m in living_modules() if m is not model or type(m) is not nn.ModuleDict],
            lambda: frozenset(map(id, model.parameters())),
            lambda module: self.sites.get(id(module)),
            sees_calls=False,
        )

    def thin(self) -> None:
        """Forgets some of the measured steps when there are too many."""
        size = BYTES[0] * len(self.layers.layers) + BYTES[1] * len(self.watched)
        kept = thinned(self.measured, min(MOST_SNAPSHOTS, max(FEWEST_SNAPSHOTS, MOST_BYTES // max(1, size))))
        if len(kept) == len(self.measured):
            return
        for layer in self.layers.layers.values():
            layer.snapshots = [s for s in layer.snapshots if s.step in kept]
            _thin_units(layer)
        self.layers.batches = self.layers.batches[-FINAL_STEPS:]
        self.instruments.gauges.thin(kept)
        for w in self.watched:
            w.steps = [s for s in w.steps if s.step in kept]
        chosen = [i for i, step in enumerate(self.measured) if step in kept]
        self.measured = [self.measured[i] for i in chosen]
        self.norms = [self.norms[i] for i in chosen]
        self.rates = [self.rates[i] for i in chosen]

    @property
    def broken(self) -> bool:
        """Whether the loss is no longer finite. A single such step may be skipped by a loss scaler, or be the run's last."""
        return self.bad_losses > 1 or (self.bad_losses == 1 and self.scale == 1.0)

    def run(self) -> Run:
        """The run so far, as rules see it."""
        losses = self.losses.values()
        return Run(
            "the watched run",
            losses,
            tuple(self.norms),
            batches=max(1, len(losses)),
            lr=self.peak if self.rates else None,
            ended="non-finite" if self.broken else "done",
            seconds=time.perf_counter() - self.started,
            live=True,
            loss_scale=self.scale,
            clipped=self.clipped,
            beside=self.several,
        )

    def _course(self) -> LogFacts | None:
        """What a log of the run would hold. With several optimizers, the loss of one proves nothing."""
        if not self.alone:
            return None
        at = tuple(map(float, self.measured))
        losses = LogColumn("watched", self.losses.steps(), self.losses.values())
        rates = sorted({**dict(zip(self.measured, self.rates, strict=True)), **self.log.turns}.items())
        rate = LogColumn("watched", tuple(float(step) for step, _ in rates), tuple(value for _, value in rates))
        return LogFacts(WATCHED, losses, None, rate, LogColumn("watched", at, tuple(self.norms)))

    # -------------------------------------------------------------- the measurement

    def measurement(self, optimizers: Sequence[torch.optim.Optimizer]) -> Measurement:
        """`optimizers`: all that were seen to step, or exist."""
        self._note_groups(optimizers)
        sites = {name: self.sites.get(id(m)) for name, m in self.model.named_modules()}
        layers = self.layers.records(sites, {})
        waiting = self._waiting(optimizers)
        cuts = lasting(self.first.cuts, waiting | {w.name for w in self.watched if w.used})
        first, loop = self.first, self.log.facts(self.traced, self.backwards, self.backward_site, bool(self.untapped))
        sited: tuple[Any, ...] = (*layers, *cuts, *first.losses, *first.softmaxes, *first.mixes, *first.hidden, *first.zero_derivatives)
        shown = [x.site for x in sited if x.site is not None]
        shown += [*(p for p in (*sites.values(), self.backward_site) if p is not None), *places(loop)]
        return Measurement(
            target=self.name,
            seed=0,
            steps=self.steps,
            measured_steps=tuple(self.measured),
            environment=facts.environment(self.model),
            layers=layers,
            parameters=tuple(replace(w.record(), used=w.used or w.name in waiting) for w in self.watched),
            optimizer=self._optimizer(),
            data=DataFacts(True, 0, 0),
            probe=self.run(),
            losses=first.losses,
            loss_given=True,
            chance=first.chance * self.accumulated if first.chance and self.accumulated else None,
            softmaxes=first.softmaxes,
            mixes=first.mixes,
            loss_operations=first.loss_operations,
            differences=first.differences,
            norms=self.linked.norms,
            pairs=self.linked.pairs,
            streams=self.linked.streams,
            cuts=cuts,
            zero_derivatives=first.zero_derivatives,
            hidden=tuple(h for h in first.hidden if h.name),  # tensors of the loop itself are not part of the model
            non_finite=tuple(self.non_finite),
            spikes=tuple(self.spikes),
            loop=loop,
            ranks=self.ranks,
            routers=tuple(replace(r, site=sites.get(r.layer)) for r in self.instruments.routers()) or None,
            gauges=tuple(self.instruments.gauges.records(sites)),
            course=self._course(),
            pretrained=self.pretrained,
            training=self.training,
            not_measured=(*self._lacking(loop), *self.not_measured, *self.apart, *self._failed()),
            assumptions=(Assumption("data", f"a live run: {self.steps} steps seen, {len(self.measured)} of them measured", given=True),),
            ignores=ignores(self.files),
            snippets=snippets(shown),
            seconds={"total": time.perf_counter() - self.started},
        )

    def _failed(self) -> list[NotMeasured]:
        return unread_layers(self.failures)

    def _lacking(self, loop: LoopFacts | None) -> list[NotMeasured]:
        lacking = [NotMeasured(need, NEVER, "left-out") for need in get_args(Need) if need not in SEEN]
        unseen = self.untapped or (UNSEEN if not self.layers.layers and any(w.layer and w.steps for w in self.watched) else "")
        if unseen:
            remedy = UNCAPTURED if self.untapped == CAPTURED else UNCOMPILED
            lacking += [NotMeasured(need, unseen, remedy=remedy) for need in get_args(Need) if need in NEEDS_TAPS]
        if not self.measured:
            lacking += [NotMeasured(need, "no step was measured", remedy=LONGER) for need in SEEN if need != "loop" or loop is None]
        elif loop is None:
            lacking.append(NotMeasured("loop", "a single step was measured", remedy=LONGER))
        if self.broken:
            return lacking
        if self.steps < FEWEST_STEPS:
            lacking.append(NotMeasured("probe", f"fewer than {FEWEST_STEPS} steps were taken ({self.steps})", remedy=LONGER))
        return lacking

    def _note_groups(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Notes in how many groups of all optimizers each parameter is; with one optimizer, a second group is a mistake."""
        for w in self.watched:
            held = [sum(p is w.tensor for g in o.param_groups for p in g["params"]) for o in optimizers]
            w.groups = max(held, default=0)

    def _optimizer(self) -> OptimizerFacts:
        optimizer = self.optimizer
        if optimizer is None:
            return OptimizerFacts("none", False, False, 0.0)
        said = facts.optimizer_facts(optimizer, self.model, given=True, hidden=0, site=self.sites.get(id(optimizer)))
        listed = {id(p) for p in self.model.parameters()}
        outside = [id(p) for g in optimizer.param_groups for p in g["params"] if id(p) not in listed]
        peak = self.peak if self.rates else said.lr
        warming = bool(self.rates) and self.rates[0] < WARM * peak
        return replace(said, lr=peak, stale=sum(key not in self.graded for key in outside), warming_up=warming or said.warming_up)

    def _waiting(self, optimizers: Sequence[torch.optim.Optimizer]) -> set[str]:
        """Parameters of which nothing can be said yet: another optimizer holds them, which has not stepped."""
        own = {id(p) for o in optimizers if o is self.optimizer or id(o) in self.others for g in o.param_groups for p in g["params"]}
        late = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]} - own
        return {w.name for w in self.watched if id(w.tensor) in late} if self.optimizer is not None else set()

    def locate(self, step: int) -> None:
        """The first layer of a measured step whose output is not finite although its own weights are."""
        broken = {w.layer for w in self.watched if w.steps and not math.isfinite(w.steps[-1].norm)}
        for layer in sorted(self.layers.layers.items(), key=lambda item: item[1].order):
            name, growing = layer
            last = growing.snapshots[-1] if growing.snapshots and growing.snapshots[-1].step == step else None
            if last is None or last.output is None or last.output.finite:
                continue
            if not broken:
                site = growing.first.site or (self.sites.get(id(growing.first.module)) if growing.first.module is not None else None)
                self.non_finite = [NonFinite("forward", growing.first.type, name, site, step, "nan" if last.output.nan else "inf")]
            return


def _thin_units(layer: LayerAccumulator) -> None:
    if len(layer.alive) > 2 + FINAL_STEPS:
        layer.alive = [*layer.alive[:2], *layer.alive[-FINAL_STEPS:]]
    if len(layer.magnitudes) > 2 + FINAL_STEPS:
        layer.magnitudes = [*layer.magnitudes[:2], *layer.magnitudes[-FINAL_STEPS:]]
    layer.samples = [*layer.samples[:2], *layer.samples[2:][-FINAL_STEPS:]]
