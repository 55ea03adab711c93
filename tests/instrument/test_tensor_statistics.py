from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from gradcheck.instrument.deferred_statistics import DeferredStatistics
from gradcheck.instrument.tensor_statistics import CHUNK, describe, merge, spread
from gradcheck.types.layers import TensorStats
from tests.measure import obvious


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_entries(x: torch.Tensor, *entries: float) -> torch.Tensor:
    x.view(-1)[: len(entries)] = torch.tensor(entries)
    return x


TENSORS = {
    "normal": normal(64, 128),
    "one entry": torch.tensor([3.0]),
    "zero-dimensional": torch.tensor(-2.5),
    "all zero": torch.zeros(100),
    "constant": torch.full((1000,), 7.0),
    "rectified": torch.relu(normal(32, 50)),
    "far from zero": 1e4 + normal(5000),
    "tiny": 1e-39 * normal(3000),
    "tiny beside zeros": torch.relu(1e-30 * normal(3000)),
    "huge": 1e38 * torch.rand(3000),
    "huge, many": 1e37 * normal(20_000),
    "several chunks": normal(2 * CHUNK + 17),
    "several chunks, one of them zero": torch.cat([torch.zeros(CHUNK), normal(CHUNK)]),
    "several chunks, far from zero": 1e3 + normal(CHUNK + 1000),
    "NaN": with_entries(normal(500), math.nan, math.nan),
    "infinity": with_entries(normal(500), math.inf, -math.inf, math.inf),
    "NaN and infinity": with_entries(normal(500), math.nan, math.inf),
    "nothing finite": torch.tensor([math.nan, math.inf]),
    "NaN in the second chunk": with_entries(normal(CHUNK + 500).flip(0), 0.0).index_fill(0, torch.tensor([CHUNK + 3]), math.nan),
    "infinity in one chunk, NaN in another": normal(2 * CHUNK)
    .index_fill(0, torch.tensor([5]), math.inf)
    .index_fill(0, torch.tensor([CHUNK]), math.nan),
    "float64": normal(1000).double() * 1e-60,
    "complex": torch.complex(normal(200), normal(200, seed=1)),
    "complex conjugate": torch.complex(normal(200), normal(200, seed=1)).conj(),
    "imaginary part of a conjugate": torch.complex(normal(200), normal(200, seed=1)).conj().imag,
    "sparse": torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), torch.tensor([1.0, 2.0, 3.0]), (5,)),
    "channels last": normal(4, 8, 5, 5).to(memory_format=torch.channels_last),
    "transposed": normal(30, 40).t(),
    "every other column": normal(30, 40)[:, ::2],
    "expanded": normal(30, 1).expand(30, 40),
    "with gradient": normal(50).requires_grad_() * 2,
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_is_described_as_the_obvious_way_does(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = describe(TENSORS[name])
    obvious.assert_same(found, obvious.stats(TENSORS[name]))


@pytest.mark.parametrize("name", [n for n, x in TENSORS.items() if x.dtype != torch.float64])
def test_the_queued_way_of_other_devices_gives_the_same(name: str) -> None:
    """Run on the CPU: only where the numbers are computed differs."""
    found: list[TensorStats] = []
    pending = DeferredStatistics()
    pending.queue(TENSORS[name], found.append)
    pending.settle()
    direct = describe(TENSORS[name])
    assert direct is not None
    if not direct.finite and direct.count > 512:  # told by a sample
        assert (found[0].count, found[0].nan > 0) == (direct.count, direct.nan > 0)
        assert found[0].std == pytest.approx(direct.std, rel=0.1)
        return
    obvious.assert_same(found[0], obvious.stats(TENSORS[name]))
    if direct.finite:
        assert obvious.counted(found[0]) == obvious.counted(direct)


def test_tensors_added_together_are_described_as_alone() -> None:
    found: dict[str, TensorStats] = {}
    pending = DeferredStatistics()
    for name, x in TENSORS.items():
        pending.add(x, lambda stats, n=name: found.__setitem__(n, stats))  # type: ignore[misc]
    pending.settle()
    for name, x in TENSORS.items():
        assert found[name] == describe(x), name


def test_tensors_queued_together_go_to_their_own_receivers() -> None:
    tensors = [normal(3, 7, seed=s) for s in range(5)] + [normal(70_000, seed=s) for s in range(2)] + [torch.arange(4), torch.empty(0)]
    found: dict[int, TensorStats] = {}
    pending = DeferredStatistics()
    for i, x in enumerate(tensors):
        pending.queue(x, lambda stats, i=i: found.__setitem__(i, stats))  # type: ignore[misc]
    assert not found
    pending.settle()
    assert sorted(found) == list(range(7))
    for i, stats in found.items():
        obvious.assert_same(stats, obvious.stats(tensors[i]))
    pending.settle()
    assert len(found) == 7


def test_a_queued_tensor_may_change_afterwards() -> None:
    x = torch.ones(10)
    found: list[TensorStats] = []
    pending = DeferredStatistics()
    pending.queue(x, found.append)
    x.zero_()
    pending.settle()
    assert found[0].mean == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_short_floats_are_read_as_what_they_hold(dtype: torch.dtype) -> None:
    x = normal(300).to(dtype)
    obvious.assert_same(describe(x), obvious.stats(x.float()))


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(5),
        torch.tensor([True, False]),
        torch.empty(0),
        torch.empty(0, 4),
        torch.empty(3, device="meta"),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["integers", "bools", "empty", "empty rows", "meta", "quantized", "nested"],
)
def test_what_has_no_statistics_gives_none(x: torch.Tensor) -> None:
    assert describe(x) is None
    DeferredStatistics().queue(x, lambda stats: pytest.fail("nothing should arrive"))


