"""What a loop does around its passes and steps, noted from its events: the facts that LOOP rules read, modes among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from gradcheck.instrument.loop_hooks import ClipKind, LoopListener
from gradcheck.instrument.running_code import here, outside
from gradcheck.instrument.schedulers import Schedulers
from gradcheck.instrument.traced_optimizer import TracedOptimizer
from gradcheck.types.location import Location
from gradcheck.types.loop import NEVER_EVALUATED, NO_SCALER, LoopBatches, LoopClip, LoopEvaluation, LoopLoad, LoopScaler
from gradcheck.workload.dtensor import local
from gradcheck.workload.source_sites import location_of_frame, origin_of


class Off(NamedTuple):
    """A module that ran with gradient, and what in it was not in training mode."""

    module: nn.Module
    ids: frozenset[int]  # of its parameters
    dropouts: tuple[str, ...]
    norms: tuple[str, ...]
    fresh: bool  # running statistics that had seen no batch


class Modes:
    def __init__(self) -> None:
        self.off: dict[int, Off] = {}
        self._known: dict[int, tuple[list[Any], list[Any]]] = {}

    def take(self, ids: frozenset[int]) -> list[Off]:
        """Takes out what was noted of modules that hold parameters with these ids."""
        mine = [m for m in self.off.values() if m.ids & ids]
        self.off = {k: m for k, m in self.off.items() if not m.ids & ids}
        return mine

    def look(self, module: nn.Module) -> None:
        """Which dropouts are off in the running module, and which trained normalizations do not follow their batches."""
        if id(module) not in self._known:
            self._known[id(module)] = _dropouts(module), _norms(module)
        dropouts, norms = self._known[id(module)]
        off = tuple(name for name, m in dropouts if not m.training)
        frozen = [(name, m) for name, m in norms if not m.training and (m.weight is None or m.weight.requires_grad)]
        fresh = any(m.num_batches_tracked is not None and not m.num_batches_tracked.item() for _, m in frozen)
        ids = frozenset(id(p) for p in module.parameters())
        self.off[id(module)] = Off(module, ids, off, tuple(n for n, _ in frozen), fresh)


def _dropouts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = []
    for name, m in module.named_modules():
        rate = getattr(m, "p", 0.0) if isinstance(m, nn.modules.dropout._DropoutNd) else getattr(m, "dropout", 0.0)
        recurrent = isinstance(m, (nn.RNNBase, nn.MultiheadAttention))
        if isinstance(rate, (int, float)) and rate > 0 and (isinstance(m, nn.modules.dropout._DropoutNd) or recurrent):
            found.append((name, m))
    return found


def _norms(module: nn.Module) -> list[tuple[str, Any]]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [(name, m) for name, m in module.named_modules() if isinstance(m, kinds) and m.running_mean is not None]


SHOWN_LAYERS = 20
MOST_EVAL_SITES = 64


@dataclass(eq=False)
class ClipCalls:
    """Calls of a clipping function at one place."""

    kind: ClipKind
    threshold: float
    site: Location | None
    owners: set[int] = field(default_factory=set)  # ids of the traced optimizers whose parameters it was given
    calls: int = 0
    parameters: int = 0
    empty: int = 0
    foreign: int = 0
    late: int = 0
    early: int = 0
    scaled: int = 0

    def record(self) -> LoopClip:
        counts = self.calls, self.parameters, self.empty, self.foreign, self.late, self.early, self.scaled
        return LoopClip(self.kind, self.threshold, *counts, site=self.site)


@dataclass(eq=False)
class Scaler:
    enabled: bool
    factor: float = 1.0
    scaled: int = 0
    steps: int = 0
    updates: int = 0
    step_site: Location | None = None
    scale_site: Location | None = None


class LoopJournal(LoopListener):
    """`optimizers` gives those of the loop, by id, `traced` what is known of one. `busy`: whether gradcheck's own code runs."""

    def __init__(
        self,
        optimizers: Callable[[], Mapping[int, TracedOptimizer]],
        traced: Callable[[Optimizer], TracedOptimizer | None],
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.busy, self.optimizers = busy, optimizers
        self.loads: dict[int, tuple[LoopLoad, dict[int, int]]] = {}  # by id of the module, with the steps of each optimizer before it
        self.schedulers = Schedulers(optimizers, traced, busy)
        self.clips: dict[tuple[str, Location | None], ClipCalls] = {}
        self.scaler: Scaler | None = None  # the first one
        self.by_scaler = False  # inside `scaler.step`
        self.loaders: dict[tuple[int | None, int | None], int] = {}  # by size of a batch and of the data: passes over it
        self.eval_sites: dict[int, Location | None] = {}
        self._asleep: set[int] = set()  # ids of scalers that were made not to scale

    # ------------------------------------------------------------------- events

    def scheduler_made(self, scheduler: Any) -> None:
        self.schedulers.made(scheduler)

    def schedule_moves(self, scheduler: Any, given: Any) -> None:
        self.schedulers.moves(scheduler, given)

    def state_loaded(self, module: nn.Module, state: Any, result: Any) -> None:
        frame = outside()
        if self.busy() or frame is None or origin_of(frame.f_code.co_filename) != "user" or not isinstance(state, Mapping):
            return
        own = {name: t for found in (module.named_parameters(), module.named_buffers()) for name, t in found}
        kind: Literal["none", "own"] | None = None
        if state and own and not any(name in own for name in state) and len(getattr(result, "unexpected_keys", ())) == len(state):
            kind = "none"
        elif state and all(_is_same(own.get(name), value) for name, value in state.items()):
            kind = "own"
        if kind is None:
            self.loads.pop(id(module), None)  # what was left out before has come now
        elif id(module) not in self.loads and len(self.loads) < MOST_EVAL_SITES:
            load = LoopLoad(kind, type(module).__name__, len(state), next(iter(state)), next(iter(own)), location_of_frame(frame))
            self.loads[id(module)] = load, {key: t.taken for key, t in self.optimizers().items()}

    def evaluated(self, module: nn.Module) -> None:
        if not self.busy() and len(self.eval_sites) < MOST_EVAL_SITES:
            self.eval_sites[id(module)] = here()

    def data_begun(self, loader: Any) -> None:
        self.schedulers.begins(loader)
        try:
            size = len(loader.dataset)
        except (TypeError, AttributeError, NotImplementedError):
            size = None
        key = getattr(loader, "batch_size", None), size
        self.loaders[key] = self.loaders.get(key, 0) + 1

    def scaler_made(self, scaler: Any, asked: bool) -> None:
        if asked:
            self.scaler = self.scaler or Scaler(scaler.is_enabled())
        else:
            self._asleep.add(id(scaler))

    def _seen(self, scaler: Any) -> Scaler | None:
        """What is noted of it. One that was made before anyone listened counts once it scales."""
        if id(scaler) in self._asleep:
            return None
        if self.scaler is None and scaler.is_enabled():
            self.scaler = Scaler(True)
        return self.scaler

    def scaled(self, scaler: Any, loss: torch.Tensor, result: torch.Tensor | None) -> None:
        seen = self._seen(scaler)
        if seen is not None:
            seen.scaled += 1
            seen.scale_site = seen.scale_site or here()

    def scaler_steps(self, scaler: Any) -> None:
        seen = self._seen(scaler)
        self.by_scaler = seen is not None
        if seen is not None:
            seen.steps += 1
            seen.step_site = seen.step_site or here()

    def scaler_stepped(self, scaler: Any, optimizer: Optimizer) -> None:
        self.by_scaler = False

    def scaler_updated(self, scaler: Any) -> None:
        seen = self._seen(scaler)
        if seen is not None:
            seen.updates += 1

    # ----------------------------------------------------- what listeners can tell

    def note_clip(self, kind: ClipKind, threshold: float, count: int, fault: str, owners: Sequence[TracedOptimizer] = ()) -> None:
        """`fault`: the name of the counter of LoopClip for what is wrong with this call; "" for nothing."""
        site = here()
        clip = self.clips.setdefault((kind, site), ClipCalls(kind, threshold, site))
        clip.owners.update(map(id, owners))
        clip.calls += 1
        clip.threshold, clip.parameters = threshold, count
        if fault:
            setattr(clip, fault, getattr(clip, fault) + 1)

    # -------------------------------------------------------------------- facts

    def scaling(self, bare: int) -> LoopScaler:
        """`bare`: steps on gradients that were still scaled."""
        s = self.scaler
        return LoopScaler(s.enabled, s.factor, s.scaled, s.steps, bare, s.updates, s.step_site, s.scale_site) if s else NO_SCALER

    def batches(self, compared: int, distinct: int, samples: int, rows: int | None, place: Location | None) -> LoopBatches:
        """`rows`: entries that the samples were cut out of, where no loader gave them."""
        sizes = [size for batch, size in self.loaders if batch == samples]
        available = max((n for n in sizes if n), default=rows)
        return LoopBatches(compared, distinct, samples, available, bool(sizes), place)

    def clips_of(self, traced: TracedOptimizer) -> tuple[LoopClip, ...]:
        return tuple(c.record() for c in self.clips.values() if id(traced) in c.owners or not c.owners)

    def facts(self, traced: TracedOptimizer) -> dict[str, Any]:
        """As `LoopFacts` names them."""
        schedules = self.schedulers
        return {
            "optimizer": traced.label,
            "schedules": schedules.calls,
            "schedulers": schedules.facts(traced),
            "schedule_site": schedules.step_site,
            "loads": tuple(load for load, taken in self.loads.values() if traced.taken > taken.get(id(traced.optimizer), 0)),
            **traced.facts(),
        }


def _is_same(mine: torch.Tensor | None, other: Any) -> bool:
    """Whether both are one tensor in memory; nothing is known of those without a place there."""
    if mine is None or not isinstance(other, torch.Tensor) or mine.layout is not torch.strided or other.layout is not torch.strided:
        return False
    return bool(local(mine).data_ptr()) and local(mine).data_ptr() == local(other).data_ptr()


@dataclass
class Evaluations:
    """Steps that are taken in evaluation mode."""

    steps: list[int] = field(default_factory=list)
    trained: bool = False  # a step before them was in training mode
    first: tuple[tuple[str, ...], tuple[str, ...], bool] = ((), (), False)  # what was off in the first of them

    def note(self, step: int, off: Sequence[Off], passes: bool = True) -> None:
        """`off`: of the modules that ran in the step and that the optimizer trains. `passes`: it followed a backward pass."""
        dropouts, norms = tuple(n for o in off for n in o.dropouts), tuple(n for o in off for n in o.norms)
        evaluated = bool(off) and all(not o.module.training for o in off)
        if evaluated and (dropouts or norms):
            self.first = self.first if self.steps else (dropouts, norms, any(o.fresh for o in off))
            self.steps.append(step)
        elif not self.steps:
            self.trained = self.trained or (passes and not evaluated)

    def record(self, site: Location | None) -> LoopEvaluation:
        if not self.steps:
            return NEVER_EVALUATED
        dropouts, norms, fresh = self.first
        return LoopEvaluation(len(self.steps), self.steps[0], self.trained, dropouts[:SHOWN_LAYERS], norms[:SHOWN_LAYERS], fresh, site)


def fault_of_clipping(given: Sequence[torch.Tensor], trained: bool | None, passes: bool, cleared: bool, stepped: bool, scaled: bool) -> str:
    """What is wrong with a call, as `LoopClip` counts it; "" for nothing.

    `trained`: some optimizer moves what it was given; None: there is none. `passes`: there are gradients that no step has used; `cleared`:
    there were some; `stepped`: some step was taken; `scaled`: they hold a scaler's factor.
    """
    if not given:
        return "empty"
    if not trained:
        return "foreign" if trained is not None else ""
    if not any(map(is_filled, given)):
        return "early" if not passes and not cleared else ""  # cleared gradients are a finding of their own
    if not passes:
        return "late" if stepped else ""
    return "scaled" if scaled else ""


def is_filled(parameter: torch.Tensor) -> bool:
    """Whether it has a gradient that is not zero."""
    return parameter.grad is not None and bool(fills(parameter.grad))


def fills(gradient: torch.Tensor) -> torch.Tensor:
    """Whether it is not zero, 0-d: waits for no device."""
    gradient = local(gradient)
    return (gradient.coalesce().values() if gradient.is_sparse else gradient).any()
