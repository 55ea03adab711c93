"""Recurrences written by hand, found in the autograd graph: a parameter applied again and again to what it made.

A loop over time takes a new slice of the input in each round. Blocks that share weights over depth, fixed points and refinements also apply
a parameter to its own result, but take nothing new: they are not recurrences over time.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.instrument import kinds
from gradcheck.instrument.graph_structure import Graph
from gradcheck.workload.device import wide

Node = Any

FEWEST_STEPS = 8  # shorter loops lose no gradient worth mentioning
LARGEST_GRAPH = 300_000  # nodes
NEW_SLICES = 0.75  # share of the rounds that must take a slice of the input which no other round takes
DEEPEST_TRACE = 40  # nodes looked at for the slice behind one input of a round
# Nodes that only reshape or normalise a parameter before it is used.
_WEIGHT_MOVES = kinds.NODE_MOVES | {"WeightNormInterface"}
_SEVERAL_OUTPUTS = ("Unbind", "Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Chunk")


@dataclass
class RecurrentChain:
    """Parameters of one module whose uses form a chain of `steps` rounds. `rounds[t]` are the nodes that use them in round t."""

    owner: str  # module name
    parameters: list[torch.Tensor]
    rounds: list[list[Node]]
    seen_at_every_step: bool
    squares: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.rounds)

    def listen(self) -> None:
        """Makes the next backward pass leave the gradient at each round."""
        self.squares = [0.0] * self.steps
        for t, nodes in enumerate(self.rounds):
            for node in nodes:
                node.register_prehook(self._take(t))

    def _take(self, t: int) -> Any:
        def hook(gradients: tuple[torch.Tensor | None, ...]) -> None:
            for g in gradients:
                if g is not None:
                    self.squares[t] += float(wide(g.detach()).square().sum())

        return hook

    def norms(self) -> list[float]:
        """2-norm of the loss's gradient at what the parameters compute, by round."""
        return [math.sqrt(x) if math.isfinite(x) else 0.0 for x in self.squares]


def find(graph: Graph, model: nn.Module, exclude: Iterable[torch.Tensor] = ()) -> list[RecurrentChain]:
    """The loops over time behind a loss; uses of `exclude` (inputs, weights of fused layers) do not count."""
    if len(graph.order) > LARGEST_GRAPH:
        return []
    uses = _uses(graph, {id(t) for t in exclude})
    chains: list[tuple[torch.Tensor, dict[Node, int], int]] = []
    for leaf, nodes in uses.chained():
        levels = _levels(graph, nodes)
        longest = max(levels[n] for n in nodes)
        if longest >= max(FEWEST_STEPS, NEW_SLICES * len(nodes)) and _takes_slices(graph, levels, longest, uses):
            chains.append((leaf, levels, longest))
    return list(_grouped(model, chains, uses))


@dataclass
class _Uses:
    """Where parameters are used, and which nodes hold nothing but (reshaped) parameters."""

    leaves: dict[int, torch.Tensor]  # by id
    nodes: dict[int, list[Node]]  # id of a leaf -> nodes that use it
    weights_only: dict[Node, frozenset[int]]

    def chained(self) -> Iterator[tuple[torch.Tensor, list[Node]]]:
        return ((self.leaves[key], nodes) for key, nodes in self.nodes.items() if len(nodes) >= FEWEST_STEPS)


