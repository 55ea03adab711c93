"""Places where autograd passes through but the gradient is zero: steps, products with fixed zeros or of two zeros, and bounds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.instrument.graph_structure import Graph, upstream_leaves
from gradcheck.types.location import Location
from gradcheck.types.parameters import ZeroDerivative
from gradcheck.workload.device import on_host

_HOMES = (torch, torch.Tensor)


def _functions(names: str) -> Iterator[tuple[Callable[..., Any], str]]:
    for name in names.split():
        for home in _HOMES:
            if (function := getattr(home, name, None)) is not None:
                yield function, name.strip("_")


STEPS = {f: {"sgn": "sign", "fix": "trunc"}.get(name, name) for f, name in _functions("sign sgn round floor ceil trunc fix")}
BOUNDS = {F.relu: "relu", **dict(_functions("relu clamp clamp_min clamp_max clip"))}  # zero where they change all that they are given
PRODUCTS = frozenset(f for f, _ in _functions("mul mul_ multiply __mul__ __rmul__ __imul__"))
MATRIX_PRODUCTS = frozenset((*(f for f, _ in _functions("matmul mm bmm __matmul__ __rmatmul__")), F.linear))
PRODUCT = "product"
ZEROS = "zeros"  # a product whose two factors are both zero: the gradient of each is a product with the other
NEAR = 30  # autograd nodes that a factor's parameter is looked for behind


@dataclass(eq=False)
class SeenZero:
    """A call whose derivative is zero; of a product, only if `zero` says so."""

    operation: str
    layer: str
    site: Location | None
    node: Any  # autograd node of the result
    factor: str = ""
    zero: torch.Tensor | None = None  # 0-d bool: read after the backward pass
    operands: tuple[tuple[int, Any], ...] = ()  # of a product of two factors that carry gradient: id and autograd node of each


def seen(
    function: Any, args: Any, output: Any, module: nn.Module | None, layer: str, site: Callable[[], Location | None]
) -> SeenZero | None:
    """What is noted of a call; None when it is none of these, or carries no gradient."""
    if not any(function in known for known in (STEPS, BOUNDS, PRODUCTS, MATRIX_PRODUCTS)):
        return None
    if not isinstance(output, torch.Tensor) or output.grad_fn is None:
        return None
    if function in BOUNDS:
        if not args or output is args[0] or not output.numel():
            return None
        return SeenZero(BOUNDS[function], layer, site(), output.grad_fn, zero=(output.detach() != args[0].detach()).all())
    if function in STEPS:
        return SeenZero(STEPS[function], layer, site(), output.grad_fn)
    operands = tuple(a for a in args[:2] if isinstance(a, torch.Tensor) and a.requires_grad)
    if len(operands) == 2:
        return _both_zero(operands, layer, site, output.grad_fn)
    if function in MATRIX_PRODUCTS:
        return None
    fixed = next((a for a in args[:2] if isinstance(a, torch.Tensor) and not a.requires_grad), None)
    name = attribute_of(module, fixed) if module is not None and fixed is not None else ""
    if not name or fixed is None:
        return None
    zero = ~fixed.detach().bool().any()
    return SeenZero(PRODUCT, layer, site(), output.grad_fn, f"{layer}.{name}" if layer else name, zero)


def _both_zero(operands: tuple[torch.Tensor, ...], layer: str, site: Callable[[], Location | None], node: Any) -> SeenZero | None:
    if not all(t.numel() for t in operands):
        return None
    with torch._C.DisableTorchFunction(), torch.no_grad():
        small, other = sorted(operands, key=torch.Tensor.numel)
        if small.is_cpu and small.any():
            return None
        zero = ~(small.any() | other.any())
    return SeenZero(ZEROS, layer, site(), node, zero=zero, operands=tuple((id(t), t.grad_fn) for t in operands))


def _zero_parameter(operand: int, node: Any, parameters: Mapping[int, str]) -> str:
    """The nearest parameter behind a factor that is zero itself; "" for none."""
    if operand in parameters:
        return parameters[operand]
    queue, seen_nodes = [node] if node is not None else [], 0
    while queue and seen_nodes < NEAR:
        node = queue.pop(0)
        seen_nodes += 1
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in parameters and not bool(leaf.detach().any()):
            return parameters[id(leaf)]
        queue += [parent for parent, _ in node.next_functions if parent is not None]
    return ""


def attribute_of(module: nn.Module, tensor: torch.Tensor) -> str:
    """The module's own buffer, frozen parameter or plain attribute that a tensor is, or is a view of; "" for none."""
    wanted = (id(tensor), id(tensor._base)) if tensor._base is not None else (id(tensor),)
    for store in (module._buffers, module._parameters, vars(module)):
        for name, value in store.items():
            if isinstance(value, torch.Tensor) and id(value) in wanted:
                return name
    return ""


def places(
    found: Iterable[SeenZero],
    graph: Graph | None,
    parameters: Mapping[int, str],
    made: Callable[[str], Location | None] = lambda name: None,
) -> tuple[ZeroDerivative, ...]:
    """Those that the loss depends on, with the parameters before them. `parameters`: id -> name of the trainable ones.

    Of a product of two zeros these are its two factors, and the place is where the first one is made: `made(name)`.
    """
    if graph is None:
        return ()
    result = []
    within = [one for one in found if one.node in graph]
    facts = iter(on_host([one.zero for one in within if one.zero is not None]))
    for one in within:
        if one.zero is not None and not next(facts):
            continue
        if one.operation == ZEROS:
            factors = tuple(_zero_parameter(*operand, parameters) for operand in one.operands)
            if all(factors) and factors[0] != factors[1]:
                result.append(ZeroDerivative(ZEROS, one.layer, made(factors[0]) or one.site, factors))
            continue
        names = tuple(dict.fromkeys(parameters[id(leaf)] for leaf in upstream_leaves([one.node]) if id(leaf) in parameters))
        if names:
            result.append(ZeroDerivative(one.operation, one.layer, one.site, names, one.factor))
    return tuple(result)
