"""The shape of the computation, read from the autograd graph: what follows what, what is bypassed, what is never reached."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gradcheck.instrument import kinds
from gradcheck.instrument.activation_recorder import Call
from gradcheck.workload.sharding import as_held

Node = Any
MOST_HEADS = 64  # that nets are told apart by
DEEP = 5_000  # nodes of a graph that must be freed with care, see `release_graphs`
MOST_UPSTREAM = 100_000  # nodes that `upstream_leaves` looks at
_walked: list[list[Node]] = []  # nodes of such graphs, producers before consumers


@dataclass(frozen=True)
class Downstream:
    """What becomes of a call's output; the fields of `Layer` of the same names."""

    activation: str | None = None
    normalized: bool = False
    residual: bool = False
    gate: bool = False
    head: bool = False
    trained: bool = False
    depth: int | None = None
    nets: frozenset[int] = frozenset()


class Graph:
    """The autograd graph behind a loss. Nodes are compared by identity, and live as long as this object."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.parents: dict[Node, list[Node]] = {}  # asked for once: torch makes the answer anew each time
        self.order = _topological(root, self.parents)  # consumers before producers
        self.consumers: dict[Node, list[Node]] = {node: [] for node in self.order}
        for node in self.order:
            for parent in self.parents[node]:
                self.consumers[parent].append(node)
        self.names = {node: kinds.node_name(node) for node in self.order}
        remember(self.order, len(self.order))

    def __contains__(self, node: Node) -> bool:
        return node in self.consumers

    def before(self, node: Node) -> list[Node]:
        """Its parents, also of a node that the loss does not depend on."""
        return self.parents[node] if node in self.parents else parents(node)

    def between(self, end: Node, start: Node, most: int) -> set[Node]:
        """Nodes behind `end` up to `start`, which is a few steps away; `most` of them, about."""
        found, queue = {end}, [end]
        while queue and len(found) < most:
            for parent in self.before(queue.pop()):
                if parent is not start and parent not in found and parent in self:
                    found.add(parent)
                    queue.append(parent)
        return found

    def leaves(self) -> list[torch.Tensor]:
        """Tensors that the loss sends gradient to."""
        return as_held(node.variable for node in self.order if hasattr(node, "variable"))

    def fates(self, calls: Iterable[Call]) -> dict[int, Downstream]:
        """The fate of each call, by id(call)."""
        by_input: dict[Node, list[Call]] = {}
        calls = list(calls)
        for call in calls:
            if call.kind in kinds.LEAF_KINDS:
                for node in call.input_nodes:
                    by_input.setdefault(node, []).append(call)
        weighted = {c.output_node for c in calls if c.output_node is not None and c.kind in kinds.WEIGHTED_KINDS}
        below: dict[Node, bool] = {}  # a weighted layer lies between the node and the loss
        for node in self.order:
            below[node] = any(c in weighted or below[c] for c in self.consumers[node])
        depth, nets = self._depths(weighted), self._nets(calls, below)

        def fate(call: Call) -> Downstream:
            start = call.output_node
            if start is None or start not in self:
                return Downstream()
            walk = _Walk(self, call, by_input, weighted)
            walk.run(start)
            return Downstream(walk.activation, walk.normalized, walk.residual, walk.gate, not below[start], True, depth[start], nets[start])

        return {id(call): fate(call) for call in calls}

    def _depths(self, weighted: set[Node]) -> dict[Node, int]:
        """Weighted layers on the longest way from the input to each node, itself included."""
        depth: dict[Node, int] = {}
        for node in reversed(self.order):
            depth[node] = max((depth[p] for p in self.parents[node]), default=0) + (node in weighted)
        return depth

    def _nets(self, calls: Iterable[Call], below: dict[Node, bool]) -> dict[Node, frozenset[int]]:
        """The nets that each node is part of. A net is everything before one head, unless another head's net holds all of it and more.
        Actor and critic, the towers of a retrieval model and the members of an ensemble are nets of their own. A trunk is part of several.
        What comes after the heads is part of the nets it depends on.
        """
        layers = {c.output_node: c.name for c in calls if c.kind in kinds.WEIGHTED_KINDS and c.output_node in self}
        heads = {name: i for i, name in enumerate(dict.fromkeys(layers[n] for n in layers if not below[n]))}
        if len(heads) > MOST_HEADS:
            return dict.fromkeys(self.order, frozenset())
        own = {node: 1 << heads[layers[node]] for node in layers if not below[node]}
        ahead: dict[Node, int] = {}
        for node in self.order:
            ahead[node] = own.get(node, 0)
            for consumer in self.consumers[node]:
                ahead[node] |= ahead[consumer]
        behind: dict[Node, int] = {}
        for node in reversed(self.order):
            behind[node] = own.get(node, 0)
            for parent in self.parents[node]:
                behind[node] |= behind[parent]
        inside = [{layers[n] for n in layers if below[n] and ahead[n] >> i & 1} for i in range(len(heads))]
        net = _numbered(inside)
        known: dict[int, frozenset[int]] = {}
        for node in self.order:
            mask = ahead[node] or behind[node]
            if mask not in known:
                known[mask] = frozenset(net[i] for i in range(len(heads)) if mask >> i & 1)
        return {node: known[ahead[node] or behind[node]] for node in self.order}


def _numbered(sets: list[set[str]]) -> list[int]:
    """For each set, the number of the largest one that holds all of it; of equal ones, the first."""
    largest = sorted(range(len(sets)), key=lambda i: (-len(sets[i]), i))
    return [next(j for j in largest if sets[i] <= sets[j]) for i in range(len(sets))]


class _Walk:
    """A walk from a call's output towards the loss, through operations that do not change values, up to those that do."""

    LIMIT = 200

    def __init__(self, graph: Graph, call: Call, by_input: dict[Node, list[Call]], weighted: set[Node]) -> None:
        self.graph, self.call, self.by_input, self.weighted = graph, call, by_input, weighted
        self.activation: str | None = None
        self.normalized = self.residual = self.gate = False

    def run(self, start: Node) -> None:
        seen, queue = {start}, [start]
        while queue and len(seen) < self.LIMIT:
            node = queue.pop()
            inside = self._entered(node)
            for consumer in self.graph.consumers[node]:
                if consumer not in seen and consumer not in inside and self._passes(consumer):
                    seen.add(consumer)
                    queue.append(consumer)

    def _entered(self, node: Node) -> set[Node]:
        """Nodes inside the layers that take this value: what a layer is says more than the arithmetic in it."""
        inside: set[Node] = set()
        for taker in self.by_input.get(node, ()):
            if taker is self.call or taker.output_node is None or taker.output_node is node or taker.kind == "dropout":
                continue
            if taker.kind == "norm":
                self.normalized = True
            elif taker.kind == "activation":
                self.activation = self.activation or taker.function
            elif taker.kind == "softmax" and "log" not in taker.type.lower():
                self.activation = self.activation or "softmax"
            inside |= self.graph.between(taker.output_node, node, self.LIMIT)
        return inside

    def _passes(self, node: Node) -> bool:
        name = self.graph.names[node]
        if node in self.weighted:
            return False
        if name in kinds.NODE_NORMS:
            self.normalized = True
            return False
        if name in kinds.NODE_ACTIVATIONS:
            if name != "LogSoftmax":
                self.activation = self.activation or kinds.NODE_ACTIVATIONS[name]
            return False
        if name in ("Add", "Sub"):
            if self._several(node):
                self.residual = True
                return False
            return True
        if name == "Mul":
            if self._several(node):
                self.gate = True
                return False
            return True
        return name in kinds.NODE_TRANSPARENT

    def _several(self, node: Node) -> bool:
        """Whether it joins several activations."""
        return sum(not hasattr(p, "variable") for p in self.graph.parents[node]) > 1


