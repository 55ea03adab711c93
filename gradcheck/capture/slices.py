"""Which part of a tape is computed again for a step's losses, and which part stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from gradcheck.capture.inputs import feeding
from gradcheck.capture.nodes import Node, Owner, Ref, Weight, nodes_behind


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
