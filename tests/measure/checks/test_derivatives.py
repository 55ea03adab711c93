"""Directional derivatives, and custom Functions by themselves, against differences taken entry by entry."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from gradcheck.measure.checks import derivatives as derivatives_module
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.derivatives import derivatives
from gradcheck.measure.checks.functions import DerivativeComparison, custom_functions
from gradcheck.training.trainer import Trainer
from gradcheck.types.checks import Derivatives
from gradcheck.workload.training_copy import fork
from gradcheck.workload.workload import Workload
from tests.measure.workloads import cross_entropy_step, two_clusters, workload


class Cube(Function):
    """A right one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


class HalfCube(Cube):
    """Off by a half; its forward is inherited."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 1.5 * x**2


class SeparateSine(Function):
    """Off in the newer style, without a context in forward."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.sin()


class OpenRelu(Function):
    """Forgets its mask."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class OpenClamp(OpenRelu):
    """Lets the gradient through on purpose."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-0.3, 0.3)


class Rounded(OpenRelu):
    """To steps of a size that follows the data."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max() / 15
        return (x / scale).round() * scale


class Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.factor * gradient, None


class Apply(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def context(model: nn.Module, batches: Any = None) -> CheckContext:
    torch.manual_seed(0)
    w: Workload = workload(model, torch.optim.SGD(model.parameters(), lr=0.01), cross_entropy_step, batches or two_clusters())
    copy = fork(w)
    training = Trainer(copy, w.batches)
    training.train(2, float("inf"))
    return CheckContext(w, 0, time.perf_counter() + 600, {}, copy, training.record("probe"), None)


def net(middle: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), middle if isinstance(middle, nn.Module) else Apply(middle), nn.Linear(8, 2))


def measured(middle: Any) -> Derivatives:
    return derivatives(context(net(middle)))


def obvious_disagreement(model: nn.Module, batch: Any) -> float:
    """Autograd against a difference for every single weight, in float64; the error of the whole gradient."""
    model = model.double()
    batch = (batch[0].double(), batch[1])
    model.zero_grad()
    cross_entropy_step(model, batch).backward()
    analytic, numeric = [], []
    for p in model.parameters():
        flat, gradient = p.data.view(-1), p.grad.view(-1)
        for i in range(len(flat)):
            values = []
            for sign in (1, -1):
                flat[i] += sign * 1e-6
                values.append(cross_entropy_step(model, batch).item())
                flat[i] -= sign * 1e-6
            numeric.append((values[0] - values[1]) / 2e-6)
            analytic.append(float(gradient[i]))
    a, n = torch.tensor(analytic), torch.tensor(numeric)
    return float((a - n).norm() / n.norm())


CONSTANT = torch.full((8, 8), 0.1)
CORRECT = {
    "plain": lambda: nn.Tanh(),
    "relu": lambda: nn.ReLU(),
    "cube": lambda: Apply(Cube.apply),
    "dropout": lambda: nn.Dropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(8),
    "layer norm": lambda: nn.LayerNorm(8),
    "noise": lambda: Apply(lambda x: x + torch.randn_like(x)),
    "cast": lambda: Apply(lambda x: torch.softmax(x.float(), -1, dtype=torch.float32).to(torch.bfloat16).float()),
    "constant in float32": lambda: Apply(lambda x: x @ CONSTANT),
    "zeros before a relu": lambda: nn.Sequential(zeros(nn.Linear(8, 8)), nn.ReLU()),
    "checkpoint": lambda: Apply(lambda x: torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False)),
    "a threshold": lambda: Apply(lambda x: x * (x > 0.1).float()),
    "many batch norms": lambda: nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())]),
}


def zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize("name", CORRECT)
def test_correct_gradients_agree(name: str) -> None:
    found = measured(CORRECT[name]())
    assert found.deterministic and found.error < 1e-5 and found.function is None


@pytest.mark.parametrize("function", [HalfCube, SeparateSine, OpenRelu])
def test_a_wrong_backward_is_found_where_single_weights_show_it(function: type[Function]) -> None:
    found = measured(function.apply)
    assert obvious_disagreement(net(function.apply), two_clusters()[0]) > 1e-2
    assert found.error > 1e-3 and found.function == function.__name__ and found.intended is None
    assert found.layer == "1" and found.site is not None and found.gradcheck is not None and "mismatch" in found.gradcheck


def test_single_weights_agree_on_a_right_backward() -> None:
    assert obvious_disagreement(net(Cube.apply), two_clusters()[0]) < 1e-6


@pytest.mark.parametrize(
    ("middle", "intended"),
    [
        (OpenClamp.apply, "straight-through"),
        (Rounded.apply, "straight-through"),
        (lambda x: Reversed.apply(x, -0.3), "gradient-reversal"),
        (lambda x: Reversed.apply(x, 0.3), "gradient-scaling"),
        (lambda x: Reversed.apply(x, 0.0), "stop-gradient"),
        (lambda x: x + (x.round() - x).detach(), "straight-through"),
        (lambda x: x - x.mean(1, keepdim=True).detach(), "stop-gradient"),
        (lambda x: F.gumbel_softmax(x, hard=True), "straight-through"),
        (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), "straight-through"),
    ],
)
def test_what_is_meant_is_recognised(middle: Any, intended: str) -> None:
    found = measured(middle)
    assert found.error > 1e-3 and found.intended == intended


def test_a_function_by_itself_is_off_by_as_much_as_it_was_made_to_be() -> None:
    found = measured(HalfCube.apply)
    assert found.function_error == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("factor", "expected"), [(-1.0, -1.0), (0.25, 0.25)])
def test_a_tensor_hook_is_found(factor: float, expected: float) -> None:
    def hooked(x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            x.register_hook(lambda g: factor * g)
        return x

    found = measured(hooked)
    assert found.hook == "tensor" and found.layer == "1" and found.hook_factor == pytest.approx(expected)


def test_a_module_hook_is_found() -> None:
    model = net(nn.Tanh())
    model[1].register_full_backward_hook(lambda module, inner, outer: tuple(3 * g for g in inner))
    found = derivatives(context(model))
    assert found.hook == "module" and found.layer == "1" and found.hook_factor == pytest.approx(3.0)


def test_the_padding_row_of_an_embedding_may_get_no_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 6, padding_idx=0), nn.Flatten(), nn.Linear(18, 2))
    batches = [(torch.tensor([[0, 1, 2], [3, 0, 4], [0, 0, 1], [2, 3, 0]]), torch.tensor([0, 1, 1, 0]))]
    assert derivatives(context(model, batches)).error < 1e-5


def test_passes_that_count_themselves_are_not_deterministic() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls

    assert not measured(Counting()).deterministic


def test_a_step_that_takes_too_long_is_not_made() -> None:
    late = context(net(nn.Tanh()))
    late.deadline = time.perf_counter()
    with pytest.raises(Unmeasured, match="would take about"):
        derivatives(late)


def test_large_models_are_compared_only_for_a_backward_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivatives_module, "LARGE", 10)
    assert measured(Cube.apply).error < 1e-6
    monkeypatch.setattr(derivatives_module, "custom_functions", list)
    with pytest.raises(Unmeasured, match="GiB in float64, more than the training; this program has no backward"):
        measured(nn.Tanh())


def test_functions_are_put_back() -> None:
    before = {cls: cls.__dict__.get("forward") for cls in custom_functions()}
    measured(HalfCube.apply)
    assert {cls: cls.__dict__.get("forward") for cls in custom_functions()} == before
    assert "forward" not in HalfCube.__dict__ and torch.get_default_dtype() == torch.float32


class TestComparison:
    def differences(self, *values: float, analytic: float = 1.0, noise: float = 1e-12) -> float | None:
        compared = DerivativeComparison(analytic)
        for step, value in zip((1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3), values, strict=False):
            compared.add(step, value, noise)
        return compared.disagreement

    def test_one_step_that_agrees_is_enough(self) -> None:
        assert self.differences(0.2, 1.0, 5.0) == pytest.approx(0.0, abs=1e-9)

    def test_steps_that_disagree_have_to_agree_with_each_other(self) -> None:
        assert self.differences(0.5, 0.5, 0.5) == pytest.approx(0.5)
        assert self.differences(0.5, 0.5) is None
        assert self.differences(0.9, 0.5, 0.2, 0.05) is None

    def test_values_far_below_the_analytic_one_have_to_agree_as_well(self) -> None:
        assert self.differences(0.001, 0.002, 0.004) is None
        assert self.differences(0.0, 0.0, 0.0) == pytest.approx(1.0)

    def test_rounding_is_no_disagreement(self) -> None:
        assert self.differences(1e-9, 3e-9, 2e-9, analytic=2e-9, noise=1e-8) == 0.0