def parents(node: Node) -> list[Node]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _topological(root: Node, known: dict[Node, list[Node]]) -> list[Node]:
    """All nodes, each after every node that consumes it. Their parents are filed in `known`."""
    pending: dict[Node, int] = {root: 0}
    stack = [root]
    while stack:
        node = stack.pop()
        known[node] = parents(node)
        for parent in known[node]:
            if parent not in pending:
                pending[parent] = 0
                stack.append(parent)
            pending[parent] += 1
    order, ready = [], [root]
    while ready:
        node = ready.pop()
        order.append(node)
        for parent in known[node]:
            pending[parent] -= 1
            if pending[parent] == 0:
                ready.append(parent)
    return order


def upstream_leaves(starts: Iterable[Node]) -> list[torch.Tensor]:
    """Leaf tensors that the given nodes were computed from."""
    seen: set[Node] = set()
    stack = [n for n in starts if n is not None]
    leaves = []
    while stack and len(seen) < MOST_UPSTREAM:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack.extend(p for p in parents(node) if p not in seen)
    remember(seen, len(seen))
    return as_held(leaves)


def remember(nodes: Iterable[Node], count: int) -> None:
    """Nodes that Python has seen, until `release_graphs`."""
    if count > DEEP:
        _walked.append(sorted(nodes, key=lambda node: int(node._sequence_nr())))


def release_graphs() -> None:
    """Call it when a graph that was walked here is no longer needed: frees it node by node, consumers first. torch frees nodes that Python
    has seen recursively, which overflows the stack at 70,000 (measured, torch 2.13).
    """
    while _walked:
        nodes = _walked.pop()
        while nodes:
            nodes.pop()


def producer(tensor: torch.Tensor) -> tuple[str | None, Node]:
    """Canonical name and node of the function that made a tensor, shape changes skipped but not pooling: "softmax", "relu", ...

    A mean over positions of a ReLU's output is no longer a ReLU output (SqueezeNet ends like this, and trains).
    """
    node = tensor.grad_fn
    for _ in range(50):
        if node is None:
            return None, None
        name = kinds.node_name(node)
        if name in kinds.NODE_ACTIVATIONS:
            return kinds.NODE_ACTIVATIONS[name], node
        if name not in kinds.NODE_MOVES or not node.next_functions:
            return name.lower(), node
        node = node.next_functions[0][0]
    return None, None
