"""Which tensors of a recorded step are data: what goes into its modules. What only meets their outputs belongs to the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gradcheck.capture.nodes import Constant, Node, Ref, Weight, references
from gradcheck.workload.step import TARGET_NAMES, forward_of

# What they put beside a value that the model gave is its scale (a tolerance, a mask, a step size), not what it is to see.
_SCALING = frozenset("mul div mul_ div_ multiply divide __mul__ __rmul__ __truediv__ __rtruediv__ __imul__ __itruediv__".split())


def data_in(nodes: Sequence[Node]) -> frozenset[int]:
    """ids of the Constants that are handed to a module, or to a function with a matrix of weights, or mixed into what is.

    Labels, tensors that the script computes from these after a module has run (tolerances, masks), and whatever another recorded call made
    (a generator's fakes, a target network's values) are not data.
    """
    return frozenset(id(x) for node in feeding(nodes) if not _scales(node) for x in _inputs(node) if isinstance(x, Constant))


def feeding(nodes: Sequence[Node]) -> list[Node]:
    """The calls that take weights, and those whose values go into them. All others are the loss's."""
    found: list[Node] = []
    wanted: set[int] = set()
    for node in sorted(nodes, key=lambda n: n.serial, reverse=True):
        if id(node) in wanted or _takes_weights(node):
            found.append(node)
            wanted |= {id(x.node) for x in _inputs(node) if isinstance(x, Ref)}
    return found


def _scales(node: Node) -> bool:
    """Whether a call scales what came out of the model."""
    return getattr(node.call, "__name__", "") in _SCALING and any(isinstance(x, Ref) for x in node.inputs())


def _takes_weights(node: Node) -> bool:
    weights = (x for x in node.inputs() if isinstance(x, Weight))
    return node.call is None or any((w.owner.copy or w.owner.original).get_parameter(w.name).dim() > 1 for w in weights)


def _inputs(node: Node) -> Iterator[Any]:
    """What a call takes; of a module's, not what its forward method calls a target."""
    if node.call is not None or node.owner is None:
        yield from node.inputs()
        return
    names = forward_of(node.owner.original.get_submodule(node.path)).positional
    for i, value in enumerate(node.args):
        if i >= len(names) or names[i] not in TARGET_NAMES:
            yield from references(value)
    for name, value in node.kwargs.items():
        if name not in TARGET_NAMES:
            yield from references(value)
