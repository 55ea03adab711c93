"""Losses written by hand: logarithms, exponentials and divisions between the last weighted layer and the loss, and differences to targets.

The first pass notes the calls; what an operation is applied to is read from the autograd graph behind it.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradcheck.instrument import kinds
from gradcheck.instrument.activation_recorder import Call
from gradcheck.instrument.graph_structure import Graph, Node, parents
from gradcheck.types.checks import Derivatives, Difference, LossOperation, Operation, Source
from gradcheck.types.location import Location
from gradcheck.types.training import Run
from gradcheck.workload.device import on_host
from gradcheck.workload.tensors import named_tensors

MOST_VALUES = 1 << 18  # of an argument whose range is read
BEHIND = 24  # autograd nodes that are walked back from an operation


def _table() -> dict[Callable[..., Any], Operation]:
    names: dict[str, Operation] = dict.fromkeys("log log_ log2 log10 log1p".split(), "log")
    names |= dict.fromkeys(("exp", "exp_", "exp2"), "exp")
    divisions = "div div_ divide true_divide reciprocal __truediv__ __itruediv__ __rtruediv__ __rdiv__ __div__"
    names |= dict.fromkeys(divisions.split(), "division")
    homes = (torch, torch.Tensor, torch.special)
    return {f: what for name, what in names.items() for home in homes if callable(f := getattr(home, name, None))}


OPERATIONS = _table()
SUBTRACTIONS = frozenset(
    f for name in ("sub", "subtract", "__sub__", "__rsub__") for home in (torch, torch.Tensor) if (f := getattr(home, name, None))
)
_PROBABILITIES: dict[str, Source] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_GUARDS = frozenset(("Clamp", "ClampMin", "ClampMax", "Maximum", "Minimum", "NanToNum"))
# Operations that keep probabilities probabilities, or pick some of them; sums and complements can still reach 0.
_PICKS = kinds.NODE_MOVES | frozenset(("Sum", "Prod", "Neg", "Rsub"))
_SCALES = frozenset(("Mul", "Div", "Sub", "Add"))  # with one operand that carries gradient
_SUMS = kinds.NODE_MOVES | frozenset(("Mean", "Sum", "Add", "Sub", "Rsub", "Neg"))


@dataclass(eq=False)
class SeenOperation:
    """A call of one of OPERATIONS whose result carries gradient, with a sample of its argument."""

    operation: Operation
    layer: str
    site: Location | None
    node: Any
    argument: Any  # autograd node of the argument; of the denominator
    values: torch.Tensor | None  # a sample of the argument; None where it is overwritten


@dataclass(eq=False)
class SeenDifference:
    """output - target outside the model, the former carrying gradient."""

    site: Location | None
    output: torch.Tensor
    target: torch.Tensor
    node: Any  # autograd node of the difference


@torch.no_grad()
def operation(function: Any, args: Any, output: Any, layer: str, site: Callable[[], Location | None]) -> SeenOperation | None:
    """What is noted of a call; None when its argument carries no gradient."""
    what = OPERATIONS[function]
    if not isinstance(output, torch.Tensor) or output.grad_fn is None or not args:
        return None
    name = getattr(function, "__name__", "")
    inverse = "reciprocal" in name or name.startswith("__r")
    argument = args[0] if what != "division" or inverse else args[1] if len(args) > 1 else None
    if not isinstance(argument, torch.Tensor) or argument.grad_fn is None or not argument.numel() or not argument.is_floating_point():
        return None
    behind = argument.grad_fn
    if behind is output.grad_fn:  # in place: the argument is the result by now
        behind, values = parents(output.grad_fn)[0], None
    else:
        values = argument.detach().reshape(-1)[:: max(1, argument.numel() // MOST_VALUES)].float()
    if values is not None:
        values = values + 1 if name == "log1p" else values.clone()
    return SeenOperation(what, layer, site(), output.grad_fn, behind, values)


def _range(values: torch.Tensor | None) -> tuple[float, float, float]:
    """Least, largest, and least |x|, of the finite ones on the host."""
    finite = values[torch.isfinite(values)] if values is not None else torch.empty(0, device="cpu")
    if not finite.numel():
        return math.nan, math.nan, math.nan
    low, high = torch.aminmax(finite)
    return low.item(), high.item(), finite.abs().min().item()


def difference(args: Any, output: Any, site: Callable[[], Location | None]) -> SeenDifference | None:
    """A subtraction of two floating tensors of one size, one of which carries gradient."""
    pair = [a for a in args[:2] if isinstance(a, torch.Tensor) and a.is_floating_point()]
    if len(pair) != 2 or not isinstance(output, torch.Tensor) or pair[0].numel() != pair[1].numel() or pair[0].numel() < 2:
        return None
    if pair[0].requires_grad == pair[1].requires_grad:
        return None
    with_gradient, without = pair if pair[0].requires_grad else pair[::-1]
    return SeenDifference(site(), with_gradient.detach(), without.detach(), output.grad_fn)


@torch.no_grad()
def differences(
    seen: Sequence[SeenDifference], batch: Any, made: Collection[str] = (), graph: Graph | None = None
) -> tuple[Difference, ...]:
    """Those whose other side is a tensor of the batch, and whose size counts. `made`: names of those that a model made."""
    linear = _linear(graph) if graph is not None and seen else frozenset()
    seen = [d for d in seen if d.node not in linear]
    known = [t for name, t in named_tensors(batch) if t.is_floating_point() and name not in made]
    sizes = {t.numel() for t in known}
    near = [d for d in seen if d.target.numel() in sizes]
    if not near:
        return ()
    there = on_host([*(d.output for d in near), *(d.target for d in near), *known])
    outputs, targets, batch_ = there[: len(near)], there[len(near) : 2 * len(near)], there[2 * len(near) :]
    triples = zip(near, outputs, targets, strict=True)
    return tuple(_difference(d.site, output, target) for d, output, target in triples if any(_same(target, t) for t in batch_))


def _linear(graph: Graph) -> frozenset[Any]:
    """What the loss is a weighted sum of: of a difference there the other side is added to the loss, and no target."""
    found = {graph.root}
    for node in graph.order:  # consumers before producers
        if node in found and (graph.names[node] in _SUMS or (graph.names[node] in _SCALES and len(parents(node)) == 1)):
            found.update(p for p in parents(node) if all(c in found for c in graph.consumers[p]))
    return frozenset(found)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.numel() != other.numel():
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one.reshape(-1).double(), other.reshape(-1).double())


def _difference(site: Location | None, output: torch.Tensor, target: torch.Tensor) -> Difference:
    shape, output, target = tuple(target.shape), output.double(), target.double()
    spreads = output.std(correction=0).item(), target.std(correction=0).item()
    return Difference(site, shape, output.mean().item(), spreads[0], target.mean().item(), spreads[1])


def operations(seen: Sequence[SeenOperation], graph: Graph, calls: Sequence[Call]) -> tuple[LossOperation, ...]:
    """The unguarded ones among the noted operations that no weighted layer follows, one for each place."""
    outputs = {c.output_node for c in calls if c.kind in kinds.WEIGHTED_KINDS and c.output_node is not None}
    followed: dict[Any, bool] = {}
    for node in graph.order:  # consumers before producers
        followed[node] = any(c in outputs or followed[c] for c in graph.consumers[node])
    found: dict[tuple[Any, ...], LossOperation] = {}
    free = [s for s in seen if s.node in graph and not followed[s.node]]
    samples = iter(on_host([s.values for s in free if s.values is not None]))
    for s in free:
        low, high, smallest = _range(next(samples) if s.values is not None else None)
        source = _source(s, outputs, low, high)
        if source is not None:
            least = smallest if s.operation == "division" else low
            found.setdefault((s.operation, source, s.layer, s.site), LossOperation(s.operation, source, s.site, s.layer, least, high))
    return tuple(found.values())


def _source(s: SeenOperation, outputs: set[Any], low: float, high: float) -> Source | None:
    """What the argument is; None when something keeps it in the domain."""
    if s.operation == "exp":
        return "other"
    if s.operation == "log" and _are_shares(s.argument):
        return "shares"
    guarded = summed = added = False
    for node, name in _walk(s.argument, outputs):
        if node in outputs:
            crosses_zero = s.operation == "log" or low < 0 < high
            return None if guarded else "output" if crosses_zero and not summed else "other"
        if name == "Exp":
            joined = summed or (added and s.operation == "log")  # log(exp(z)) alone is the scale of a distribution: no logit, z stays small
            return "sum of exponentials" if joined and _overflows(node, outputs) else None if guarded else "other"
        if name in _PROBABILITIES:
            return None if guarded else _PROBABILITIES[name] if s.operation == "log" else "other"
        added |= name == "Add"
        guarded |= name in _GUARDS or name == "Add"
        summed |= name == "Sum"
    return None if guarded else "other"


def _are_shares(argument: Any) -> bool:
    """Whether the argument of a logarithm is the output of a ReLU over its own sum."""
    divided = _behind(argument, _GUARDS)
    numerator, denominator = (
        (*parents(divided), None, None)[:2] if divided is not None and kinds.node_name(divided) == "Div" else (None, None)
    )
    total = _behind(denominator, kinds.NODE_MOVES | _GUARDS | {"Add"})
    if numerator is None or total is None or kinds.node_name(total) != "Sum" or kinds.node_name(numerator) != "Relu":
        return False
    return parents(total)[0] is numerator


def _behind(node: Any, skipped: Collection[str]) -> Any:
    """The first node behind one, itself included, that is not of these kinds."""
    for _ in range(BEHIND):
        if node is None or kinds.node_name(node) not in skipped:
            return node
        node = next(iter(parents(node)), None)
    return None


def _overflows(exponential: Any, outputs: set[Any]) -> bool:
    """Whether an exponential takes a layer's output as it is, up to a factor: nothing was subtracted from it and nothing bounds it."""
    for node, name in _walk(parents(exponential)[0] if parents(exponential) else None, outputs):
        if node in outputs:
            return True
        if name in ("Sub", "Sum", "Rsub") or name in _GUARDS:
            return False
    return False


def _walk(node: Any, outputs: set[Any]) -> Iterator[tuple[Any, str]]:
    """The chain of nodes behind one, as long as each takes one value that carries gradient and picks, scales or guards it.

    The first node of another kind is returned as the last one.
    """
    for _ in range(BEHIND):
        if node is None:
            return
        name = kinds.node_name(node)
        yield node, name
        behind = [p for p in parents(node) if not hasattr(p, "variable")]
        passes = name in _PICKS or name in _GUARDS or (name in _SCALES and len(behind) == 1)
        if node in outputs or not passes or not behind:
            return
        node = behind[0]


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
