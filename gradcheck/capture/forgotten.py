"""Leaves that every loss sends gradient to and that nothing updates: weights that were left out of what is trained.

The parameters of modules are known. A tensor on its own may also be data that requires gradients: it counts as a weight if it is used as
one, and not if the script asks for a derivative with respect to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from gradcheck.capture.events import BackwardPass
from gradcheck.capture.nodes import Constant, Node, Ref, nodes_behind
from gradcheck.capture.recording import Recording
from gradcheck.instrument.running_code import place_of_variable
from gradcheck.types.location import Location
from gradcheck.workload.dtensor import is_freed

STEPS = 4  # steps whose losses reach a leaf that never changes; in a loop that trains by turns, its turn comes sooner
AGO = 8  # steps without it after which a leaf is let go
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
