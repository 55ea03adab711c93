"""What the first step shows: loss calls and their chance level, softmaxes, cuts, hidden tensors. Read while the graph exists."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.instrument import disconnected, handwritten_loss, zero_derivatives
from gradcheck.instrument import loss_calls as losses
from gradcheck.instrument.first_pass_recorder import FirstPassRecorder, SeenSoftmax
from gradcheck.instrument.graph_structure import Graph, producer
from gradcheck.instrument.loss_calls import IGNORED
from gradcheck.measure.parameters import Watched
from gradcheck.training.clip import gradient_of, norms_of
from gradcheck.types.checks import Difference, LossOperation
from gradcheck.types.layers import LayerKind
from gradcheck.types.location import Location
from gradcheck.types.losses import BroadcastMix, LossCall, Scramble, Softmax
from gradcheck.types.measurement import Entering, Similarity
from gradcheck.types.parameters import Cut, HiddenTensor, ZeroDerivative
from gradcheck.types.structure import Shared
from gradcheck.workload.assignments import assignment_of
from gradcheck.workload.device import on_host
from gradcheck.workload.lockstep import whole_norms
from gradcheck.workload.tensors import batch_size, named_tensors
from gradcheck.workload.training_copy import TrainingCopy
from gradcheck.workload.workload import Workload

REST = 0.2  # of the loss, besides those that are known: a penalty
_MOST_BETWEEN = 8  # operations between a layer and the softmax of its output: a scale, a mask, a tanh, views
_FIRST_KINDS = ("linear", "conv", "recurrent", "embedding", "norm")


@dataclass(frozen=True)
class MainLoss:
    """The one loss call that the whole loss consists of, and where its target lies in a batch."""

    target: str
    function: str
    options: Mapping[str, Any]
    weight: float


@dataclass
class FirstStep:
    losses: tuple[LossCall, ...] = ()
    softmaxes: tuple[Softmax, ...] = ()
    similarities: tuple[Similarity, ...] = ()
    mixes: tuple[BroadcastMix, ...] = ()
    scrambles: tuple[Scramble, ...] = ()
    shared: tuple[Shared, ...] = ()
    loss_operations: tuple[LossOperation, ...] = ()
    differences: tuple[Difference, ...] = ()
    entering: tuple[Entering, ...] = ()
    cuts: tuple[Cut, ...] = ()
    zero_derivatives: tuple[ZeroDerivative, ...] = ()
    hidden: tuple[HiddenTensor, ...] = ()
    first_kind: LayerKind | None = None
    targets: list[torch.Tensor] = field(default_factory=list)  # one a batch, where the loss takes a tensor of the batch
    classes: int | None = None
    ignore_index: int = IGNORED
    chance: float | None = None
    floor: float = 0.0
    main: MainLoss | None = None

    def levels_on(self, batch: Any) -> tuple[float | None, float]:
        """Loss of the best constant prediction on one small batch, and of the best there is; None unless the loss is a single known one."""
        if self.main is None or self.chance is None or len(self.losses) != 1:
            return None, 0.0
        target = dict(named_tensors(batch)).get(self.main.target)
        if target is None:
            return None, 0.0
        known = self.main.function, self.classes, on_host([target]), self.main.options
        chance, _ = losses.chance_level(*known, fewest_labels=0)
        return self.main.weight * chance if chance else None, self.main.weight * losses.floor_level(*known)


def read(
    taps: FirstPassRecorder,
    graph: Graph | None,
    copy: TrainingCopy,
    watched: Sequence[Watched],
    workload: Workload,
    sites: Mapping[str, Location | None],
    loss: float,
    elsewhere: Callable[[], Iterable[int]] = tuple,
) -> FirstStep:
    """Call it after the backward pass of the first step, before the optimizer's. Marks the parameters that the loss reaches. `elsewhere`:
    ids of what other optimizers of the process hold.
    """
    leaves = graph.leaves() if graph is not None else []
    reached = {id(t) for t in leaves}
    for w in watched:
        w.used = id(w.tensor) in reached
    unreached = {id(w.tensor): w.name for w in watched if w.tensor.requires_grad and w.tensor.grad is None}
    zero = _zero_gradients(watched)
    trained = {id(w.tensor): w.name for w in watched if w.tensor.requires_grad}
    called = {c.name for c in taps.calls}
    batch = workload.batches[0]
    optimized = {id(p) for group in copy.optimizer.param_groups for p in group["params"]}
    first = next((c.kind for c in taps.calls if c.kind in _FIRST_KINDS), None)
    said = FirstStep(
        losses=loss_calls(taps, sites),
        softmaxes=tuple(_softmax(seen, taps, batch_size(batch)) for seen in taps.softmaxes),
        similarities=tuple(dict.fromkeys(taps.similarities.found)),
        mixes=tuple(taps.mixes),
        scrambles=tuple(taps.scrambles.found.values()),
        shared=tuple(_shared(copy.model, taps, sites)),
        loss_operations=handwritten_loss.operations(taps.operations, graph, taps.calls) if graph is not None else (),
        differences=handwritten_loss.differences(taps.differences, batch, workload.made, graph),
        entering=taps.entrances.read(),
        cuts=disconnected.cuts(unreached, zero, taps.cuts.values(), called, {w.name: w.layer for w in watched}, sites),
        zero_derivatives=zero_derivatives.places(taps.zeros, graph, trained, functools.partial(_made, copy.model, sites)),
        hidden=disconnected.hidden(copy.model, leaves, taps.hidden.values(), batch, optimized, copy.sites, elsewhere),
        first_kind=first,
    )
    _targets(said, taps, workload, loss)
    return said


def _made(model: nn.Module, sites: Mapping[str, Location | None], parameter: str) -> Location | None:
    """Where a parameter is made: in the class of the user's module that holds it, or with the layer of torch that does."""
    path, _, name = parameter.rpartition(".")
    return assignment_of(model.get_submodule(path), name) or sites.get(path)


