"""Leaves that every loss sends gradient to and that nothing updates: weights that were left out of what is trained.

The parameters of modules are known. A tensor on its own may also be data that requires gradients: it counts as a weight if it is used as
one, and not if the script asks for a derivative with respect to it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import nn

from gradcheck.capture.events import BackwardPass
from gradcheck.capture.nodes import Constant, Node, Ref, nodes_behind
from gradcheck.capture.recording import Recording
from gradcheck.instrument.graph_structure import upstream_leaves
from gradcheck.instrument.running_code import place_of_variable
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopRemade
from gradcheck.workload.dtensor import is_freed

STEPS = 4  # steps whose losses reach a leaf that never changes; in a loop that trains by turns, its turn comes sooner
AGO = 8  # steps without it after which a leaf is let go
FRESH = 6  # steps whose new parameters are kept
DRAWN = 64  # entries: two independent draws of as many correlate by more than 0.5 in one of 30,000 pairs, and a weight
ALIKE = 0.5  # with a copy of it some steps later by nearly 1
_STEPS = ("SubBackward0", "AddBackward0")
_PRODUCTS = frozenset("matmul __matmul__ __rmatmul__ mm bmm mv dot addmm baddbmm".split())
_TAKES_WEIGHTS = frozenset(("linear", "embedding", "layer_norm", "batch_norm", "group_norm", "conv1d", "conv2d", "conv3d", "bilinear"))
_ELEMENTWISE = frozenset(
    f"{prefix}{name}{suffix}"
    for name in ("add", "sub", "mul", "div", "truediv", "true_divide", "pow")
    for prefix, suffix in (("", ""), ("__", "__"), ("__r", "__"))
)
_SHAPES = frozenset("view reshape t transpose permute unsqueeze squeeze expand contiguous T mT __get__ float double".split())


@dataclass(eq=False)
class _Leaf:
    tensor: torch.Tensor
    before: torch.Tensor
    steps: set[int] = field(default_factory=set)
    settled: bool = False  # looked at, or no weight


class Forgotten:
    """`look` after each backward pass; `ask` before derivatives with respect to `inputs` are taken."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.places: dict[int, Location] = {}  # of those that were found, by id: where the script makes each
        self._seen: dict[int, _Leaf] = {}

    def ask(self, inputs: Iterable[torch.Tensor]) -> None:
        for tensor in inputs:
            if tensor.is_leaf:
                self._noted(tensor).settled = True

    def look(self, found: BackwardPass, leaves: Mapping[int, torch.Tensor]) -> None:
        recording = self.recording
        weights = recording.tape.weights
        unknown = {key: t for key, t in leaves.items() if key not in weights and not is_freed(t)}
        if not unknown or found.ref is None:
            return
        held = frozenset[int]().union(*(w.ids for w in recording.optimizers.values()))
        self._seen = {k: x for k, x in self._seen.items() if max(x.steps, default=recording.steps) >= recording.steps - AGO}
        due: list[_Leaf] = []
        for key, tensor in unknown.items():
            leaf = self._noted(tensor)
            leaf.steps.add(recording.steps)
            if len(leaf.steps) >= STEPS and not leaf.settled and key not in held:
                leaf.settled = True
                due.append(leaf)
        if due:
            self._adopt(found, [x.tensor for x in due if torch.equal(x.before, x.tensor.detach())])

    def _noted(self, tensor: torch.Tensor) -> _Leaf:
        known = self._seen.get(id(tensor))
        if known is None or known.tensor is not tensor:
            known = self._seen[id(tensor)] = _Leaf(tensor, tensor.detach().clone())
        return known

    def _adopt(self, found: BackwardPass, tensors: Iterable[torch.Tensor]) -> None:
        """Makes the weights among them known as such from now on, and in the calls recorded so far."""
        recording, tape = self.recording, self.recording.tape
        parameters = [t for t in tensors if isinstance(t, nn.Parameter)]
        recording.owners.own(parameters)
        nodes = nodes_behind(found.nodes)
        left = [t for t in tensors if id(t) not in tape.weights and (isinstance(t, nn.Parameter) or self._serves(t, nodes))]
        if not left:
            return
        reached = [tape.weights[key].owner for key in found.reached if key in tape.weights]
        recording.owners.adopt(left, next((owner for owner in reached if owner.is_free), None))
        ends = [n for w in recording.optimizers.values() for s in w.steps for p in s.passes for n in p.nodes]
        for tensor in left:
            tape.promote(tensor, [*ends, *found.nodes])
            place = place_of_variable(tensor)
            if place is not None:
                self.places[id(tensor)] = place

    def _serves(self, tensor: torch.Tensor, nodes: Iterable[Node]) -> bool:
        """Whether the recorded calls use a leaf as they use weights."""
        known = self.recording.tape.constant(tensor)
        stands: set[int] = set()  # ids of calls whose values are the leaf's, in another shape
        for node in nodes:
            mine = [i for i, x in enumerate(node.args) if x is known or (isinstance(x, Ref) and id(x.node) in stands)]
            if not mine or known is None:
                continue
            if getattr(node.call, "__name__", "") in _SHAPES and mine == [0]:
                stands.add(id(node))
            elif _is_weight(node, mine[0], tensor):
                return True
        return False


