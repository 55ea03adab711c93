from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gradcheck.instrument import unit_activity


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairwise_cosine(rows: torch.Tensor) -> float:
    """rows: [n, d]. Every pair on its own."""
    n = len(rows)
    pairs = [F.cosine_similarity(rows[i].double(), rows[j].double(), dim=0).item() for i in range(n) for j in range(n) if i != j]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize(
    ("shape", "after", "axis"),
    [((8,), None, 0), ((4, 8), "conv", 1), ((4, 8, 5, 5), "conv", 1), ((4, 5, 8), "linear", 2), ((4, 8, 9), "conv", 1), ((4, 8), None, 1)],
)
def test_units_lie_on_the_channel_axis(shape: tuple[int, ...], after: str | None, axis: int) -> None:
    assert unit_activity.channel_axis(shape, after) == axis  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((2, 4, 3, 3), 1), ((2, 3, 4), 2), ((4,), 0)])
def test_a_unit_is_alive_when_any_of_its_entries_is_positive(shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    x = torch.zeros(shape, dtype=dtype)
    x.select(axis, 1)[(-1,) * (x.dim() - 1)] = 0.5
    x.select(axis, 2).fill_(-1.0)
    expected = [any(v > 0 for v in x.select(axis, i).reshape(-1).tolist()) for i in range(4)]
    assert unit_activity.alive(x, axis).tolist() == expected == [False, True, False, False]


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((9001, 4), 1), ((2, 4, 3, 3), 1), ((2, 3, 4), 2), ((2, 4, 90, 90), 1)])
@pytest.mark.parametrize("function", ["relu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes_are_the_means_of_the_sizes(shape: tuple[int, ...], axis: int, function: str, dtype: torch.dtype) -> None:
    x = getattr(torch.nn.functional, function)(normal(*shape)).to(dtype)
    found, complete = unit_activity.magnitudes(x, axis, function)
    slow = [sum(map(abs, (values := x.select(axis, i).reshape(-1).tolist()))) / len(values) for i in range(4)]
    assert complete == (x.numel() < 8000)  # larger ones are sampled
    assert found.tolist() == pytest.approx(slow, rel=0.2 if not complete else 1e-2 if dtype is torch.bfloat16 else 1e-5)


def test_aliveness_does_not_depend_on_the_memory_format() -> None:
    x = torch.relu(normal(3, 8, 4, 4) - 3)
    assert torch.equal(unit_activity.alive(x, 1), unit_activity.alive(x.to(memory_format=torch.channels_last), 1))


@pytest.mark.parametrize(
    ("function", "flat", "steep"),
    [
        ("tanh", [0.98, -0.99], [0.5, 0.0]),
        ("sigmoid", [0.99, 0.01], [0.5, 0.9]),
        ("softsign", [0.98, -0.98], [0.0, 0.9]),
        ("hardtanh", [1.0, -1.0], [0.99, 0.0]),
        ("hardsigmoid", [0.0, 1.0], [0.5, 0.999]),
    ],
)
def test_saturation_is_the_share_of_entries_on_the_flat_parts(function: str, flat: list[float], steep: list[float]) -> None:
    share = unit_activity.saturated_share(torch.tensor([*flat, *steep, *steep, *steep]), function)
    assert share is not None
    assert share.item() == pytest.approx(0.25)


def test_saturation_of_a_large_tensor_is_sampled_over_all_columns() -> None:
    x = torch.zeros(4096, 256)
    x[:, ::2] = 1.0  # every second unit is saturated
    share = unit_activity.saturated_share(x, "tanh")
    assert share is not None
    assert share.item() == pytest.approx(0.5, abs=0.02)


def test_functions_that_do_not_saturate_have_no_share() -> None:
    assert unit_activity.saturated_share(torch.ones(4), "relu") is None
    assert unit_activity.saturated_share(torch.ones(0), "tanh") is None


@pytest.mark.parametrize("scale", [1.0, 1e-39, 1e30])
def test_mean_cosine_is_that_of_all_pairs(scale: float) -> None:
    rows = (normal(7, 5) + 1) * scale
    assert unit_activity.mean_cosine(rows).item() == pytest.approx(pairwise_cosine(rows.double() / scale), rel=1e-4)


def test_a_zero_row_has_no_direction() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert unit_activity.mean_cosine(rows).item() == pytest.approx(2 / 6)
    assert unit_activity.mean_cosine(torch.zeros(3, 2)).item() == 0.0


def test_samples_at_one_point_have_cosine_one() -> None:
    cosine = unit_activity.sample_cosine(torch.ones(100, 8) * normal(8))
    assert cosine is not None
    assert 1 - cosine.item() < 1e-12


def test_sample_cosine_looks_at_the_first_samples() -> None:
    features = normal(unit_activity.ROWS + 50, 6)
    found = unit_activity.sample_cosine(features)
    assert found is not None
    assert found.item() == pytest.approx(pairwise_cosine(features[: unit_activity.ROWS]), rel=1e-5)


def test_token_cosine_is_the_mean_over_sequences() -> None:
    x = normal(3, 6, 10)
    found = unit_activity.token_cosine(x)
    assert found is not None
    assert found.item() == pytest.approx(sum(pairwise_cosine(s) for s in x) / 3, rel=1e-6)


def test_token_cosine_spreads_over_long_sequences() -> None:
    x = torch.zeros(1, 1000, 2)
    x[:, :500, 0], x[:, 500:, 1] = 1, 1  # the first half points one way, the second the other
    found = unit_activity.token_cosine(x)
    assert found is not None
    assert found.item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (5,), (2, 3, 4)])
def test_similarity_needs_several_samples_of_several_features(shape: tuple[int, ...]) -> None:
    assert unit_activity.sample_cosine(torch.ones(shape)) is None


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 8, 1), (0, 8, 8), (8, 8)])
def test_token_similarity_needs_several_tokens(shape: tuple[int, ...]) -> None:
    assert unit_activity.token_cosine(torch.ones(shape)) is None


def test_not_a_number_shows() -> None:
    rows = torch.tensor([[1.0, math.nan], [1.0, 0.0]])
    assert math.isnan(unit_activity.mean_cosine(rows).item())


@pytest.mark.parametrize(("shape", "axis"), [((64, 100), 1), ((200, 100), 1), ((4, 100, 5, 5), 1), ((3, 50, 100), 2)])
def test_dead_units_are_counted_however_few_they_are(shape: tuple[int, ...], axis: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).abs()
    x.select(axis, 7).zero_()
    x.narrow(axis, 60, 37).zero_()
    assert int((~unit_activity.alive(x, axis)).sum()) == 38


def test_a_unit_that_wakes_late_is_alive() -> None:
    x = torch.zeros(300, 8)
    x[299, 3] = 1.0
    assert unit_activity.alive(x, 1).tolist() == [i == 3 for i in range(8)]
