"""Losses whose level says nothing: what is minimised is a surrogate, as in policy gradients."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from gradcheck.instrument import kinds
from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.graph_structure import Graph, Node, parents
from gradcheck.types.checks import Derivatives
from gradcheck.types.training import Run
from gradcheck.workload.device import on_host

BOTH_SIGNS = "it weighs what the model outputs with factors of both signs, as policy gradients do"
OWN_PAST = "it is computed from what the model did in earlier steps"
POLICY_GRADIENTS = (BOTH_SIGNS, OWN_PAST)
DETACHED = "it depends on the weights through detached values as well"

STOPPED = 0.02  # of the derivative: the share of detached values in it when they are more than a formality
FEWEST = 4  # entries of a factor
FEWEST_SCALARS = 8  # factors of a single number each: the loss is a sum over as many steps of an episode
LEAST_SHARE = 0.02  # of the factors, for each sign
_LINEAR = kinds.NODE_MOVES | frozenset("Mean Sum Neg Add Sub Mul Div Maximum Minimum Where NanToNum Nansum".split())
_PRODUCTS = frozenset("Mul Dot Mv".split())


def why(graph: Graph | None, calls: Iterable[Call], *, own_past: bool) -> str:
    """Why the level of a loss says nothing; "" if it does. Call it before the backward pass, which frees what the nodes remember."""
    if graph is not None and both_signs(graph, calls):
        return BOTH_SIGNS
    return OWN_PAST if own_past else ""


def noted(probe: Run, found: Derivatives | None) -> Run:
    """The probe, once it is known how far autograd's gradient is from the derivative of the loss."""
    if found is None or found.intended != "stop-gradient" or found.error < STOPPED:
        return probe
    return replace(probe, surrogate=probe.surrogate or DETACHED)


@torch.no_grad()
def both_signs(graph: Graph, calls: Iterable[Call]) -> bool:
    """Whether the loss is linear in products of something live with fixed factors, some of them positive and some negative.

    It then has no lower bound and no zero that means anything. Weights of squared errors, which are positive, and labels of +1 and -1
    inside a hinge or a logarithm are no such factors.
    """
    layers = {c.output_node for c in calls if c.kind in kinds.WEIGHTED_KINDS}
    linear: set[Node] = set()  # nodes that the loss is linear in
    several: list[torch.Tensor] = []
    scalars: list[torch.Tensor] = []
    for node in graph.order:
        if node in layers or not (node is graph.root or any(c in linear for c in graph.consumers[node])):
            continue
        factors = _factors(node) if graph.names[node] in _PRODUCTS else []
        several += [f.detach() for f in factors if f.numel() >= FEWEST]
        scalars += [f.detach() for f in factors if f.numel() == 1]
        if graph.names[node] in _LINEAR:
            linear.add(node)
    if len(scalars) >= FEWEST_SCALARS:
        several.append(torch.cat([s.reshape(1).float() for s in on_host(scalars)]))
    counted = [f for f in several if not f.is_complex() and f.layout is torch.strided]
    counts = on_host([torch.stack([(f > 0).sum(), (f < 0).sum()]) for f in counted])
    return any(bool((found > LEAST_SHARE * f.numel()).all()) for f, found in zip(counted, counts, strict=True))


def _factors(node: Node) -> list[torch.Tensor]:
    """The operands of a product that carry no gradient."""
    if len(parents(node)) > 1:
        return []
    found: list[Any] = []
    for name in ("_saved_self", "_saved_other", "_saved_tensor", "_saved_vec"):
        try:
            found.append(getattr(node, name))
        except (AttributeError, RuntimeError):
            continue
    return [x for x in found if isinstance(x, torch.Tensor) and not x.requires_grad]
