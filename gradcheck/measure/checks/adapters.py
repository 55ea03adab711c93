"""Adapters, recognised by structure (a frozen weight beside two factors whose product has its shape) or declared by PEFT's layers."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck.measure.checks.context import CheckContext
from gradcheck.types.location import Location
from gradcheck.types.structure import Adaptation, Adapter
from gradcheck.workload.rng import preserve_rng
from gradcheck.workload.training_copy import TrainingCopy, restored

KINDS = 4  # of layers (class, shape, rank) whose factor is looked at
ROWS = 64  # of the input
LEAST_COSINE = 0.999  # share of what the factors add to the output that their product explains; with less it is another kind of adapter


@dataclass(frozen=True)
class Product:
    """An adapter whose factors multiply: the names of module and tensors."""

    layer: str
    weight: str
    factors: tuple[str, str]


def scales_and_sizes(context: CheckContext, products: Sequence[Product]) -> dict[str, tuple[float, float]]:
    """By layer: the factor on the product of its two factors, and norm(factor * product) / norm(weight) after the short training.

    Layers of one kind are assumed to share the factor. Those for which it cannot be told are left out.
    """
    copy = context.trained
    tensors = dict(copy.model.named_parameters(remove_duplicate=False))
    kinds: dict[tuple[type, torch.Size, torch.Size], list[Product]] = {}
    for p in products:
        if p.weight in tensors and all(f in tensors for f in p.factors):
            module = copy.model.get_submodule(p.layer)
            kinds.setdefault((type(module), tensors[p.weight].shape, tensors[p.factors[0]].shape), []).append(p)
    chosen = {group[0].layer: group for group in list(kinds.values())[:KINDS]}
    inputs = _inputs(copy, context.workload.batches[0], list(chosen))
    found: dict[str, tuple[float, float]] = {}
    for layer, x in inputs.items():
        group = chosen[layer]
        scale = _scale(copy.model.get_submodule(layer), x, [tensors[f] for f in group[0].factors])
        for p in group if scale is not None else ():
            size = _size(tensors, p)
            if scale is not None and math.isfinite(size):
                found[p.layer] = scale, scale * size
    return found


def _inputs(copy: TrainingCopy, batch: object, layers: Sequence[str]) -> Mapping[str, torch.Tensor]:
    """Rows [n, features] of what each of these modules is first called with."""
    seen: dict[str, torch.Tensor] = {}

    def note(layer: str, module: nn.Module, args: tuple[object, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point() and args[0].dim() > 1:
            seen.setdefault(layer, args[0].detach().reshape(-1, args[0].shape[-1])[:ROWS].clone())

    with ExitStack() as hooks, preserve_rng(), restored(copy), torch.no_grad():
        for layer in layers:
            hooks.enter_context(copy.model.get_submodule(layer).register_forward_pre_hook(functools.partial(note, layer)))
        copy.loss(batch)
    return seen


@torch.no_grad()
def _scale(module: nn.Module, x: torch.Tensor, factors: Sequence[torch.Tensor]) -> float | None:
    """What the module adds to its output over the product of its factors, for random ones; None where it adds something else."""
    modes, kept = [(m, m.training) for m in module.modules()], [f.detach().clone() for f in factors]
    generator = torch.Generator().manual_seed(0)
    module.eval()
    try:
        for f in factors:
            f.copy_(torch.randn(f.shape, generator=generator, device="cpu"))
        products = _products(factors[0].float(), factors[1].float())
        with preserve_rng():
            there = module(x)
            factors[1].zero_()
            added = (there - module(x)).float()
    finally:
        for f, values in zip(factors, kept, strict=True):
            f.copy_(values)
        for m, mode in modes:
            m.training = mode
    for product in products:
        if product.shape == (added.shape[-1], x.shape[-1]):
            expected = x.float() @ product.T
            cosine = torch.nn.functional.cosine_similarity(added.flatten(), expected.flatten(), dim=0)
            if cosine.item() >= LEAST_COSINE:
                return (added.norm() / expected.norm()).item()
    return None


def _products(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """The products [out, in] that two factors can make, in either order."""
    ways = [x @ y for x, y in ((a, b), (b, a), (a.T, b), (a, b.T), (b.T, a), (b, a.T)) if x.shape[1] == y.shape[0]]
    return [p for w in ways for p in (w, w.T)]


def _size(tensors: Mapping[str, torch.Tensor], p: Product) -> float:
    """norm(product) / norm(weight), without making the product: its square is the trace of a product of two [rank, rank] matrices."""
    a, b = (tensors[f].detach().float() for f in p.factors)
    rank = min(a.shape)
    down, up = (t if t.shape[0] == rank else t.T for t in (a, b))  # [rank, features]
    square = ((down @ down.T) * (up @ up.T)).sum().clamp(min=0).sqrt()
    return (square / tensors[p.weight].detach().float().norm()).item()


PARAMETRIZED = ".parametrizations."


def adaptation(context: CheckContext) -> Adaptation | None:
    """None where no frozen weight has an adapter."""
    return adapters_of(context.workload.model, context.sites, lambda products: scales_and_sizes(context, products))


def adapters_of(
    model: nn.Module,
    sites: Mapping[str, Location | None],
    measured: Callable[[list[Product]], Mapping[str, tuple[float, float]]] = lambda products: {},
) -> Adaptation | None:
    """From structure alone, except for what was `measured` of products. None if no frozen weight has an adapter."""
    if not any(_is_frozen_weight(p) for p in model.parameters()):
        return None
    held = [*_declared(model)]
    claimed = {id(p) for h in held for p in h.weights}
    held += _by_structure(model, claimed)
    if not held:
        return None
    names = {id(p): name for name, p in model.named_parameters()}
    products = [p for h in held if not h.off and (p := _product(h, names)) is not None]
    acting = measured(products) if products else {}
    found = tuple(_record(h, names, sites, acting) for h in held)
    return Adaptation(found, tuple(_bare(model, held)))


@dataclass
class Held:
    """An adapter in the module that holds it."""

    name: str
    module: nn.Module
    weights: list[torch.Tensor]  # frozen, those that are adapted
    parts: list[torch.Tensor]  # the adapter's own parameters
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # factors
    off: bool = False


def _product(h: Held, names: Mapping[int, str]) -> Product | None:
    """Where the adapter is one product of two matrices."""
    plain = len(h.pairs) == 1 and len(h.weights) == 1 and all(p.dim() == 2 for p in (*h.pairs[0], h.weights[0]))
    if not plain or not all(id(p) in names for p in (*h.pairs[0], h.weights[0])):
        return None
    first, second = h.pairs[0]
    return Product(_layer(h), names[id(h.weights[0])], (names[id(first)], names[id(second)]))


def _layer(h: Held) -> str:
    return h.name.partition(PARAMETRIZED)[0]


def _record(h: Held, names: Mapping[int, str], sites: Mapping[str, Location | None], acting: Mapping[str, tuple[float, float]]) -> Adapter:
    rank = _rank(*h.pairs[0]) if h.pairs else None
    weight = max(h.weights, key=torch.Tensor.numel, default=None)
    return Adapter(
        _layer(h),
        tuple(weight.shape) if weight is not None else (),
        tuple(names[id(p)] for p in h.parts if id(p) in names),
        any(p.requires_grad for p in h.parts),
        h.off,
        rank,
        sites.get(h.name) or sites.get(_layer(h)),
        *acting.get(_layer(h), (None, None)),
    )


def _is_matrix(p: torch.Tensor) -> bool:
    return p.dim() >= 2 and not nn.parameter.is_lazy(p)


def _is_frozen_weight(p: torch.Tensor) -> bool:
    return _is_matrix(p) and not p.requires_grad


# ------------------------------------------------------------------- what a library says


def _declared(model: nn.Module) -> Iterator[Held]:
    """Layers that declare which part of them is an adapter, as PEFT's do: `base_layer`, `adapter_layer_names`, `active_adapters`."""
    for name, module in model.named_modules():
        base, parts = getattr(module, "base_layer", None), getattr(module, "adapter_layer_names", None)
        if not isinstance(base, nn.Module) or not isinstance(parts, tuple):
            continue
        active = [str(a) for a in getattr(module, "active_adapters", ())]
        own = [_of_active(getattr(module, str(part), None), active) for part in parts]
        tensors = [p for part in own for p in part]
        off = bool(getattr(module, "disable_adapters", False) or getattr(module, "merged", False)) or not tensors
        weights: list[torch.Tensor] = [p for p in base.parameters() if _is_frozen_weight(p)]
        if weights and (tensors or off):
            pairs = [(a, b) for a, b in _pairs(weights[0], [p for p in tensors if _is_matrix(p)])]
            yield Held(name, module, weights, tensors, pairs, off)


