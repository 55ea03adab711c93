"""Compares the Triton kernel, run by triton's interpreter, with the plain reductions. Its own program: triton reads the switch once."""

from __future__ import annotations

import math
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from gradcheck.instrument import fused_statistics
from gradcheck.instrument.deferred_statistics import _reduced

TENSORS = {
    "rows": torch.randn(3, 20_000),
    "bfloat16": torch.randn(2, 17).bfloat16(),
    "half of a row is zero": torch.relu(torch.randn(2, 5000)),
    "tiny": 1e-30 * torch.randn(1, 40_000),
    "far from zero": 1e4 + torch.randn(2, 3000),
    "zero": torch.zeros(1, 5),
    "NaN and infinity": torch.tensor([[1.0, math.nan, math.inf], [1.0, 2.0, -math.inf], [3.0, 0.0, -1.0]]),
    "a slice": torch.randn(4, 100)[:, 10:60],
}

if __name__ == "__main__":
    for name, block in TENSORS.items():
        for one, other in zip(fused_statistics.run(block), _reduced(block), strict=True):
            assert torch.allclose(one.double(), other.double(), rtol=1e-6, equal_nan=True), (name, one, other)