def _zero_gradients(watched: Sequence[Watched]) -> dict[int, str]:
    """Parameters whose gradient is zero everywhere, by id."""
    graded = [(w, g) for w in watched if w.tensor.requires_grad and (g := gradient_of(w.tensor)) is not None]
    norms = whole_norms([w.tensor for w, _ in graded], norms_of([g for _, g in graded]))
    return {id(w.tensor): w.name for (w, _), norm in zip(graded, norms, strict=True) if norm == 0.0}


def loss_calls(taps: FirstPassRecorder, sites: Mapping[str, Location | None]) -> tuple[LossCall, ...]:
    losses.read(taps.losses)
    return tuple(_loss_call(seen, taps, sites) for seen in taps.losses)


def _loss_call(seen: losses.SeenLoss, taps: FirstPassRecorder, sites: Mapping[str, Location | None]) -> LossCall:
    name, node = producer(seen.input)
    maker = next((c for c in taps.calls if c.output_node is node), None) if node is not None else None
    softmax = next((s for s in taps.softmaxes if s.node is node), None) if node is not None else None
    layer = maker.name if maker else softmax.layer if softmax else None
    site = (maker.site or sites.get(maker.name)) if maker else softmax.site if softmax else None
    cosine = next((place for made, place in taps.similarities.cosines if made is node), False) if node is not None else False
    if not isinstance(cosine, bool):
        name, site = "cosine", cosine
    return losses.facts(seen, name, layer, site)


def _softmax(seen: SeenSoftmax, taps: FirstPassRecorder, size: int) -> Softmax:
    ends = {producer(call.input)[1] for call in taps.losses}
    first = seen.axis == 0 and len(seen.shape) >= 2
    second = seen.axis == 1 and len(seen.shape) >= 3 and seen.shape[0] != size  # views or time before the samples
    over_batch = (first or second) and seen.shape[seen.axis] == size > 1
    to_loss = seen.node is not None and seen.node in ends
    single = _single(seen, taps) if seen.shape[seen.axis] == 1 else None
    return Softmax(seen.layer, seen.site, seen.shape, seen.axis, seen.implicit, seen.log, to_loss, over_batch, single)