def _is_weight(node: Node, position: int, tensor: torch.Tensor) -> bool:
    """Whether what a call takes at a position is a weight: a factor of what was computed, a shift of all rows, a table."""
    name = getattr(node.call, "__name__", "")
    others = [x for i, x in enumerate(node.args) if i != position]
    if name in _TAKES_WEIGHTS:
        return position > 0
    if name == "__getitem__":
        index = others[0] if others else None
        return isinstance(index, (Constant, Ref)) and _count(index) > len(tensor)
    if name in _PRODUCTS:
        return any(isinstance(x, Ref) or (isinstance(x, Constant) and not x.leaf) for x in others)
    return name in _ELEMENTWISE and tensor.numel() < node.counts.get(0, 0)


def _count(value: Constant | Ref) -> int:
    return value.value.numel() if isinstance(value, Constant) else value.node.counts.get(value.index, 0)


class Remade:
    """Layers that the loop makes again in each step: random each time, and trained by nothing. `look` and `ask` as above."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._made: Counter[Location] | None = None  # constructions by their place, by the first pass
        self._known: set[int] = set()  # ids of the parameters that the first step reached
        self._fresh: dict[int, dict[int, _Leaf]] = {}  # by step

    def ask(self, inputs: Iterable[torch.Tensor]) -> None:
        self._known |= {id(t) for t in inputs if isinstance(t, nn.Parameter)}  # an inner loop adapts them: a new head for each task

    def look(self, loss: torch.Tensor, leaves: Mapping[int, torch.Tensor]) -> None:
        recording, step = self.recording, self.recording.steps
        if step == 0 or self._made is None:
            self._made = Counter(recording.sites.made)
            self._known |= leaves.keys()
        elif loss.grad_fn is not None and (len(self._fresh) < FRESH or step in self._fresh):
            fresh = {k: t for k, t in leaves.items() if isinstance(t, nn.Parameter) and t.numel() >= DRAWN and self._is_new(k)}
            for key in _behind(loss.grad_fn, fresh.keys(), leaves.keys() & self._known) if fresh else ():
                self._fresh.setdefault(step, {})[key] = _Leaf(fresh[key], fresh[key].detach().clone(), {step})

    def _is_new(self, key: int) -> bool:
        return not (
            key in self._known or key in self.recording.tape.weights or any(key in w.ids for w in self.recording.optimizers.values())
        )

    def found(self) -> LoopRemade | None:
        drawn: dict[torch.Size, dict[int, _Leaf]] = {}
        for step, leaves in self._fresh.items():
            for key, leaf in leaves.items():
                if self._is_new(key) and torch.equal(leaf.before, leaf.tensor.detach()):
                    drawn.setdefault(leaf.before.shape, {}).setdefault(step, leaf)
        new = {s: x for s, x in drawn.items() if len(x) >= STEPS and not any(_alike(*p) for p in combinations(x.values(), 2))}
        if not new:
            return None
        again = self.recording.sites.made - (self._made or Counter())
        place = max(again, key=again.__getitem__) if again else None
        return LoopRemade(tuple(map(tuple, new)), place)


def _alike(one: _Leaf, other: _Leaf) -> bool:
    pair = torch.stack([one.before.flatten(), other.before.flatten()]).double()
    return not bool(torch.corrcoef(pair)[0, 1].abs() <= ALIKE)  # nan: one of them is the same everywhere, as a norm's weights are


def _behind(end: torch.autograd.graph.Node, fresh: Iterable[int], known: Iterable[int]) -> set[int]:
    """Of the fresh leaves those that a call takes together with what known ones computed. What takes only data may make targets.

    Nor is one left as it was drawn whose own steps are part of the graph: a new head that each task adapts.
    """
    fresh, known, seen, pending, found = set(fresh), set(known), {end}, [end], set[int]()
    while pending:
        node = pending.pop()
        parents = [p for p, _ in node.next_functions if p is not None]
        leaves = {id(leaf): leaf for leaf in map(_leaf, parents) if leaf is not None and id(leaf) in fresh} if len(parents) > 1 else {}
        fresh -= {k for k, leaf in leaves.items() if node.name() in _STEPS and tuple(node._input_metadata[0].shape) == leaf.shape}
        if leaves and any(id(t) in known for p in parents for t in upstream_leaves([p])):
            found |= leaves.keys()
        pending += [p for p in parents if p not in seen]
        seen.update(parents)
    return found & fresh


def _leaf(node: torch.autograd.graph.Node | None) -> torch.Tensor | None:
    """The tensor that a node holds, or that what only moves one holds, as a transposed weight."""
    while node is not None and not hasattr(node, "variable"):
        parents = [p for p, _ in node.next_functions if p is not None]
        node = parents[0] if len(parents) == 1 else None
    return node.variable if node is not None else None