def _of_active(part: Any, active: list[str]) -> list[torch.Tensor]:
    """The parameters of the adapters in use, of a dict of modules or parameters by the name of the adapter."""
    if not isinstance(part, (nn.ModuleDict, nn.ParameterDict)):
        return []
    found: list[torch.Tensor] = []
    for name in active:
        value: Any = dict(part.items()).get(name)
        found += value.parameters() if isinstance(value, nn.Module) else [value] if isinstance(value, torch.Tensor) else []
    return found


# ------------------------------------------------------------------------- by structure


def _by_structure(model: nn.Module, claimed: set[int]) -> list[Held]:
    """Modules whose only matrices are a frozen weight and pairs of factors that fit it."""
    modules = dict(model.named_modules())
    found: dict[str, Held] = {}
    for name, module in modules.items():
        for weight in module.parameters(recurse=False):
            if not _is_frozen_weight(weight) or id(weight) in claimed:
                continue
            for owner in dict.fromkeys((name, name.rpartition(".")[0] or name)):
                held = _held(owner, modules[owner], weight, module)
                if held is not None and owner not in found:
                    found[owner] = held
                    break
    kinds = {type(h.module) for h in found.values() if any(p.requires_grad for p in h.parts)}
    return [h for h in found.values() if any(p.requires_grad for p in h.parts) or type(h.module) in kinds or _is_void(h)]


