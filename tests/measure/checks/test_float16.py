"""What float16 flushes to zero, against a float16 backward pass that is done by hand; and updates that rounding loses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks import float16 as half
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.parameters import StepWatch, watch
from gradcheck.types.checks import HalfGradients
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import fork
from tests.measure.workloads import workload

BATCH = (torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def autocast_step(scale: float, dtype: torch.dtype = torch.float16) -> Any:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return F.cross_entropy(model(batch[0]), batch[1]) * scale

    return step


def looked_at(scale: float, float16: bool = True) -> HalfGradients | None:
    w = workload(net(), step=autocast_step(scale), batches=[BATCH])
    return half.measure(CheckContext(w, 0, math.inf, {}, fork(w), Run("probe", ()), None, float16))


def by_hand(scale: float) -> float:
    """Share of the gradient entries at both linear outputs that are not 0 in float32 and are 0 in float16."""
    model = net().half()
    hidden = model[0](BATCH[0].half()).detach().requires_grad_()
    output = model[2](hidden.relu()).detach().float().requires_grad_()
    F.cross_entropy(output, BATCH[1]).backward()
    exact = output.grad
    assert exact is not None
    low = (exact * scale).half()
    wide = (exact @ model[2].weight.float()) * (hidden > 0)
    narrow = (low @ model[2].weight) * (hidden > 0)
    lost = ((low == 0) & (exact != 0)).sum() + ((narrow == 0) & (wide != 0)).sum()
    return lost.item() / (low.numel() + narrow.numel())


@pytest.mark.parametrize("scale", [1.0, 3e-5, 1e-5, 3e-6])
def test_the_share_that_is_flushed(scale):
    found = looked_at(scale)
    assert found is not None and found.entries == 32 * 20
    assert found.flushed == pytest.approx(by_hand(scale), abs=0.02)


def test_the_scale_is_one_that_keeps_gradients_finite():
    small, large = looked_at(1e-5), looked_at(3000.0)
    assert small is not None and small.scale == half.SCALES[0]
    assert large is not None and large.scale < half.SCALES[0] and large.flushed == 0


def test_gradients_that_no_scale_keeps_finite_are_not_measured():
    with pytest.raises(Unmeasured):
        looked_at(1e9)


def test_nothing_is_run_for_other_models():
    assert looked_at(1.0, float16=False) is None


def unchanged(dtype: torch.dtype, lr: float) -> list[float | None]:
    model = net().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    F.cross_entropy(model(BATCH[0].to(dtype)).float(), BATCH[1]).backward()
    before = [p.detach().clone() for p in model.parameters()]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    watched = watch(model, optimizer)
    watching = StepWatch(watched, 0, look_at_rows=False)
    optimizer.step()
    watching.after()
    found = {w.name: w.steps[0].unchanged for w in watched}
    for (name, p), old, g in zip(model.named_parameters(), before, gradients, strict=True):
        if dtype != torch.float32:
            pairs = zip(p.detach().reshape(-1).tolist(), old.reshape(-1).tolist(), g.reshape(-1).tolist(), strict=True)
            same = [new == was for new, was, gradient in pairs if gradient != 0]
            assert found[name] == pytest.approx(sum(same) / len(same))
    return list(found.values())


def test_updates_below_the_resolution_of_the_weights():
    assert all(share is not None and share > 0.9 for share in unchanged(torch.bfloat16, 1e-5))
    assert all(share is not None and share < 0.2 for share in unchanged(torch.bfloat16, 30.0))
    assert all(share is not None and share > 0.8 for share in unchanged(torch.float16, 1e-5))
    assert unchanged(torch.float32, 1e-5) == [None] * 4
