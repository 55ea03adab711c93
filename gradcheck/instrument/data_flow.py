"""What feeds what, read backwards from the autograd graph of the first step: norms, linear layers in a row, residual streams."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from gradcheck.instrument import kinds, recorded_calls
from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.graph_structure import Graph, Node, parents
from gradcheck.instrument.recorded_calls import Seen, SeenDropout, SeenNorm, SeenSum
from gradcheck.types.location import Location
from gradcheck.types.structure import LinearPair, Norm, Stream

FAR = 60  # the most nodes that a walk goes back
DROPOUT_REACH = 2  # linear or conv layers between a dropout and the normalization that it disturbs
PRODUCTS = frozenset("Bmm Baddbmm ScaledDotProductFlashAttention ScaledDotProductEfficientAttention".split())
AVERAGES = frozenset("AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D".split())


@dataclass(frozen=True)
class Linked:
    norms: tuple[Norm, ...] = ()
    pairs: tuple[LinearPair, ...] = ()
    streams: tuple[Stream, ...] = ()


def read(
    graph: Graph | None, calls: Sequence[Call], seen: Sequence[Seen], sites: Mapping[str, Location | None], stopped: Container[Node] = ()
) -> Linked:
    """All three; call it before the backward pass, which frees what the nodes remember. Without a graph, what was seen of batch norms.

    `stopped`: values that the loss takes without gradient as well.
    """
    if graph is None:
        return Linked(refused(seen, sites))
    recorded_calls.read(seen)
    links = DataFlow(graph, calls, seen, sites, stopped)
    return Linked(links.norms(), links.pairs(), links.streams())


def refused(seen: Sequence[Seen], sites: Mapping[str, Location | None]) -> tuple[Norm, ...]:
    """Batch normalizations that raised, the last one first."""
    norms = [s for s in reversed(seen) if isinstance(s, SeenNorm) and s.raised is not None]
    return tuple(Norm(s.layer, sites.get(s.layer) or s.site, True, values=s.values, of_batch=s.of_batch, raised=s.raised) for s in norms)


class DataFlow:
    """Walks from what takes a value to what made it."""

    def __init__(
        self, graph: Graph, calls: Sequence[Call], seen: Sequence[Seen], sites: Mapping[str, Location | None], stopped: Container[Node] = ()
    ) -> None:
        self.graph, self.sites, self.stopped = graph, sites, stopped
        self.calls = [c for c in calls if c.kind in kinds.LEAF_KINDS and c.output_node in graph]
        self.makers: dict[Node, Call] = {}
        for call in self.calls:
            self.makers.setdefault(call.output_node, call)
        self.dropouts = {s.node: s for s in seen if isinstance(s, SeenDropout) and s.node is not None}
        self.batch_norms = {s.node: s for s in seen if isinstance(s, SeenNorm) and s.node is not None}
        self.order = [s for s in seen if isinstance(s, SeenNorm)]
        self.sums = {s.node: s for s in seen if isinstance(s, SeenSum) and s.node in graph}

    # ------------------------------------------------------------------- walking

    def live(self, node: Node) -> list[Node]:
        """Parents that carry activations: not parameters, nor views of them."""
        return [p for p in self.graph.before(node) if not self._constant(p)]

    @staticmethod
    def _constant(node: Node) -> bool:
        for _ in range(4):
            if hasattr(node, "variable"):
                return True
            if kinds.node_name(node) not in kinds.NODE_MOVES or len(parents(node)) != 1:
                return False
            node = parents(node)[0]
        return False

    def data(self, call: Call) -> Node | None:
        """The one activation that a call takes; None when it takes several, or none that carries gradient."""
        nodes = [n for n in dict.fromkeys(call.input_nodes) if n in self.graph and not self._constant(n)]
        return nodes[0] if len(nodes) == 1 else None

    def affine_parent(self, node: Node) -> Node | None:
        """The node before an affine operation on one activation: moves, dropout, averages, scalars, parameters added or multiplied."""
        if node in self.dropouts:
            return self.dropouts[node].source
        name, live = self.graph.names.get(node), self.live(node)
        if name is None or len(live) != 1:
            return None
        if name in kinds.NODE_MOVES or name in AVERAGES or name in ("Add", "Sub"):
            return live[0]
        return live[0] if name in ("Mul", "Div") and self._by_constant(node) else None

    @staticmethod
    def _by_constant(node: Node) -> bool:
        """Whether a product's other factor is a parameter or a number. A tensor of the batch may make it a ReLU: x * (x > 0)."""
        if len(parents(node)) > 1:
            return True
        try:
            other = node._saved_other
        except (RuntimeError, AttributeError):
            return False
        return not isinstance(other, torch.Tensor) or other.numel() == 1

    def move_parent(self, node: Node) -> Node | None:
        live = self.live(node)
        return live[0] if self.graph.names.get(node) in kinds.NODE_MOVES and len(live) == 1 else None

    # --------------------------------------------------------------------- norms

    def norms(self) -> tuple[Norm, ...]:
        """Every call of a normalization, in order; then batch normalizations outside of norm layers."""
        calls = [(c, self._batch_norm(c)) for c in self.calls if c.kind == "norm" and not self._weights(c)]
        found = [self._norm(c, s) for c, s in calls]
        covered = {s for _, s in calls if s is not None}
        return (*found, *(self._norm(None, s) for s in self.order if s not in covered))

    def _weights(self, call: Call) -> bool:
        """Whether a call normalises weights: standardised ones are not activations."""
        return bool(call.input_nodes) and all(self._constant(n) for n in call.input_nodes)

    def _batch_norm(self, call: Call) -> SeenNorm | None:
        """The batch normalization inside a call of a norm: its own node, or one that the same module made."""
        seen = self.batch_norms.get(call.output_node)
        if seen is not None or call.module is None:
            return seen
        return next((s for s in self.batch_norms.values() if s.layer == call.name), None)

    def _norm(self, call: Call | None, seen: SeenNorm | None) -> Norm:
        if seen is None:
            assert call is not None
            return Norm(call.name, call.site or self.sites.get(call.name), False, self._added(call))
        name = call.name if call is not None else seen.layer
        fed, dropout, near = self._fed(seen), *self._dropout(seen.source)
        return Norm(
            name,
            self.sites.get(name) or (call.site if call is not None else None) or seen.site,
            True,
            call is not None and self._added(call),
            seen.values,
            self.order.index(seen),
            seen.of_batch,
            seen.momentum,
            seen.tracks,
            seen.fresh is not None and bool(seen.fresh),
            seen.trains,
            fed,
            dropout.layer if dropout else None,
            dropout.rate if dropout else 0.0,
            _number(dropout.shift) if dropout and near else None,
            seen.raised,
        )

    def _fed(self, seen: SeenNorm) -> str | None:
        node = seen.source
        for _ in range(FAR):
            if node is None or node not in self.graph or len(self.graph.consumers[node]) != 1:
                return None
            maker = self.makers.get(node)
            if maker is not None:
                return maker.name if maker.kind in ("linear", "conv") and seen.features in maker.shape[1:] else None
            node = self.move_parent(node)
        return None

    def _dropout(self, node: Node | None) -> tuple[SeenDropout | None, bool]:
        """The dropout that reaches a normalization, and whether it does so directly."""
        weighted, near = 0, True
        for _ in range(FAR):
            if node is None or node not in self.graph:
                break
            if node in self.dropouts:
                return self.dropouts[node], near
            maker = self.makers.get(node)
            if maker is not None and maker.kind in ("linear", "conv", "activation"):
                near = False
                weighted += maker.kind != "activation"
                node = self.data(maker) if weighted <= DROPOUT_REACH else None
                continue
            if maker is not None and maker.kind != "dropout":
                break
            live, name = self.live(node), self.graph.names[node]
            passes = len(live) == 1 and (name in kinds.NODE_TRANSPARENT or name in kinds.NODE_ACTIVATIONS)
            near = near and name in kinds.NODE_MOVES
            node = live[0] if passes else self.affine_parent(node)
        return None, False

    def _added(self, call: Call) -> bool:
        node = self.data(call)
        inside = self.graph.between(call.output_node, node, 4 * FAR) if node is not None else set()
        for _ in range(FAR):
            if node is None or not set(self.graph.consumers[node]) <= inside:
                return False
            live = self.live(node)
            if self.graph.names[node] == "Add" and len(live) == 2:
                return any(self._normalised(p) for p in live)
            inside, node = {node}, self.move_parent(node)
        return False

    def _normalised(self, node: Node | None) -> bool:
        """Whether a value is the output of a normalization, moved about at most."""
        for _ in range(FAR):
            if node is None:
                return False
            maker = self.makers.get(node)
            if maker is not None:
                return maker.kind == "norm"
            node = self.dropouts[node].source if node in self.dropouts else self.move_parent(node)
        return False

    # --------------------------------------------------------------------- pairs

    def pairs(self) -> tuple[LinearPair, ...]:
        """Pairs that hold for every call of both layers."""
        found: dict[str, list[LinearPair | None]] = {}
        for call in self.calls:
            if call.kind in ("linear", "conv"):
                found.setdefault(call.name, []).append(self._pair(call))
        firsts = [p.first for pairs in found.values() for p in pairs if p is not None]
        calls = {name: len(pairs) for name, pairs in found.items()}
        return tuple(
            p
            for pairs in found.values()
            if (p := pairs[0]) is not None
            and all(q is not None and q.first == p.first for q in pairs)
            and firsts.count(p.first) == calls[p.first]
        )

    def _pair(self, call: Call) -> LinearPair | None:
        node, alone, batch_norm = self.data(call), True, False
        for _ in range(FAR):
            if node is None or node not in self.graph:
                return None
            alone = alone and len(self.graph.consumers[node]) == 1 and node not in self.stopped
            maker = self.makers.get(node)
            if maker is not None and maker.kind in kinds.WEIGHTED_KINDS:
                return self._made_pair(maker, call, alone, batch_norm) if maker.kind == call.kind else None
            if node in self.batch_norms:
                node, batch_norm = self.batch_norms[node].source, True
            elif maker is not None and maker.kind != "dropout":
                return None
            else:
                node = self.affine_parent(node)
        return None

    def _made_pair(self, first: Call, second: Call, alone: bool, batch_norm: bool) -> LinearPair | None:
        one, other = _sizes(first), _sizes(second)
        if one is None or other is None or other[0] != one[1]:
            return None
        return LinearPair(first.name, second.name, one[0], one[1], other[1], alone, self._product(first), batch_norm)

    def _product(self, call: Call) -> bool:
        node = self.data(call)
        for _ in range(FAR):
            if node is None or node not in self.graph:
                return False
            maker = self.makers.get(node)
            if (maker is not None and maker.kind == "attention") or self.graph.names[node] in PRODUCTS:
                return True
            node = self.move_parent(node) if maker is None else None
        return False

    # ------------------------------------------------------------------- streams

    def streams(self) -> tuple[Stream, ...]:
        """Residual streams of at least two sums."""
        bypass = {node: self._bypass(s) for node, s in self.sums.items()}
        before = {node: self._earlier(s, bypass[node]) for node, s in self.sums.items()}
        taken = set(before.values())
        ends = [node for node in self.sums if node not in taken and bypass[node] is not None]
        last = {self._earlier_sum(self.data(c)) for c in self.calls if c.kind == "norm"}
        streams = (self._stream(list(self._chain(end, before)), bypass, end in last) for end in ends)
        return tuple(s for s in streams if s is not None)

    def _bypass(self, seen: SeenSum) -> int | None:
        """Which of the two terms is used elsewhere too: the one that goes around the branch."""
        shared = [i for i, n in enumerate(seen.sources) if n in self.graph and len(self.graph.consumers[n]) > 1]
        return shared[0] if len(shared) == 1 else None

    def _earlier(self, seen: SeenSum, bypass: int | None) -> Node | None:
        return None if bypass is None else self._earlier_sum(seen.sources[bypass])

    def _earlier_sum(self, node: Node | None) -> Node | None:
        """The sum that a value comes from, with at most moves, scalings, pooling or an activation in between."""
        for _ in range(FAR):
            if node is None or node not in self.graph:
                return None
            if node in self.sums:
                return node
            maker, live = self.makers.get(node), self.live(node)
            if maker is not None and maker.kind == "activation":
                node = self.data(maker)
            elif maker is not None and maker.kind != "dropout":
                return None
            elif len(live) == 1 and self.graph.names[node] in kinds.NODE_TRANSPARENT | kinds.NODE_ACTIVATIONS.keys():
                node = live[0]
            else:
                node = self.affine_parent(node)
        return None

    def _chain(self, end: Node, before: dict[Node, Node | None]) -> Iterator[Node]:
        node: Node | None = end
        while node is not None:
            yield node
            node = before[node]

    def _stream(self, nodes: list[Node], bypass: dict[Node, int | None], normalized: bool) -> Stream | None:
        nodes.reverse()
        steps = [(self.sums[n], i) for n in nodes if (i := bypass[n]) is not None]
        if len(steps) < 2:
            return None
        sizes = [(_number(s.second if i else s.first), _number(s.first if i else s.second)) for s, i in steps]
        end = _number(steps[-1][0].size)
        if end is None or any(a is None or b is None or a == 0 for a, b in sizes):
            return None
        ratios = tuple(b / a for a, b in sizes if a and b is not None)
        return Stream(tuple(s.layer for s, _ in steps), steps[0][0].site, sizes[0][0] or 0.0, end, ratios, normalized)


def _number(value: torch.Tensor | None) -> float | None:
    number = value.item() if value is not None else math.nan
    return number if math.isfinite(number) else None


def _sizes(call: Call) -> tuple[int, int] | None:
    """Inputs per unit over all positions of a kernel, and units; None for transposed, grouped and other weights."""
    module = call.module
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, _ConvNd):
        return (module.in_channels, module.out_channels) if module.groups == 1 and not module.transposed else None
    weight = call.weight if module is None else getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() < 2 or not call.shape:
        return None
    if call.kind == "conv":
        channels = call.shape[1] if len(call.shape) == weight.dim() else call.shape[0]
        return (weight.shape[1], channels) if channels == weight.shape[0] else None
    units = call.shape[-1]
    if weight.dim() != 2 or units not in weight.shape:
        return None
    return (weight.shape[1] if weight.shape[0] == units else weight.shape[0]), units
