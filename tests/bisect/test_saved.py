"""Two saved runs of a training of which one thing was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.bisect.saved import are_saved, bisected_runs
from gradcheck.bisect.story import BisectOrders
from gradcheck.errors import ConfigError
from gradcheck.types.bisection import Bisection


def saved(path: Path, eps: float = 1e-5, lr: float = 1e-3, seed: int = 0, shifted: int = -1, every: int = 2) -> str:
    """A run of ten steps. `shifted`: the step from which on it has other targets."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16, eps=eps), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    with gradcheck.watch(model, optimizer, every=every) as board:
        for step in range(10):
            x = torch.randn(32, 8)
            y = (x[:, 0] > 0).long() + (0 <= shifted <= step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    board.report().to_json(path)
    return str(path)


def compared(folder: Path, tolerance: float = 0.0, **changes: float) -> Bisection:
    a, b = saved(folder / "a.json"), saved(folder / "b.json", **changes)  # type: ignore[arg-type]
    assert are_saved(a, b)
    return bisected_runs(a, b, BisectOrders(tolerance=tolerance))


def test_equal_runs_are_equal(tmp_path: Path) -> None:
    found = compared(tmp_path)
    assert found.verdict == "equal" and not found.parted and found.compared > 100
    assert "0, 1, 2, 3, 4, 6 and 1 more" in found.notes[0] and "is not known" in found.noise


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"eps": 1e-2}, (0, "forward", "4")),
        ({"lr": 2e-3}, (0, "update", "0.weight")),
        ({"seed": 1}, (0, "weight", "0.weight")),
        ({"shifted": 6}, (6, "loss", "")),
    ],
)
def test_the_first_thing_that_parts_is_named(changes, first, tmp_path: Path) -> None:
    found = compared(tmp_path, **changes)
    assert found.verdict == "parted"
    assert (found.partings[0].step, found.partings[0].kind, found.partings[0].a) == first
    assert "lr" not in changes or "lr 0.001 against 0.002" in found.causes[0]


def test_a_tolerance_looks_past_small_differences(tmp_path: Path) -> None:
    assert compared(tmp_path, tolerance=0.5, eps=1.001e-5).verdict != "parted"


def test_a_saved_run_goes_with_another_one_only(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="another saved run"):
        are_saved(a, "train.py")
    assert not are_saved("train.py", "other.py") and not are_saved("train.py", None)