def test_tensors_inside_a_functional_transform_are_left_alone() -> None:
    seen: list[TensorStats | None] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(describe(x))
        return x.sum()

    torch.func.vmap(f)(torch.ones(3, 4))
    torch.func.grad(f)(torch.ones(3))
    assert seen == [None, None]


@pytest.mark.parametrize("name", ["normal", "tiny beside zeros", "huge", "rectified", "NaN", "float64"])
def test_exponents_of_a_small_tensor_are_all_counted(name: str) -> None:
    x = TENSORS[name].reshape(-1)[:400]
    found = describe(x)
    assert found is not None
    assert obvious.counted(found) == obvious.exponents(x, torch.finfo(x.dtype).tiny)


def test_exponents_of_a_large_tensor_are_counted_on_an_even_sample() -> None:
    columns = 2.0 ** torch.arange(16).float()  # each column has an exponent of its own
    found = describe(columns.expand(40_000, 16).contiguous())
    assert found is not None
    shares = np.array(found.exponent_counts) / sum(found.exponent_counts)
    assert found.exponent_low == 0
    assert shares == pytest.approx(np.full(16, 1 / 16), rel=0.05)


@pytest.mark.parametrize(("count", "samples"), [(1, 10), (100, 100), (8192, 512), (30_030 * 8, 1000), (2**20, 4096)])
def test_a_spread_takes_enough_and_keeps_to_no_column(count: int, samples: int) -> None:
    stride = spread(count, samples)
    assert len(range(0, count, stride)) >= min(count, samples)
    assert math.gcd(stride, count) == 1


def test_merged_statistics_are_those_of_the_joined_tensor() -> None:
    parts = [normal(300), 1e3 + normal(500, seed=1), torch.zeros(40), with_entries(normal(60), math.nan, math.inf)]
    merged = merge([s for x in parts if (s := describe(x)) is not None])
    obvious.assert_same(merged, obvious.stats(torch.cat(parts)))
    assert merged is not None
    assert obvious.counted(merged) == obvious.exponents(torch.cat(parts))


def test_merging_leaves_out_what_holds_nothing_finite() -> None:
    merged = merge([TensorStats(4, nan=4), TensorStats(2, mean=5.0, norm=math.sqrt(50), min=5.0, max=5.0)])
    assert merged is not None
    assert (merged.count, merged.nan, merged.mean, merged.min, merged.std) == (6, 4, 5.0, 5.0, 0.0)


def test_merging_one_or_none() -> None:
    one = TensorStats(3, mean=1.0)
    assert merge([one]) is one
    assert merge([]) is None


def test_numpy_set_to_raise_does_not_stop_the_measuring() -> None:
    usual = [repr(describe(x)) for x in TENSORS.values()]
    with np.errstate(all="raise"):
        assert [repr(describe(x)) for x in TENSORS.values()] == usual
