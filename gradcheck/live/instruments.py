"""What a measured step shows besides its layers and parameters, filed as gauges and routers, in bounded memory."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from gradcheck.analysis.curves import CLEAR, Level
from gradcheck.live.looks import ExpertChoice, Looks
from gradcheck.measure.layers import Layers
from gradcheck.measure.parameters import Numbers, Watched, joined, sampled_entries
from gradcheck.types.gauges import Departure, Gauge, Quantity
from gradcheck.types.location import Location
from gradcheck.types.structure import Router
from gradcheck.workload.dtensor import local

YOUNG = 32  # steps after the first gradient of an entry, as of a row of an embedding first used, in which no average can be kept up with
SQUARES = "exp_avg_sq"  # in the state of Adam, AdamW, NAdam, RAdam and of most that follow them


@dataclass
class _Tensor:
    name: str
    layer: str
    size: int  # entries of the sample
    count: int
    beta: float
    floor: float  # epsilon, squared
    steps: float  # that the moment has seen


@dataclass(frozen=True)
class Moment:
    name: str
    layer: str
    lag: float  # root mean of g^2 over the second moment, about 1 if the moment keeps up
    since: float | None  # norm of the gradients since the last look, a root mean over its steps; None: there was none


@dataclass
class Moments:
    """`look` right after a step; bring what it returns to the host, and then `read` it.

    It looks at samples of the gradient and of the second moment as they are after the step, which was made of them.
    """

    _tensors: list[_Tensor] = field(default_factory=list)
    _views: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict)  # of second moments, and where these lie
    _before: dict[str, tuple[float, float]] = field(default_factory=dict)  # tensor -> steps and mean of its second moment
    _unused: Numbers = field(default_factory=lambda: np.zeros(0))  # entry -> the last step in which its second moment was seen to be 0

    def look(self, optimizer: torch.optim.Optimizer | None, watched: Sequence[Watched]) -> list[torch.Tensor]:
        known = {id(w.tensor): w for w in watched}
        found: list[tuple[_Tensor, torch.Tensor, torch.Tensor]] = []
        for group in optimizer.param_groups if optimizer is not None else ():
            betas, epsilon = group.get("betas"), group.get("eps")
            if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not isinstance(betas[1], float) or not epsilon:
                continue
            for p in group["params"]:
                state, w = optimizer.state.get(p, {}) if optimizer is not None else {}, known.get(id(p))
                steps, square = _on_host(state.get("step")), state.get(SQUARES)
                if w is None or p.grad is None or not isinstance(square, torch.Tensor) or steps is None:
                    continue
                gradient, square = local(p.grad), local(square)
                if gradient.shape != square.shape or gradient.is_complex() or gradient.layout is not torch.strided or not gradient.numel():
                    continue
                sample = sampled_entries(gradient)
                tensor = _Tensor(w.name, w.layer, sample.numel(), gradient.numel(), betas[1], float(epsilon) ** 2, steps)
                found.append((tensor, sample, self._sampled(w.name, square)))
        found.sort(key=lambda f: f[1].dim())  # those of one shape are joined in one call
        self._tensors = [tensor for tensor, _, _ in found]
        return [*joined([gradient for _, gradient, _ in found]), *joined([square for _, _, square in found])]

    def _sampled(self, name: str, square: torch.Tensor) -> torch.Tensor:
        """The same view as long as the tensor stays where it is in memory."""
        place, (before, view) = square.data_ptr(), self._views.get(name, (0, square))
        if before != place:
            view = sampled_entries(square)
            if view.data_ptr() == place:  # else it is a copy, which does not follow
                self._views[name] = place, view
        return view

    def read(self, arrived: Sequence[torch.Tensor], between: bool = False) -> list[Moment]:
        """`between`: two measured steps, whose own look is to find all that happened since the one before it."""
        if not arrived or not self._tensors:
            return []
        half = len(arrived) // 2
        gradients, squares = (torch.cat([t.double() for t in part]).numpy() for part in (arrived[:half], arrived[half:]))
        sizes, known = [t.size for t in self._tensors], self._tensors
        starts = np.cumsum([0, *sizes[:-1]])
        with np.errstate(all="ignore"):
            factors = np.repeat([1 / (1 - t.beta**t.steps) if t.steps else np.nan for t in known], sizes)
            ratios = np.square(gradients) / np.maximum(squares * factors, np.repeat([t.floor for t in known], sizes))
            ratios[self._is_young(squares, np.repeat([t.steps for t in known], sizes))] = 1.0
            lags, means = ((np.add.reduceat(x, starts) / sizes).tolist() for x in (ratios, squares))
        found = zip(known, lags, means, strict=True)
        return [Moment(t.name, t.layer, lag**0.5, None if between else self._since(t, mean)) for t, lag, mean in found]

    def _is_young(self, squares: Numbers, steps: Numbers) -> npt.NDArray[np.bool_]:
        if len(self._unused) != len(squares):
            self._unused = np.full(len(squares), -np.inf)
        self._unused[squares == 0] = steps[squares == 0]
        return (squares > 0) & (steps - self._unused < YOUNG)

    def _since(self, t: _Tensor, mean: float) -> float | None:
        """The moment is a sum of squares that decays at a known rate: a spike between two looks is still in it."""
        steps, before = self._before.get(t.name, (0.0, 0.0))
        self._before[t.name] = t.steps, mean
        kept = t.beta ** (t.steps - steps) if t.steps > steps else 1.0
        return max(0.0, (mean - kept * before) / (1 - kept) * t.count) ** 0.5 if kept < 1 else None


def _on_host(steps: object) -> float | None:
    """A count, where no device has to be waited for."""
    return float(steps) if isinstance(steps, (int, float)) or (isinstance(steps, torch.Tensor) and steps.is_cpu) else None


FEWEST = 8  # values that establish a level
SCORE = 10.0  # standard deviations: as log-loss-spikes
REACH = 3.0  # times the highest value before: likewise
ONLY_DEPARTED: frozenset[Quantity] = frozenset(("gradient",))  # their series are those of the parameters


@dataclass
class _Series:
    layer: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    before: Level = field(default_factory=Level)
    peak: tuple[float, int] = (-math.inf, 0)
    departure: Departure | None = None
    running: Departure | None = None
    _bound: float = 0.0  # above it a departure goes on

    def add(self, step: int, value: float, between: bool = False) -> None:
        """`between`: two measured steps, of which it is no further one."""
        self.steps.append(step)
        self.values.append(value)
        self.peak = max(self.peak, (value, step))
        if self.running is None:
            self._begin(step, value, between)
        elif value > self._bound:
            d = self.running
            score = max(d.score, d.score * (value - d.level) / (d.value - d.level))
            self.running = Departure(d.step, max(d.value, value), d.level, score, d.lasted + (not between), False)
        else:
            self._keep(True)
            self.running = None
        if self.running is None:
            self.before.add(value)

    def _begin(self, step: int, value: float, between: bool) -> None:
        if len(self.before.recent) < FEWEST or not self.before.left_behind(value, REACH):
            return
        level, size = self.before.value, self.before.size
        if size > 0 and value - level > SCORE * size:
            self.running, self._bound = Departure(step, value, level, (value - level) / size, int(not between), False), level + CLEAR * size

    def _keep(self, back: bool) -> None:
        d = self.running
        assert d is not None
        if self.departure is None or (d.lasted, d.score) >= (self.departure.lasted, self.departure.score):
            self.departure = Departure(d.step, d.value, d.level, d.score, d.lasted, back)

    def longest(self) -> Departure | None:
        known = [d for d in (self.departure, self.running) if d is not None]
        return max(known, key=lambda d: (d.lasted, d.score), default=None)


class Gauges:
    """Fed at each measured step."""

    def __init__(self) -> None:
        self._series: dict[tuple[Quantity, str], _Series] = {}

    def note(self, quantity: Quantity, name: str, layer: str, step: int, value: float, between: bool = False) -> None:
        """A non-finite value is ignored. `between`: it is of no measured step."""
        if math.isfinite(value):
            self._series.setdefault((quantity, name), _Series(layer)).add(step, value, between)

    def thin(self, kept: Collection[int]) -> None:
        for s in self._series.values():
            pairs = [(step, value) for step, value in zip(s.steps, s.values, strict=True) if step in kept]
            s.steps, s.values = [step for step, _ in pairs], [value for _, value in pairs]

    def largest(self, step: int) -> dict[tuple[Quantity, str], float]:
        """At one measured step, of each quantity and layer."""
        found: dict[tuple[Quantity, str], float] = {}
        for (quantity, _), s in self._series.items():
            if s.steps and s.steps[-1] == step:
                found[quantity, s.layer] = max(s.values[-1], found.get((quantity, s.layer), -math.inf))
        return found

    def records(self, sites: Mapping[str, Location | None]) -> Iterator[Gauge]:
        for (quantity, name), s in self._series.items():
            departure = s.longest()
            if departure is not None or quantity not in ONLY_DEPARTED:
                (peak, at), site = s.peak, sites.get(s.layer)
                yield Gauge(quantity, name, s.layer, tuple(s.steps), tuple(s.values), peak, at, departure, site)


RECENT = 4  # measured steps from which the loads of a router are taken: a scan looks at as many batches


@dataclass
class Instruments:
    """`gauges`: all but the routers, whose loads are counted."""

    gauges: Gauges = field(default_factory=Gauges)
    _routers: dict[str, list[ExpertChoice]] = field(default_factory=dict)  # layer -> the first choices, and the last ones
    _moments: Moments = field(default_factory=Moments)

    def riders(self, optimizer: torch.optim.Optimizer | None, watched: Sequence[Watched]) -> list[torch.Tensor]:
        """After the step: what should come to the host with the updates, for `note_step`."""
        return self._moments.look(optimizer, watched)

    def note_step(self, step: int, watched: Iterable[Watched], arrived: Sequence[torch.Tensor], scale: float | None, raw: bool) -> None:
        """`scale`: of a GradScaler; `raw`: the gradients still held it.

        If the optimizer remembers them, the gradients of a tensor since the last measured step count, too.
        """
        told: dict[str, float | None] = {}
        for m in self._moments.read(arrived):
            told[m.name] = m.since
            if not raw:
                self.gauges.note("second-moment-lag", m.name, m.layer, step, m.lag)
        for w in watched:
            last = w.steps[-1] if w.steps else None
            norm = told.get(w.name, last.gradient_norm if last is not None and last.step == step else None)
            if norm is not None:
                self.gauges.note("gradient", w.name, w.layer, step, norm)
        if scale is not None:
            self.gauges.note("loss-scale", "GradScaler", "", step, scale)

    def look_between(self, step: int, optimizer: torch.optim.Optimizer | None, watched: Sequence[Watched]) -> None:
        """After a step that is not measured, in which something jumped."""
        riders = self._moments.look(optimizer, watched)
        if all(r.is_cpu for r in riders):  # no device is waited for
            for m in self._moments.read(riders, between=True):
                self.gauges.note("second-moment-lag", m.name, m.layer, step, m.lag, between=True)

    def note_looks(self, step: int, looks: Looks, crossed: bool) -> None:
        """Of the pass that counts. `crossed`: the loss is a cross entropy."""
        for layer, several in looks.heads.items():
            if any(t.shape != several[0].shape for t in several):
                continue
            calls = torch.stack(several)
            for head, (largest, entropy) in enumerate(zip(calls[:, 0].amax(0).tolist(), calls[:, 1].mean(0).tolist(), strict=True)):
                name = f"{layer or 'the model'}, head {head}" if calls.shape[-1] > 1 else layer
                self.gauges.note("attention-logit", name, layer, step, largest)
                self.gauges.note("attention-entropy", name, layer, step, entropy)
        for layer, values in looks.log_z.items() if crossed else ():
            self.gauges.note("log-z", layer, layer, step, abs(_mean(values)))
        for layer, values in looks.given.items():
            self.gauges.note("stream", layer, layer, step, _mean(values))
        for layer, values in looks.ranks.items():
            self.gauges.note("effective-rank", layer, layer, step, _mean(values))
        for choice in looks.routed():
            self._route(step, choice)

    def note_units(self, step: int, layers: Layers) -> None:
        """Once the layers of the step are on record."""
        for name, share in layers.dormant():
            self.gauges.note("dormant-share", name, name, step, share)

    def _route(self, step: int, choice: ExpertChoice) -> None:
        kept = self._routers.setdefault(choice.layer, [])
        if kept and (kept[0].experts, kept[0].chosen) != (choice.experts, choice.chosen):
            return
        kept.append(choice)
        del kept[1:-RECENT]
        total = sum(choice.numbers[:-1])
        for expert, load in enumerate(choice.numbers[:-1]):
            self.gauges.note("expert-load", f"{choice.layer or 'the model'}, expert {expert}", choice.layer, step, load / max(total, 1.0))

    def routers(self) -> tuple[Router, ...]:
        return tuple(_router(layer, kept) for layer, kept in self._routers.items())


def _mean(values: Sequence[torch.Tensor]) -> float:
    return math.fsum(v.item() for v in values) / len(values)


def _router(layer: str, kept: Sequence[ExpertChoice]) -> Router:
    last = kept[-RECENT:]
    tokens = sum(c.tokens for c in last)
    entropy = math.fsum(c.numbers[-1] * c.tokens for c in last) / max(1, tokens)
    return Router(layer, kept[0].experts, kept[0].chosen, tokens, _loads(last), _loads(kept[:1]), entropy)


def _loads(choices: Sequence[ExpertChoice]) -> tuple[float, ...]:
    counts = [math.fsum(counts) for counts in zip(*(c.numbers[:-1] for c in choices), strict=True)]
    total = math.fsum(counts) or 1.0
    return tuple(c / total for c in counts)
