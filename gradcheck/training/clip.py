"""Norms of gradients, in one batched call; and clipping between the backward pass and the optimizer's step."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from gradcheck.workload.device import as_numbers, has_float64, on_host
from gradcheck.workload.dtensor import laid_out, local
from gradcheck.workload.lockstep import several, whole_norms
from gradcheck.workload.workload import Clipping

WIDE = (torch.float32, torch.float64)
SLICE = 1 << 22  # elements that are widened at once


def total_norm(parameters: Iterable[nn.Parameter]) -> float:
    """2-norm of all gradients together."""
    parameters = list(parameters)
    raw = [g for p in parameters if (g := p.grad) is not None]
    if raw and all(type(g) is torch.Tensor and g.dtype is torch.float32 and g.layout is torch.strided for g in raw):
        with torch.no_grad():  # the common case: every step of a probe
            whole = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(raw)))) if _on_one_device(raw) else math.nan
        if 1e-15 < whole < 1e18:
            return whole
    graded = [(p, g) for p in parameters if (g := gradient_of(p)) is not None]
    return math.sqrt(math.fsum(n * n for n in whole_norms([p for p, _ in graded], norms_of([g for _, g in graded]))))


def _on_one_device(tensors: Sequence[torch.Tensor]) -> bool:
    return all(t.is_cpu for t in tensors) or len({t.device for t in tensors}) == 1


def norms_of(tensors: Sequence[torch.Tensor]) -> list[float]:
    """2-norms in one batched call; in float64 where float32 underflows or overflows."""
    if not tensors:
        return []
    return mended([n for t in on_host(raw_norms(tensors)) for n in t.reshape(-1).tolist()], tensors)


def raw_norms(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """2-norms in float32 or wider, on the tensors' own device, in their order. Does not wait for the device."""
    narrow = any(t.dtype not in WIDE for t in tensors)
    norms = [torch.linalg.vector_norm(t, dtype=_accumulator(t)) for t in tensors] if narrow else list(torch._foreach_norm(list(tensors)))
    alike = all(n.dtype is norms[0].dtype and n.device == norms[0].device for n in norms)
    return [torch.stack(norms)] if alike and norms else norms


def _accumulator(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype in WIDE else torch.float32


def mended(norms: list[float], tensors: Sequence[torch.Tensor]) -> list[float]:
    """The norms of tensors, computed again for those whose squares may have left the range of float32. Waits for the device only then."""
    outside = [i for i, value in enumerate(norms) if not 1e-15 < value < 1e18]
    for i, value in zip(outside, as_numbers([_wide_norm(tensors[i]) for i in outside]), strict=True):
        norms[i] = value
    return norms


def _wide_norm(x: torch.Tensor) -> torch.Tensor:
    """By slices, in float64; on devices without it in units of the largest entry. 0-d."""
    parts = []
    for part in x.reshape(-1).split(SLICE):
        if has_float64(x.device):
            parts.append(part.double().norm())
            continue
        largest = part.abs().amax()
        parts.append((part / torch.where(largest > 0, largest, 1.0)).norm() * largest)
    return parts[0] if len(parts) == 1 else torch.stack(parts).norm()


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """As real floating-point numbers; of a DTensor the local part, here and below."""
    tensor = local(tensor)
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.is_floating_point() else tensor.float()  # frameworks keep counters as parameters


def gradient_of(p: torch.Tensor) -> torch.Tensor | None:
    gradient = p.grad
    if gradient is None:
        return None
    gradient = local(laid_out(gradient.detach(), p) if several() else gradient.detach())
    return as_real(gradient.coalesce().values() if gradient.is_sparse else gradient)


SMALLEST_WEIGHTS = 1e-3  # least norm of a unit's weights: units that start at zero could never move


def clip_gradients(clipping: Clipping | None, model: nn.Module, parameters: Iterable[nn.Parameter] | None = None) -> None:
    """Clips the gradients of `parameters`, all of the model's by default, as the user's loop does; nothing when it does not."""
    if clipping is None:
        return
    chosen = list(model.parameters() if parameters is None else parameters)
    if clipping.kind == "norm":
        nn.utils.clip_grad_norm_(chosen, clipping.threshold)
    elif clipping.kind == "value":
        nn.utils.clip_grad_value_(chosen, clipping.threshold)
    else:
        exempt = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in clipping.exempt}
        clip_adaptively([p for p in chosen if id(p) not in exempt], clipping.threshold)


@torch.no_grad()
def clip_adaptively(parameters: Iterable[nn.Parameter], share: float) -> None:
    """Scales each unit's gradient down to `share` of the norm of its weights: Brock et al. 2021, equation 3.

    A unit is an entry of the first axis of a weight; a bias or gain is one unit as a whole, as in the authors' code.
    """
    for p in parameters:
        if p.grad is None or p.grad.is_sparse:
            continue
        largest = share * unit_norms(p).clamp_min(SMALLEST_WEIGHTS)
        p.grad.mul_((largest / unit_norms(p.grad).clamp_min(1e-12)).clamp_max(1.0))


def unit_norms(x: torch.Tensor) -> torch.Tensor:
    """2-norms over all axes but the first, kept as axes of length 1; of a vector or scalar as a whole."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())) if x.dim() > 1 else None, keepdim=x.dim() > 1)