def _single(seen: SeenSoftmax, taps: FirstPassRecorder) -> str | None:
    """The layer with one unit that a softmax of one entry is taken of, whatever is done to each entry in between."""
    makers = {id(c.output_node): c for c in taps.calls if c.kind in ("linear", "conv") and c.output_node is not None}
    node = seen.node
    for _ in range(_MOST_BETWEEN):
        node = node.next_functions[0][0] if node is not None and node.next_functions else None
        if id(node) in makers:
            maker = makers[id(node)]
            return maker.name if maker.shape[1 if maker.kind == "conv" else -1] == 1 else None
    return None


def _shared(model: nn.Module, taps: FirstPassRecorder, sites: Mapping[str, Location | None]) -> Iterator[Shared]:
    """Modules with weights that one parent holds several times: heads that were meant to be different, and are one."""
    for path, parent in model.named_modules():
        held = [(f"{path}.{name}" if path else name, child) for name, child in parent._modules.items() if child is not None]
        names: dict[int, list[str]] = {}
        for name, child in held:
            names.setdefault(id(child), []).append(name)
        for child in {id(c): c for _, c in held if len(names[id(c)]) > 1 and any(True for _ in c.parameters())}.values():
            calls: dict[tuple[int, ...], list[Any]] = {}
            for call in taps.calls:
                if call.module is child and call.input_nodes and call.output_node is not None:
                    calls.setdefault(tuple(map(id, call.input_nodes)), []).append(call.output_node)
            same = max(calls.values(), key=len, default=[])
            if len(same) > 1:
                there = [s.target for s in taps.losses if s.target is not None and producer(s.input)[1] in same]
                different = [t for i, t in enumerate(there) if not any(t.shape == o.shape and torch.equal(t, o) for o in there[:i])]
                mine = tuple(names[id(child)])
                yield Shared(mine, sites.get(mine[0]), len(same), len(different))


def _targets(said: FirstStep, taps: FirstPassRecorder, workload: Workload, loss: float) -> None:
    """Finds the target of the loss in every batch, and from all of them the chance level of the whole loss, and its floor.

    A target that the loop makes itself has a floor as well, which that of the first step stands for.
    """
    total = known = floor = whole = 0.0
    for seen, call in zip(taps.losses, said.losses, strict=True):
        weight = call.weight_in_total
        if seen.target is None or seen.host_target is None or weight is None or call.value is None:
            continue
        name = _name_in(workload.batches[0], seen.target)
        made = seen.target_made or name in workload.made
        targets = _entries((workload.uncut or workload).batches, name) if name is not None and not made else []
        there = on_host(targets) or [seen.host_target]
        whole += weight * call.value
        floor += weight * losses.floor_level(call.function, call.classes, there, seen.options)
        if made:
            continue
        chance, _ = losses.chance_level(call.function, call.classes, there, seen.options)
        if name is not None and targets and not said.targets:
            said.targets, said.classes = targets, call.classes
            said.ignore_index = losses.ignored(seen.options)
            said.main = MainLoss(name, call.function, seen.options, weight)
        if chance is not None:
            total += weight * chance
            known += weight * call.value
    if abs(loss - whole) <= REST * abs(loss):
        said.floor = floor
    rest = loss - known
    if known > 0 and total > 0 and abs(rest) <= REST * abs(loss):  # a penalty besides the known losses stays what it is
        said.chance = total + max(0.0, rest)


def _name_in(batch: Any, target: torch.Tensor) -> str | None:
    """Name of the batch's own tensor that the target is, or is a view of."""
    place = (target.data_ptr(), target.numel())
    return next((name for name, t in named_tensors(batch) if t is target or (t.data_ptr(), t.numel()) == place), None)


def _entries(batches: Sequence[Any], name: str) -> list[torch.Tensor]:
    found = [dict(named_tensors(b)).get(name) for b in batches]
    return [t for t in found if t is not None]
