"""Clipping of gradients against loops over units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradcheck.training.clip import clip_adaptively, clip_gradients, unit_norms
from gradcheck.workload.workload import Clipping


def model_with_gradients(scale: float = 5.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    for p in model.parameters():
        p.grad = scale * torch.randn_like(p)
    return model


def adaptively_by_hand(weight: torch.Tensor, gradient: torch.Tensor, share: float) -> torch.Tensor:
    """Brock et al. 2021, equation 3, unit by unit."""
    result = gradient.clone()
    rows = range(weight.shape[0]) if weight.dim() > 1 else [slice(None)]
    for i in rows:
        w = max(float((weight[i].double() ** 2).sum()) ** 0.5, 1e-3)
        g = float((gradient[i].double() ** 2).sum()) ** 0.5
        if g / w > share:
            result[i] = share * w / g * gradient[i]
    return result


@pytest.mark.parametrize("share", [0.01, 0.3, 1e6])
def test_adaptive_clipping_is_the_published_formula(share: float) -> None:
    model = model_with_gradients()
    with torch.no_grad():
        model[3].weight[0] = 0.0  # a unit that starts at zero
    expected = [adaptively_by_hand(p.detach(), p.grad, share) for p in model.parameters()]
    clip_adaptively(model.parameters(), share)
    for p, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted)


def test_adaptive_clipping_leaves_exempt_parameters_and_missing_gradients_alone() -> None:
    model = model_with_gradients()
    model[0].bias.grad = None
    before = model[3].weight.grad.clone()
    inner = model[2].weight.grad.clone()
    clip_gradients(Clipping("adaptive", 0.01, exempt=("3.weight", "3.bias")), model)
    assert torch.equal(model[3].weight.grad, before)
    assert not torch.equal(model[2].weight.grad, inner)
    assert model[0].bias.grad is None


def test_by_norm_and_by_value_are_those_of_torch() -> None:
    for kind, torch_clip in (("norm", nn.utils.clip_grad_norm_), ("value", nn.utils.clip_grad_value_)):
        ours, theirs = model_with_gradients(), model_with_gradients()
        clip_gradients(Clipping(kind, 0.7), ours)  # type: ignore[arg-type]
        torch_clip(theirs.parameters(), 0.7)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


def test_no_clipping_changes_nothing_and_a_part_of_the_parameters_can_be_clipped() -> None:
    model = model_with_gradients()
    before = [p.grad.clone() for p in model.parameters()]
    clip_gradients(None, model)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    clip_gradients(Clipping("value", 1e-3), model, [model[0].weight])
    changed = [not torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert changed == [True, False, False, False, False, False]


def test_units_of_a_weight_and_of_a_bias() -> None:
    assert unit_norms(torch.ones(3, 4)).shape == (3, 1)
    assert unit_norms(torch.ones(3, 4, 2)).flatten().tolist() == pytest.approx([8**0.5] * 3)
    assert unit_norms(torch.ones(9)).item() == 3.0
    assert unit_norms(torch.tensor(-2.0)).item() == 2.0