def _is_void(h: Held) -> bool:
    """Whether its products are zero, which happens with no other pair of weights."""
    return any(not p.is_meta and not bool(p.detach().any()) for pair in h.pairs for p in pair)


def _held(name: str, owner: nn.Module, weight: torch.Tensor, module: nn.Module) -> Held | None:
    own = list(owner.parameters())
    others: list[torch.Tensor] = [p for p in own if _is_matrix(p) and p is not weight]
    if not others or len(others) > len(own):
        return None
    if any(min(_sides(p)) >= min(_sides(weight)) for p in others):  # no factor of a lower rank: all of a model would be paired off
        return None
    pairs = _pairs(weight, others)
    paired = {id(p) for pair in pairs for p in pair}
    rank = max((_rank(a, b) for a, b in pairs), default=0)
    if not pairs or any(max(p.shape) > rank for p in others if id(p) not in paired):
        return None
    bias = getattr(module, "bias", None)
    return Held(name, owner, [weight], [p for p in own if p is not weight and p is not bias], pairs)


def _pairs(weight: torch.Tensor, matrices: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of matrices whose product has the shape of the weight, or of one of several equal parts of it, and a smaller rank."""
    rows, columns = weight.shape[0], weight[0].numel()
    left, found = list(matrices), []
    while left:
        first = left.pop(0)
        second = next((p for p in left if _fits(first, p, rows, columns) or _fits(p, first, rows, columns)), None)
        if second is not None:
            left = [p for p in left if p is not second]
            found.append((first, second))
    return found


def _fits(down: torch.Tensor, up: torch.Tensor, rows: int, columns: int) -> bool:
    """Whether they lead from the inputs of a weight [rows, columns] through a lower rank to its outputs, or to an equal part of these."""
    (d, a), (u, b) = _sides(down), _sides(up)
    for rank, inputs in ((d, a), (a, d)):
        for outputs, inner in ((u, b), (b, u)):
            if rank == inner < min(rows, columns) and inputs == columns and outputs > rank and rows % outputs == 0:
                return True
    return False


def _sides(p: torch.Tensor) -> tuple[int, int]:
    return p.shape[0], p[0].numel()


def _rank(a: torch.Tensor, b: torch.Tensor) -> int:
    return min(set(_sides(a)) & set(_sides(b)), default=0)


def _bare(model: nn.Module, held: list[Held]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Frozen linear layers that nothing adapts; one that shares its weight with an embedding does not count."""
    known = {id(p) for h in held for p in (*h.module.parameters(), *h.weights)}
    known |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or nn.parameter.is_lazy(weight) or weight.dim() != 2:
            continue
        if not weight.requires_grad and id(weight) not in known and not isinstance(module, nn.Embedding):
            yield name, tuple(weight.shape)
