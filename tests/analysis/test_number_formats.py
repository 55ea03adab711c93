"""Shares lost in narrower formats against what torch's own casts lose."""

from __future__ import annotations

import pytest
import torch

from gradcheck.analysis.number_formats import BLOCK, BY_NAME, Exponents, loss_scale_exponent, lost
from gradcheck.analysis.number_formats import exponents as of_stats
from gradcheck.instrument.tensor_statistics import describe

SPREADS = (1.0, 4.0, 12.0)  # standard deviation of the exponent


def wide(spread: float, count: int = 4096) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.exp2(torch.randn(count, generator=generator) * spread) * torch.randn(count, generator=generator).sign()


def exponents(x: torch.Tensor) -> Exponents:
    found = of_stats(describe(x))
    assert found is not None
    return found


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision(spread, name, dtype):
    x = wide(spread)
    cast, found = x.to(dtype).float(), lost(exponents(x), BY_NAME[name])
    assert found.under == pytest.approx((cast == 0).float().mean().item(), abs=0.05)
    assert found.over == pytest.approx(cast.isinf().float().mean().item(), abs=0.05)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("name", "dtype", "largest"), [("E4M3", torch.float8_e4m3fn, 8), ("E5M2", torch.float8_e5m2, 15)])
def test_eight_bits_with_a_factor_for_the_tensor(spread, name, dtype, largest):
    x = wide(spread)
    scaled = x * 2.0 ** (largest - x.abs().max().log2().floor().item())
    cast, found = scaled.to(dtype).float(), lost(exponents(x), BY_NAME[name])
    assert found.under == pytest.approx((cast == 0).float().mean().item(), abs=0.05) and found.over == 0


@pytest.mark.parametrize("spread", SPREADS)
def test_eight_bits_with_a_factor_for_each_block(spread):
    blocks = wide(spread, 64 * 4096).view(-1, BLOCK)
    scaled = blocks * torch.exp2(8 - blocks.abs().amax(1, keepdim=True).log2().floor())
    zeros = (scaled.to(torch.float8_e4m3fn).float() == 0).float().mean().item()
    assert lost(exponents(blocks), BY_NAME["MXFP8"]).under == pytest.approx(zeros, abs=0.05)


def test_a_loss_scale_brings_small_gradients_into_range():
    gradients = {"a": Exponents(-40, (1, 1), -39, 2), "b": Exponents(-30, (1,), -30, 1)}
    scale = loss_scale_exponent(gradients, BY_NAME["fp16"])
    assert scale == 45
    assert lost(gradients["a"], BY_NAME["fp16"]).under == 1 and lost(gradients["a"], BY_NAME["fp16"], scale).under == 0


def test_nothing_is_lost_of_nothing():
    assert lost(Exponents(0, (), 0, 0), BY_NAME["E4M3"]).total == 0


def test_one_entry_beyond_the_range_is_seen_where_the_sample_misses_it():
    x = torch.ones(100_000)
    x[77_777] = 1e5
    assert 0 < lost(exponents(x), BY_NAME["fp16"]).over < 1e-3
