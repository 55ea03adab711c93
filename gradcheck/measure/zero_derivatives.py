"""Places that autograd goes through and no gradient comes out of: step functions, and products with a fixed tensor of zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.measure.structure import Graph, upstream_leaves
from gradcheck.nouns.measurement import ZeroDerivative
from gradcheck.nouns.places import Location

_HOMES = (torch, torch.Tensor)


def _functions(names: str) -> Iterator[tuple[Callable[..., Any], str]]:
    for name in names.split():
        for home in _HOMES:
            if (function := getattr(home, name, None)) is not None:
                yield function, name.strip("_")


STEPS = {f: {"sgn": "sign", "fix": "trunc"}.get(name, name) for f, name in _functions("sign sgn round floor ceil trunc fix")}
PRODUCTS = frozenset(f for f, _ in _functions("mul mul_ multiply __mul__ __rmul__ __imul__"))
PRODUCT = "product"


@dataclass(eq=False)
class SeenZero:
    """A call whose derivative is zero; of a product, only if `zero` says so."""

    operation: str
    layer: str
    site: Location | None
    node: Any  # autograd node of the result
    factor: str = ""
    zero: torch.Tensor | None = None  # 0-d bool: read after the backward pass


def seen(
    function: Any, args: Any, output: Any, module: nn.Module | None, layer: str, site: Callable[[], Location | None]
) -> SeenZero | None:
    """What is noted of a call; None when it is none of these, or carries no gradient."""
    if function not in STEPS and function not in PRODUCTS:
        return None
    if not isinstance(output, torch.Tensor) or output.grad_fn is None:
        return None
    if function in STEPS:
        return SeenZero(STEPS[function], layer, site(), output.grad_fn)
    fixed = next((a for a in args[:2] if isinstance(a, torch.Tensor) and not a.requires_grad), None)
    name = attribute_of(module, fixed) if module is not None and fixed is not None else ""
    if not name or fixed is None:
        return None
    zero = ~fixed.detach().bool().any()
    return SeenZero(PRODUCT, layer, site(), output.grad_fn, f"{layer}.{name}" if layer else name, zero)


def attribute_of(module: nn.Module, tensor: torch.Tensor) -> str:
    """The module's own buffer, frozen parameter or plain attribute that a tensor is, or is a view of; "" for none."""
    wanted = (id(tensor), id(tensor._base)) if tensor._base is not None else (id(tensor),)
    for store in (module._buffers, module._parameters, vars(module)):
        for name, value in store.items():
            if isinstance(value, torch.Tensor) and id(value) in wanted:
                return name
    return ""


def places(found: Iterable[SeenZero], graph: Graph | None, parameters: Mapping[int, str]) -> tuple[ZeroDerivative, ...]:
    """Those that the loss comes through, with the parameters before them. `parameters`: id -> name of the trainable ones."""
    if graph is None:
        return ()
    result = []
    for one in found:
        if one.node not in graph or (one.zero is not None and not one.zero.item()):
            continue
        names = tuple(dict.fromkeys(parameters[id(leaf)] for leaf in upstream_leaves([one.node]) if id(leaf) in parameters))
        if names:
            result.append(ZeroDerivative(one.operation, one.layer, one.site, names, one.factor))
    return tuple(result)
