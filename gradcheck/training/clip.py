"""Gradient clipping between the backward pass and the optimizer's step: by norm, by value, or adaptive to each unit's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from gradcheck.workload.workload import Clipping

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
