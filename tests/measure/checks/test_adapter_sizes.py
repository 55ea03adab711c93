"""Scale and size of an adapter against the obvious computation on the whole product."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradcheck.measure.checks import adapters
from gradcheck.measure.checks.adapters import Product, scales_and_sizes
from gradcheck.measure.checks.context import CheckContext
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import fork
from gradcheck.workload.workload import Workload


class Adapted(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(inputs, 3)), nn.Parameter(torch.randn(outputs, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 0.7 * (x @ self.a @ self.b.T)


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 9), (9, 5), (6, 6)])
def test_against_the_whole_product(inputs, outputs):
    torch.manual_seed(0)
    layer = Adapted(inputs, outputs)
    model = nn.Sequential(layer)
    workload = Workload(
        "adapted", model, [torch.randn(4, inputs)], lambda m, x: m(x).square().mean(), torch.optim.SGD([layer.a, layer.b], lr=0.1)
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    context = CheckContext(workload, 0, float("inf"), {}, fork(workload), Run("probe", (1.0,)), None)
    scale, size = scales_and_sizes(context, [Product("0", "0.base.weight", ("0.a", "0.b"))])["0"]
    slow = 0.7 * (layer.b @ layer.a.T).norm() / layer.base.weight.norm()
    assert scale == pytest.approx(0.7, rel=1e-4) and size == pytest.approx(slow.item(), rel=1e-4)
    after = dict(context.trained.model.named_parameters())
    assert all(torch.equal(after[name], values) for name, values in before.items())


def test_many_adapters_are_not_compared_with_each_other(monkeypatch):
    with torch.device("meta"):
        body = nn.ModuleList(Adapted(64, 64) for _ in range(200))
        model = nn.ModuleDict({"tokens": nn.Embedding(500, 64).requires_grad_(False), "body": body})
    asked, fits = [], adapters._fits
    monkeypatch.setattr(adapters, "_fits", lambda *args: asked.append(1) or fits(*args))
    assert len(adapters.adapters_of(model, {}).adapters) == 200
    assert len(asked) < 5 * 200
