"""Which samples of a batch a loss comes from, read from its graph before the backward pass: torch's losses keep what they compare."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

NAMED = 3  # samples
DEPTH = 6  # nodes between the trained loss and torch's own: a division, a product


def _nll(node: Any) -> torch.Tensor:
    target = node._saved_target
    kept = target != node._saved_ignore_index
    found = -node._saved_self.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    return found.masked_fill(~kept, 0.0)


def _pairs(function: Callable[..., torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    return lambda node: function(node._saved_self, node._saved_target, reduction="none")


_LOSSES: dict[str, Callable[[Any], torch.Tensor]] = {
    "NllLossBackward0": _nll,
    "NllLoss2DBackward0": _nll,
    "MseLossBackward0": _pairs(F.mse_loss),
    "SmoothL1LossBackward0": _pairs(F.smooth_l1_loss),
    "HuberLossBackward0": _pairs(F.huber_loss),
    "BinaryCrossEntropyWithLogitsBackward0": _pairs(F.binary_cross_entropy_with_logits),
    "BinaryCrossEntropyBackward0": _pairs(F.binary_cross_entropy),
}


@torch.no_grad()
def worst_samples(loss: torch.Tensor, size: int) -> tuple[tuple[int, float], ...]:
    """Place in the batch and share of the loss, of the samples with the largest. () where it cannot be told cheaply."""
    node: Any = loss.grad_fn
    for _ in range(DEPTH):
        if node is None or node.name() in _LOSSES:
            break
        behind = [n for n, _ in node.next_functions if n is not None and n.name() != "torch::autograd::AccumulateGrad"]
        node = behind[0] if len(behind) == 1 else None
    if node is None or node.name() not in _LOSSES:
        return ()
    try:
        each = _LOSSES[node.name()](node).detach().float()
    except (RuntimeError, AttributeError, IndexError):
        return ()
    if size < 1 or each.numel() % size or each.numel() == 0:
        return ()
    sums = each.reshape(size, -1).sum(1)
    total = float(sums.sum())
    if not total > 0 or total == float("inf"):
        bad = (~sums.isfinite()).nonzero().flatten().tolist()
        return tuple((i, 1.0 / len(bad)) for i in bad[:NAMED]) if bad else ()
    top = sums.topk(min(NAMED, size))
    return tuple((int(i), float(v) / total) for v, i in zip(top.values, top.indices, strict=True))
