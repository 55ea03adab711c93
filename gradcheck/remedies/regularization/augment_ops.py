"""Training batches as one step sees them: flips, shifts, crops, noise, mixup, dropped tokens.

Each takes (batch, generator) last and gives a batch of the same structure. Targets stay as they are, but for mixup.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.workload.batch_tensors import replaced, tensor_at
from gradcheck.workload.step import apply_loss, as_scalar
from gradcheck.workload.workload import Batch


def flip(index: int, batch: Batch, generator: torch.Generator) -> Batch:
    """Mirrors half of the images [N, C, H, W] left to right."""
    x = tensor_at(batch, index)
    chosen = torch.rand(len(x), generator=generator, device="cpu") < 0.5
    return replaced(batch, {index: torch.where(chosen.to(x.device)[:, None, None, None], x.flip(-1), x)})


def shift(index: int, share: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Moves each image by up to `share` of its height and width; the border is repeated."""
    x = tensor_at(batch, index)
    return replaced(batch, {index: _windows(x, round(share * x.shape[2]), round(share * x.shape[3]), "replicate", generator)})


def crop(index: int, share: float, batch: Batch, generator: torch.Generator) -> Batch:
    """A window of the image's size out of the image with a border of zeros, `share` of its size wide."""
    x = tensor_at(batch, index)
    return replaced(batch, {index: _windows(x, round(share * x.shape[2]), round(share * x.shape[3]), "constant", generator)})


def _windows(x: torch.Tensor, high: int, wide: int, mode: str, generator: torch.Generator) -> torch.Tensor:
    n, height, width = x.shape[0], x.shape[2], x.shape[3]
    padded = F.pad(x, (wide, wide, high, high), mode=mode)
    top = torch.randint(2 * high + 1, (n,), generator=generator, device="cpu")
    left = torch.randint(2 * wide + 1, (n,), generator=generator, device="cpu")
    rows = (top[:, None] + torch.arange(height, device="cpu"))[:, None, :, None].to(x.device)
    columns = (left[:, None] + torch.arange(width, device="cpu"))[:, None, None, :].to(x.device)
    samples = torch.arange(n, device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[samples, channels, rows, columns]


def noise(index: int, scale: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Adds normal noise of `scale` times the standard deviation of each feature over the batch."""
    x = tensor_at(batch, index)
    spread = x.std(0, keepdim=True, correction=0)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
    return replaced(batch, {index: x + scale * spread * noise})


@dataclass(frozen=True)
class Mixed:
    """Two targets of each sample, of which the first counts `share` and the second the rest."""

    first: torch.Tensor
    second: torch.Tensor
    share: float


def mix(index: int, target: int, alpha: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Each sample and a random other one of the batch, in the share that a Beta(alpha, alpha) variable gives for the whole batch."""
    x, y = tensor_at(batch, index), tensor_at(batch, target)
    share, order = _beta(alpha, generator), torch.randperm(len(x), generator=generator, device="cpu").to(x.device)
    mixed = share * x + (1 - share) * x[order]
    other = y[order]
    new: Any = share * y + (1 - share) * other if y.is_floating_point() else Mixed(y, other, share)
    return replaced(batch, {index: mixed, target: new})


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A Beta(alpha, alpha) variable: the ratio of two Gamma variables, from torch's own sampler."""
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64, device="cpu"), generator=generator).tolist()
    return a / (a + b) if a + b > 0 else 1.0


def mixed_loss(loss: Any, output: Any, target: Any) -> torch.Tensor:
    """The user's loss; of both targets where they are mixed."""
    if not isinstance(target, Mixed):
        return as_scalar(apply_loss(loss, output, target))
    first, second = (as_scalar(apply_loss(loss, output, t)) for t in (target.first, target.second))
    return target.share * first + (1 - target.share) * second


def drop_tokens(index: int, rate: float, batch: Batch, generator: torch.Generator) -> Batch:
    """Replaces some tokens of [N, T] by others of the batch: their frequencies stay what they are, and no mask token is needed."""
    x = tensor_at(batch, index)
    others = x.reshape(-1)[torch.randint(x.numel(), (x.numel(),), generator=generator, device="cpu").to(x.device)].reshape(x.shape)
    return replaced(batch, {index: torch.where(torch.rand(x.shape, generator=generator, device="cpu").to(x.device) < rate, others, x)})
