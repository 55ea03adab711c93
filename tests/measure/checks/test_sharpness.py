"""The sharpness against the whole Hessian."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.sharpness import largest_eigenvalue, sharpness
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import fork
from tests.measure.workloads import cross_entropy_step, two_clusters, workload

STALLED = Run("probe", (0.7,) * 60)


def net(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), *more, nn.Linear(5, 2))


def exact(model: nn.Module, batch: Any) -> float:
    """Largest eigenvalue of the whole Hessian."""
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([s.numel() for s in shapes])
        values = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, (batch[0],)), batch[1])

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    return float(values.max())


class OnceDifferentiable(torch.autograd.Function):
    """The identity; its derivative has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone()


class Once(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OnceDifferentiable.apply(x)


@pytest.mark.parametrize(("more", "method"), [((), "hessian-vector products"), ((Once(),), "finite differences")])
def test_it_is_the_largest_eigenvalue_of_the_hessian(more, method):
    batch = two_clusters()[0]
    found = largest_eigenvalue(fork(workload(net(*more))), batch, seed=0, iterations=40)
    assert found is not None and found.method == method
    assert found.value == pytest.approx(exact(net(), batch), rel=0.05)


def test_dropout_does_not_move_it():
    batch = two_clusters()[0]
    w = workload(net(nn.Dropout(0.5)))
    context = CheckContext(w, 0, time.perf_counter() + 1e6, {}, fork(w), STALLED, None)
    found = sharpness(context)
    assert found is not None and found.iterations <= 12
    assert found.value == pytest.approx(exact(net(), batch), rel=0.1)


def test_a_probe_that_learned_needs_none():
    w = workload(net())
    learned = Run("probe", tuple(0.7 * 0.95**t for t in range(60)))
    assert sharpness(CheckContext(w, 0, time.perf_counter() + 1e6, {}, fork(w), learned, None)) is None


def test_the_weights_are_put_back():
    copy = fork(workload(net(Once())))
    before = [p.detach().clone() for p in copy.model.parameters()]
    largest_eigenvalue(copy, two_clusters()[0], seed=0, iterations=2)
    assert all(torch.equal(a, b) for a, b in zip(before, copy.model.parameters(), strict=True))
    assert all(p.grad is None for p in copy.model.parameters())


def test_a_linear_loss_is_flat():
    found = largest_eigenvalue(fork(workload(net(), step=lambda m, b: sum(p.sum() for p in m.parameters()))), two_clusters()[0], seed=0)
    assert found is None or found.value == 0.0


def test_fused_kernels_fall_back():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x[:, None].expand(-1, 4, -1))[0][:, -1])

    found = largest_eigenvalue(fork(workload(Net(), step=cross_entropy_step)), two_clusters()[0], seed=0)
    assert found is not None and found.value > 0
