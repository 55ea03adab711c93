"""Residual branches are added where shapes allow, scaled, and started at zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradcheck.analysis.depth import gradient_trend
from gradcheck.remedies.modules.surgery import module_at
from gradcheck.remedies.residual import branches
from gradcheck.workload.treated import Inapplicable
from tests.remedies.patients import batches, finding, held, losses, measured, outputs, patient, plain, proposed, treated, unchanged

ADD, SCALE, ZERO = branches.REMEDIES


def blocks(depth: int = 10) -> nn.Sequential:
    """Blocks of a linear layer and a ReLU; the first one widens."""
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(16 if i == 0 else 32, 32), nn.ReLU()) for i in range(depth)]
    return nn.Sequential(*made, nn.Linear(32, 4))


def slow(model: nn.Sequential, x: torch.Tensor, scale: float) -> torch.Tensor:
    for block in model[:-1]:
        y = block(x)
        x = x + scale * y if y.shape == x.shape else y
    return model[-1](x)


def test_blocks_that_keep_their_shape_get_a_bypass() -> None:
    model = blocks()
    with unchanged(model):
        one = treated(ADD, model, finding("GRAD001"))
    torch.testing.assert_close(outputs(one), slow(model, one.workload.batches[0][0], 1 / 3), rtol=1e-3, atol=1e-4)
    assert isinstance(one.model[1], branches.Residual) and not isinstance(one.model[0], branches.Residual)
    assert held(one) == {id(p) for p in one.model.parameters()}
    assert abs(gradient_trend(measured(one.model)).total) < 1.5 < gradient_trend(measured(model)).total
    assert module_at(one, "3.0").weight.shape == (32, 32)


def test_a_flat_stack_gets_them_around_its_layers() -> None:
    model = plain(8)
    p = proposed(ADD, model, finding("GRAD001"))
    assert p.layers == ("2", "4", "6", "8", "10", "12", "14")
    run = losses(treated(ADD, model, finding("GRAD001")))
    assert run[-1] < 0.7 * run[0]


def test_convolutions_that_keep_their_shape() -> None:
    made = [nn.Sequential(nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1), nn.ReLU()) for i in range(5)]
    model = nn.Sequential(*made, nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU()), nn.Flatten(), nn.Linear(128, 4))
    one = treated(ADD, model, finding("GRAD001"), data=batches((1, 8, 8)))
    assert [i for i, m in enumerate(one.model) if isinstance(m, branches.Residual)] == [1, 2, 3, 4]


def test_a_flat_stack_of_convolutions() -> None:
    layers = [x for i in range(4) for x in (nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4))
    assert proposed(ADD, model, finding("GRAD001"), data=batches((1, 8, 8))).layers == ("2", "4", "6")


def test_nets_that_have_branches_get_no_more_of_them() -> None:
    assert not ADD.propose(finding("GRAD001"), measured(Stream()))


def test_blocks_that_change_the_shape_are_refused() -> None:
    one = patient(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 6), nn.Linear(6, 4)))
    with pytest.raises(Inapplicable, match="no two blocks"):
        ADD.apply(one, ADD.fix("", layers=("0", "1", "2")))


class Stream(nn.Module):
    """A stem, residual blocks without normalization, a head."""

    def __init__(self, depth: int = 9, ending: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), ending()) for _ in range(depth)])
        for block in self.blocks:
            nn.init.kaiming_normal_(block[2].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("ending", [nn.Identity, nn.ReLU])
def test_the_last_weights_of_each_branch_are_scaled(ending: type[nn.Module]) -> None:
    model = Stream(ending=ending)
    p = proposed(SCALE, model, finding("INIT003"))
    assert p.layers == tuple(f"blocks.{i}.2" for i in range(9)) and p.settings["scale"] == pytest.approx(1 / 3, abs=1e-4)
    with unchanged(model):
        one = treated(SCALE, model, finding("INIT003"))
    x = model.stem(one.workload.batches[0][0])
    for block in model.blocks:
        x = x + block(x) / 3
    torch.testing.assert_close(outputs(one), model.head(x), rtol=1e-3, atol=1e-3)
    (before,), (after,) = measured(model).streams, measured(one.model).streams
    assert after.end / after.start < 0.5 * before.end / before.start


def test_branches_start_at_zero_and_learn() -> None:
    model = Stream()
    one = treated(ZERO, model, finding("INIT003"))
    torch.testing.assert_close(outputs(one), model.head(model.stem(one.workload.batches[0][0])))
    run = losses(one)
    assert run[-1] < 0.5 * run[0]


def test_no_branch_starts_at_zero_behind_a_relu() -> None:
    assert not ZERO.propose(finding("INIT003"), measured(Stream(ending=nn.ReLU)))
