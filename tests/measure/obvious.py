"""Second implementations, slow and obvious, that the measuring code is compared with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from gradcheck.types.layers import TensorStats


def numbers(x: torch.Tensor) -> np.ndarray:
    """All real numbers of a tensor, as float64 [count]."""
    x = x.detach()
    if x.is_sparse:
        x = x.coalesce().values()
    if x.is_complex():
        x = torch.stack([x.real, x.imag])
    return x.double().numpy().reshape(-1)


def stats(x: torch.Tensor) -> TensorStats:
    values = numbers(x)
    finite = values[np.isfinite(values)]
    nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    if not finite.size:
        return TensorStats(values.size, nan, inf)
    largest = np.abs(finite).max() or 1.0
    norm = float(largest * np.sqrt(((finite / largest) ** 2).sum()))
    zeros = int((finite == 0).sum()) / values.size
    return TensorStats(values.size, nan, inf, finite.mean(), finite.std(), norm, finite.min(), finite.max(), zeros)


def exponents(x: torch.Tensor, smallest: float = 2.0**-126) -> dict[int, int]:
    """floor(log2|x|) -> how often, over normal numbers of float32."""
    values = np.abs(numbers(x))
    values = values[np.isfinite(values) & (values >= smallest)]
    return dict(Counter(int(np.frexp(v)[1]) - 1 for v in values))


def counted(found: TensorStats) -> dict[int, int]:
    return {found.exponent_low + i: c for i, c in enumerate(found.exponent_counts) if c}


def assert_same(found: TensorStats | None, expected: TensorStats, rel: float = 1e-5) -> None:
    assert found is not None
    assert (found.count, found.nan, found.inf) == (expected.count, expected.nan, expected.inf)
    assert (found.min, found.max) == (pytest.approx(expected.min, rel=1e-6), pytest.approx(expected.max, rel=1e-6))
    assert found.zeros == pytest.approx(expected.zeros, abs=1e-12)
    assert found.norm == pytest.approx(expected.norm, rel=rel)
    assert found.std == pytest.approx(expected.std, rel=1e-3 if rel <= 1e-5 else 1e-2, abs=1e-6 * abs(expected.mean))
    assert found.mean == pytest.approx(expected.mean, rel=rel, abs=rel * (expected.std + abs(expected.mean)))
