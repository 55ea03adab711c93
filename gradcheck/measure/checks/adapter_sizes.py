"""How strongly adapters act: the factor on the product of their factors, and the size of that product beside the weight's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradcheck.measure.checks.context import CheckContext
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

    def look(layer: str) -> object:
        def note(module: nn.Module, args: tuple[object, ...]) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point() and args[0].dim() > 1:
                seen.setdefault(layer, args[0].detach().reshape(-1, args[0].shape[-1])[:ROWS].clone())

        return copy.model.get_submodule(layer).register_forward_pre_hook(note)

    handles = [look(layer) for layer in layers]
    try:
        with preserve_rng(), restored(copy), torch.no_grad():
            copy.loss(batch)
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
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
