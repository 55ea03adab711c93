"""Quantities of activations beyond the plain statistics: units that are never active, saturation, similarity."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradcheck.analysis.activations import POSITIVE, SATURATING
from gradcheck.instrument.tensor_statistics import spread
from gradcheck.types.layers import LayerKind
from gradcheck.workload.device import wide

# |y| beyond which a function counts as flat: its derivative is below 6 % (tanh), 12 % (sigmoid) of the largest.
_TANH_FLAT, _SIGMOID_FLAT = 0.97, 0.03

DORMANT = 0.025  # of the mean magnitude of a layer's units: Sokar et al. 2023, section 3 (their threshold for image inputs)

SAMPLE = 1 << 14  # entries looked at for saturation
FEW_ROWS = 512  # up to which one call for the mean of rows takes less time than those that a product needs
POSITIONS = 1 << 11  # samples x positions that the magnitudes of units are taken over
ROWS = 64  # samples, and tokens of a sample, compared for similarity
SEQUENCES = 4  # samples whose tokens are compared


def channel_axis(shape: tuple[int, ...], after: LayerKind | None) -> int:
    """The axis of the units: 1 behind convolutions and in 2-D, else the last one."""
    if len(shape) <= 2:
        return len(shape) - 1
    return 1 if after == "conv" else len(shape) - 1


def alive(output: torch.Tensor, axis: int) -> torch.Tensor:
    """Which units [C] are positive for any sample, at any position."""
    x = output.detach()
    others = tuple(i for i in range(x.dim()) if i != axis)
    if not others:
        return x > 0
    if x.is_cpu and x.dtype is torch.float32:
        return torch.from_numpy(_alive(x.numpy(), axis))
    return torch.amax(x, dim=others) > 0


def _alive(x: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.bool_]:
    """Most units are active in the first few samples: the other samples are read only if one was not."""
    units, last = x.shape[axis], axis == x.ndim - 1
    rows = x.reshape(-1, units) if last else x.reshape(-1, units, math.prod(x.shape[axis + 1 :]))
    across, few = (0, ROWS) if last else ((0, 2), 1)
    found = np.maximum.reduce(rows[:few], axis=across, initial=-np.inf) > 0
    if len(rows) > few and not found.all():
        found |= np.maximum.reduce(rows[few:], axis=across) > 0
    return found


def magnitudes(output: torch.Tensor, axis: int, function: str = "") -> tuple[torch.Tensor, bool]:
    """Mean |x| of each unit [C], over an even sample of the samples and positions, and whether these are all of them."""
    x, positive, last = output.detach(), function in POSITIVE, axis == output.dim() - 1
    if positive and x.is_cpu and x.is_contiguous() and x.numel() <= (FEW_ROWS if last else POSITIONS) * x.shape[axis]:
        return x.mean([i for i in range(x.dim()) if i != axis], dtype=torch.float32), True
    if last:
        rows = x.reshape(-1, x.shape[-1])
        stride = spread(len(rows), POSITIONS)
        taken = rows[::stride] if positive else rows[::stride].abs()
        if taken.dtype is torch.float32:  # a product takes a fraction of the time of a sum over rows
            return torch.mv(taken.t(), taken.new_full((len(taken),), 1 / len(taken))), stride == 1
        return taken.mean(0, dtype=torch.float32), stride == 1
    x = x.movedim(axis, 1).flatten(2)
    stride = spread(x.shape[2], max(1, POSITIONS // x.shape[0]))
    x = x[:, :, ::stride] if positive else x[:, :, ::stride].abs()
    return x.mean((0, 2), dtype=torch.float32), stride == 1


def saturated_share(output: torch.Tensor, function: str) -> torch.Tensor | None:
    """Fraction of entries where the function is flat, as a 0-d tensor: nothing waits for the device here."""
    if function not in SATURATING or output.numel() == 0:
        return None
    y = output.detach().reshape(-1)
    y = y[:: spread(len(y), SAMPLE)].float()
    if y.is_cpu:  # numpy's calls take a fraction of the time of torch's
        return torch.tensor(np.float32(np.count_nonzero(_flat(y.numpy(), function))) / np.float32(len(y)), device="cpu")
    return _flat(y, function).float().mean()


def _flat(y: Any, function: str) -> Any:
    if function in ("tanh", "softsign"):
        return abs(y) > _TANH_FLAT
    if function == "sigmoid":
        return abs(y - 0.5) > 0.5 - _SIGMOID_FLAT
    return abs(y) >= 1.0 if function == "hardtanh" else (y <= 0.0) | (y >= 1.0)


def mean_cosine(rows: torch.Tensor) -> torch.Tensor:
    """Mean cosine over the pairs of rows. rows: [..., n, d], n >= 2 -> [...]. A zero row has cosine 0 with all others.

    The sum of all pairwise products of unit vectors is |sum of them|^2, so no [n, n] matrix is made.
    """
    x = wide(rows.detach())
    inverse = torch.linalg.vector_norm(x, dim=-1).reciprocal_()
    inverse = torch.where(torch.isinf(inverse), 0.0, inverse)
    total = torch.matmul(inverse.unsqueeze(-2), x).squeeze(-2)
    n = x.shape[-2]
    return (total.square().sum(-1) - (inverse > 0).sum(-1)) / (n * (n - 1))


def sample_cosine(features: torch.Tensor) -> torch.Tensor | None:
    """Similarity of samples, a 0-d tensor. features: [N, D]."""
    if features.dim() != 2 or features.shape[0] < 2 or features.shape[1] < 2:
        return None
    return mean_cosine(features[:ROWS])


def token_cosine(features: torch.Tensor) -> torch.Tensor | None:
    """Mean over samples of the similarity of a sample's tokens, a 0-d tensor. features: [N, T, D]."""
    if features.dim() != 3 or features.shape[1] < 4 or features.shape[2] < 2 or not features.shape[0]:
        return None
    return mean_cosine(features[:SEQUENCES, :: -(-features.shape[1] // ROWS)]).mean()
