"""Which part of a tape is computed again for a step's losses, which part stays as it was, and which of its tensors are data."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from gradcheck.capture.nodes import Constant, Node, Owner, Ref, Weight, nodes_behind, references, submodule
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
    names = forward_of(submodule(node.owner.original, node.path)).positional
    for i, value in enumerate(node.args):
        if i >= len(names) or names[i] not in TARGET_NAMES:
            yield from references(value)
    for name, value in node.kwargs.items():
        if name not in TARGET_NAMES:
            yield from references(value)


class Slice:
    """The calls that some values depend on, in their order.

    A value without gradient is taken as it was if it depends on no trained parameter, was made before the step, serves several steps (what
    a policy did in a rollout), or was read by the loop. `held`: ids of the user's parameters that are trained. `since`: the last
    call before the step. `shared`: ids of calls before it that other steps use too.
    """

    def __init__(self, results: Sequence[Ref], held: Collection[int], since: int = -1, shared: Collection[int] = ()) -> None:
        self.results = list(results)
        self._held, self._since, self._shared = held, since, shared
        self._trained = self._depending(self._walk(lambda ref: self._past(ref.node)))
        self.nodes = self._walk(self._folds)
        self.owners = owners_in(self.nodes)

    def _walk(self, ends: Callable[[Ref], bool]) -> list[Node]:
        """The calls behind the results, in their order, up to the values at which it `ends`."""
        found: dict[int, Node] = {}
        pending = [r.node for r in self.results]
        while pending:
            node = pending.pop()
            if id(node) not in found:
                found[id(node)] = node
                pending += [x.node for x in node.inputs() if isinstance(x, Ref) and not ends(x)]
        return sorted(found.values(), key=lambda n: n.serial)

    def _past(self, node: Node) -> bool:
        return node.read or node.serial <= self._since or id(node) in self._shared

    def _folds(self, ref: Ref) -> bool:
        return ref.index in ref.node.values and id(ref.node) not in self._trained

    def _depending(self, nodes: Iterable[Node]) -> set[int]:
        """ids of those among the nodes, which are in their order, that depend on a trained parameter as it is now."""
        found: set[int] = set()
        for node in nodes:
            if not self._past(node) and (self._holds(node) or any(id(x.node) in found for x in node.inputs() if isinstance(x, Ref))):
                found.add(id(node))
        return found

    def _holds(self, node: Node) -> bool:
        held = node.owner is not None and any(key in self._held for key in node.owner.held(node.path))
        return held or any(isinstance(x, Weight) and x.key in self._held for x in node.inputs())

    def uses_own_past(self) -> bool:
        """Whether the loss, and not only what goes into the modules, takes something that the trained weights made in the past."""
        inside = {id(n) for n in feeding(self.nodes)}
        taken = [x.node for n in self.nodes if id(n) not in inside for x in n.inputs() if isinstance(x, Ref) and self._folds(x)]
        return any(self._holds(n) for n in nodes_behind(taken))


def slices_of(steps: Sequence[Sequence[Ref]], before: Sequence[int], held: Collection[int]) -> list[Slice]:
    """The slice of each step's losses. `before`: for each, the last call before the optimizer's step before it."""
    shared: set[int] = set()
    for results, since in zip(steps, before, strict=True):
        seen: set[int] = set()
        pending = [r.node for r in results]
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.serial <= since:
                shared.add(id(node))
            else:
                pending += [x.node for x in node.inputs() if isinstance(x, Ref)]
    return [Slice(results, held, since, shared) for results, since in zip(steps, before, strict=True)]


def owners_in(nodes: Iterable[Node]) -> list[Owner]:
    """The owners of what the nodes call and take, each once, in the order of the calls."""
    found: dict[int, Owner] = {}
    for node in nodes:
        for owner in (node.owner, *(x.owner for x in node.inputs() if isinstance(x, Weight))):
            if owner is not None:
                found.setdefault(id(owner), owner)
    return list(found.values())