def _uses(graph: Graph, exclude: set[int]) -> _Uses:
    uses = _Uses({}, {}, {})
    for node in reversed(graph.order):
        edges = [p for p, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            if id(leaf) not in exclude and leaf.requires_grad:
                uses.leaves[id(leaf)] = leaf
                uses.weights_only[node] = frozenset((id(leaf),))
            continue
        held = frozenset(key for p in edges for key in uses.weights_only.get(p, ()))
        if not held:
            continue
        if graph.names[node] in _WEIGHT_MOVES and all(p in uses.weights_only for p in edges):
            uses.weights_only[node] = held
            continue
        for key in held:
            uses.nodes.setdefault(key, []).append(node)
    return uses


def _levels(graph: Graph, nodes: Iterable[Node]) -> dict[Node, int]:
    """How many of `nodes` lie on the longest way from each node down to the leaves, itself included."""
    counted = set(nodes)
    levels: dict[Node, int] = {}
    for node in reversed(graph.order):
        below = max((levels[p] for p, _ in node.next_functions if p is not None), default=0)
        levels[node] = below + (node in counted)
    return levels


def _takes_slices(graph: Graph, levels: dict[Node, int], longest: int, uses: _Uses) -> bool:
    """Whether most rounds take something that no other round takes."""
    taken: dict[int, set[Any]] = {}
    for node, level in levels.items():
        if not level:
            continue
        for p, output in node.next_functions:
            if p is not None and not levels[p] and p not in uses.weights_only:
                taken.setdefault(level, set()).update(_slices(graph, p, output, uses))
    times: dict[Any, int] = {}
    for keys in taken.values():
        for key in keys:
            times[key] = times.get(key, 0) + 1
    new = sum(any(times[key] == 1 for key in keys) for keys in taken.values())
    return new >= NEW_SLICES * (longest - 1)


def _slices(graph: Graph, start: Node, output: int, uses: _Uses) -> set[Any]:
    """What names the part of the data behind a node: indices of slices, and the tensors that went into matrix products and embeddings."""
    found: set[Any] = set()
    stack: list[tuple[Node, int]] = [(start, output)]
    seen: set[tuple[Node, int]] = set()
    while stack and len(seen) < DEEPEST_TRACE:
        node, k = stack.pop()
        if node is None or (node, k) in seen or node in uses.weights_only:
            continue
        seen.add((node, k))
        key = _key(graph.names[node], node, k)
        if key is not None:
            found.add(key)
        else:
            stack += node.next_functions
    return found


def _key(name: str, node: Node, output: int) -> Any:
    if name in _SEVERAL_OUTPUTS:
        return name, id(node), output
    if name == "Select":
        return name, node._saved_dim, node._saved_index
    if name == "Slice":
        whole = node._saved_start == 0 and node._saved_end >= node._saved_self_sym_sizes[node._saved_dim]
        return None if whole else (name, node._saved_dim, node._saved_start)
    for attribute in ("_saved_indices", "_saved_index"):
        saved = getattr(node, attribute, None)
        tensors = [t for t in (saved if isinstance(saved, (tuple, list)) else (saved,)) if isinstance(t, torch.Tensor)]
        if tensors:
            several = any(t.numel() > 1 for t in tensors)  # one index: the number of the round, not data
            return (name, *(t.data_ptr() for t in tensors)) if several else None
    for attribute, edge in (("_saved_self", 0), ("_saved_mat1", 1), ("_saved_input", 0)):
        if name in ("Mm", "Addmm", "Bmm", "Convolution") and len(node.next_functions) > edge and node.next_functions[edge][0] is None:
            saved = getattr(node, attribute, None)
            if isinstance(saved, torch.Tensor):
                return name, saved.data_ptr()
    return None


def _grouped(model: nn.Module, chains: list[tuple[torch.Tensor, dict[Node, int], int]], uses: _Uses) -> Iterator[RecurrentChain]:
    """One loop for all parameters of a module that run through the same number of rounds."""
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    modules = dict(model.named_modules())
    groups: dict[tuple[str, int], list[tuple[torch.Tensor, dict[Node, int]]]] = {}
    for leaf, levels, longest in chains:
        owner = _owner(names.get(id(leaf), "").rpartition(".")[0], modules)
        groups.setdefault((owner, longest), []).append((leaf, levels))
    for (owner, steps), members in groups.items():
        rounds: list[list[Node]] = [[] for _ in range(steps)]
        for leaf, levels in members:
            for node in uses.nodes[id(leaf)]:
                t = levels[node] - 1
                if node not in rounds[t]:
                    rounds[t].append(node)
        yield RecurrentChain(owner, [leaf for leaf, _ in members], rounds, _seen_at_every_step(members[0][1], steps))


def _owner(holder: str, modules: dict[str, nn.Module]) -> str:
    """The module whose loop it is: what holds the linear layers or lists of them that hold the parameter."""
    while holder and (
        isinstance(modules[holder], (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Sequential))
        or kinds.kind_of(modules[holder]) in ("linear", "conv", "norm")
    ):
        holder = holder.rpartition(".")[0]
    return holder


def _seen_at_every_step(levels: dict[Node, int], steps: int) -> bool:
    """Whether something after the last round takes the results of most rounds at once."""
    for node, level in levels.items():
        if level == steps and len({levels[p] for p, _ in node.next_functions if p is not None}) > steps / 2:
            return True
    return False
