from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradcheck
from gradcheck.measure import equal_rows as equal_rows_of
from gradcheck.measure import parameters
from gradcheck.measure.equal_rows import EqualRows
from gradcheck.measure.parameters import SAMPLE, StepWatch, watch
from gradcheck.training.clip import total_norm
from gradcheck.types.parameters import ParameterStep


def norm(x: torch.Tensor) -> float:
    return math.sqrt((x.abs().double() ** 2).sum().item())


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> tuple[dict[str, ParameterStep], float | None]:
    watching = StepWatch(watched := watch(model, optimizer), step, look_at_rows=True)
    optimizer.step()
    cosine = watching.after()
    return {w.name: w.steps[-1] for w in watched if w.steps}, cosine


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def backward(model: nn.Module, size: int = 5) -> None:
    torch.manual_seed(1)
    model(torch.randn(7, size)).square().sum().backward()


def test_norms_and_update_ratios_are_those_of_the_obvious_way() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    found, cosine = one_step(model, optimizer)
    assert found.keys() == before.keys()
    for name, p in model.named_parameters():
        step = found[name]
        assert step.norm == pytest.approx(norm(before[name]))
        assert step.gradient_norm == pytest.approx(norm(gradients[name]))
        assert step.gradient_max == pytest.approx(gradients[name].abs().max().item())
        assert step.update_ratio == pytest.approx(norm(p.detach() - before[name]) / norm(before[name]), rel=1e-5)
        assert step.gradient_finite
    assert cosine == pytest.approx(1.0)
    assert total_norm(model.parameters()) == pytest.approx(math.sqrt(sum(norm(g) ** 2 for g in gradients.values())))


def test_the_watch_knows_the_norm_of_all_gradients() -> None:
    model = small()
    backward(model)
    watching = StepWatch(watch(model, torch.optim.SGD(model.parameters(), lr=0.1)), 0, look_at_rows=False)
    assert watching.total_norm == pytest.approx(total_norm(model.parameters()))


@pytest.mark.parametrize("maximize", [False, True])
def test_the_cosine_tells_ascent_from_descent(maximize: bool) -> None:
    model = small()
    backward(model)
    _, cosine = one_step(model, torch.optim.SGD(model.parameters(), lr=0.1, maximize=maximize))
    assert cosine == pytest.approx(-1.0 if maximize else 1.0)


def test_the_cosine_of_an_adaptive_step_is_that_of_all_entries_together() -> None:
    model = small()
    backward(model)
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    _, cosine = one_step(model, torch.optim.Adam(model.parameters(), lr=0.01))
    change = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before
    assert cosine == pytest.approx(-torch.cosine_similarity(change.double(), g.double(), dim=0).item(), rel=1e-4)


def test_a_parameter_that_does_not_move_has_ratio_zero_and_frozen_ones_none() -> None:
    model = small()
    backward(model)
    model[0].requires_grad_(False)
    found, _ = one_step(model, torch.optim.SGD(model.parameters(), lr=0.0))
    assert found["0.weight"].update_ratio is None
    assert found["2.weight"].update_ratio == 0.0


def test_parameters_without_gradient_say_so() -> None:
    model = small()
    model(torch.randn(2, 5)).sum().backward()
    model[0].zero_grad(set_to_none=True)
    found, _ = one_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert found["0.weight"].gradient_norm is None
    assert found["0.weight"].gradient_max is None
    assert found["2.weight"].gradient_norm


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_hold_where_float32_squares_do_not(scale: float) -> None:
    model = nn.Linear(30, 30)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
            p.grad = torch.full_like(p, scale)
    watching = StepWatch(watch(model, torch.optim.SGD(model.parameters(), lr=0.1)), 1, look_at_rows=True)
    watching.after()
    assert watching.watched[0].steps[0].norm == pytest.approx(norm(model.weight.detach()), rel=1e-5)
    assert watching.watched[0].steps[0].gradient_norm == pytest.approx(30 * scale, rel=1e-5)
    assert total_norm(model.parameters()) == pytest.approx(scale * math.sqrt(930), rel=1e-5)


def test_gradients_that_are_not_finite_show() -> None:
    model = small()
    backward(model)
    assert model[0].weight.grad is not None
    model[0].weight.grad[0, 0] = math.nan
    found, cosine = one_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not found["0.weight"].gradient_finite
    assert found["2.weight"].gradient_finite
    assert found["0.weight"].update_ratio is None
    assert cosine is None
    assert math.isnan(total_norm(model.parameters()))


def test_large_parameters_are_followed_by_a_sample() -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 400)
    assert model.weight.numel() > 10 * SAMPLE
    model(torch.randn(16, 300)).square().mean().backward()
    before = model.weight.detach().clone()
    found, cosine = one_step(model, torch.optim.Adam(model.parameters(), lr=1e-2))
    true = norm(model.weight.detach() - before) / norm(before)
    assert found["weight"].update_ratio == pytest.approx(true, rel=0.1)
    assert cosine is not None
    assert cosine > 0.5


def test_a_parameter_that_was_moved_in_memory_is_still_followed() -> None:
    model = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watched = watch(model, optimizer)
    for step in range(2):
        model.weight.data = model.weight.data.clone() * 1.0
        model.weight.grad, model.bias.grad = torch.ones(100, 100), torch.ones(100)
        before = model.weight.detach().clone()
        watching = StepWatch(watched, step, look_at_rows=False)
        optimizer.step()
        watching.after()
        assert watched[0].steps[-1].update_ratio == pytest.approx(50 / norm(before), rel=0.05)


def test_half_precision_complex_and_sparse_parameters() -> None:
    half = nn.Linear(4, 4).to(torch.bfloat16)
    turned = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
    embedding = nn.Embedding(10, 4, sparse=True)
    model = nn.Module()
    model.half, model.embedding = half, embedding
    model.register_parameter("turned", turned)
    half(torch.ones(2, 4, dtype=torch.bfloat16)).float().sum().backward()
    (turned * turned.conj()).real.sum().backward()
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    assert embedding.weight.grad is not None and turned.grad is not None
    sparse, complex_norm = norm(embedding.weight.grad.to_dense()), norm(turned.grad)
    found, cosine = one_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert found["embedding.weight"].gradient_norm == pytest.approx(sparse)
    assert found["turned"].gradient_norm == pytest.approx(complex_norm)
    assert found["half.weight"].norm > 0
    assert cosine == pytest.approx(1.0, abs=0.05)


def test_tied_parameters_appear_once_and_groups_are_counted() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False), "other": nn.Linear(2, 2)})
    model["head"].weight = model["tokens"].weight
    optimizer = torch.optim.SGD([{"params": [model["tokens"].weight]}], lr=0.1)
    watched = {w.name: w for w in watch(model, optimizer)}
    assert watched["tokens.weight"].aliases == ["head.weight"]
    assert "head.weight" not in watched
    assert (watched["tokens.weight"].groups, watched["other.weight"].groups) == (1, 0)


def test_mean_and_spread_at_the_start() -> None:
    model = small()
    first = watch(model, torch.optim.SGD(model.parameters(), lr=0.1))[0].record()
    assert first.mean == pytest.approx(model[0].weight.mean().item())
    assert first.std == pytest.approx(model[0].weight.std(correction=0).item())
    assert (first.shape, first.count, first.layer) == ((4, 5), 20, "0")


def test_lazy_and_empty_parameters_are_passed_over() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(0, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    watched = watch(model, optimizer)
    assert {w.name for w in watched} == {"1.weight", "1.bias"}
    assert StepWatch(watched, 0, look_at_rows=True).after() is None


def test_small_gradients_and_weights_of_one_shape_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)), nn.Linear(3, 5), nn.Linear(5, 100), nn.Linear(100, 100))
    with torch.no_grad():
        model[7].weight[1] = model[7].weight[0]
    model(torch.randn(4, 3)).square().sum().backward()
    model[7].weight.grad[1] = model[7].weight.grad[0]
    looks = []
    for module in (equal_rows_of, parameters):
        monkeypatch.setattr(module, "ends", lambda *a, look=module.ends: looks.append(a) or look(*a))
    watched = watch(model, torch.optim.SGD(model.parameters(), lr=0.0))
    step = StepWatch(watched, 0, look_at_rows=True)
    step.after()
    assert len(looks) == 7 + 4 + 1  # shapes of the gradients, of the matrices, and the gradient of the one with equal rows
    found = {w.name: g for w, g in zip(step.watched, step.gradient_maxima, strict=True)}
    assert found == {n: p.grad.abs().max().item() for n, p in model.named_parameters()}
    assert {w.name: w.steps[0].duplicate_units for w in watched if w.steps[0].duplicate_units} == {"7.weight": 2 / 3}


def equal_rows(pair: tuple[torch.Tensor, torch.Tensor | None]) -> tuple[float, bool]:
    rows = EqualRows([pair])
    return rows.read(rows.flags)[0]


class TestEqualRows:
    def test_share_of_rows_that_have_a_twin(self) -> None:
        torch.manual_seed(0)
        weight = torch.randn(8, 6)
        weight[3] = weight[5] = weight[0]
        assert equal_rows((weight, None)) == (3 / 8, False)

    def test_twins_in_weight_with_other_gradients_are_none(self) -> None:
        torch.manual_seed(0)
        weight, gradient = torch.randn(6, 6), torch.randn(6, 6)
        weight[1] = weight[0]
        assert equal_rows((weight, gradient))[0] == 0
        gradient[1] = gradient[0]
        assert equal_rows((weight, gradient))[0] == pytest.approx(2 / 6)

    def test_one_constant_is_known_as_such(self) -> None:
        assert equal_rows((torch.full((4, 3), 0.5), None)) == (1.0, True)
        assert equal_rows((torch.zeros(4, 3, 3), torch.randn(4, 3, 3))) == (0.0, True)

    def test_random_rows_have_none(self) -> None:
        torch.manual_seed(0)
        assert equal_rows((torch.randn(20_000, 10), None)) == (0.0, False)

    def test_many_twins_among_many_rows(self) -> None:
        torch.manual_seed(0)
        weight = torch.randn(5000, 8)
        weight[:4500] = weight[0]
        assert equal_rows((weight, None)) == (0.9, False)

    def test_complex_rows(self) -> None:
        torch.manual_seed(0)
        weight = torch.randn(4, 5, dtype=torch.complex64)
        weight[1] = weight[0]
        assert equal_rows((weight, None))[0] == 0.5

    @pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
    def test_single_rows_and_columns_say_nothing(self, shape: tuple[int, int]) -> None:
        assert equal_rows((torch.randn(shape), None))[0] == 0.0

    def test_tiny_weights_are_told_apart(self) -> None:
        torch.manual_seed(0)
        assert equal_rows((1e-30 * torch.randn(50, 20), None))[0] == 0.0

    def test_the_random_state_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        equal_rows((torch.ones(4, 4), None))
        assert torch.equal(before, torch.get_rng_state())


def test_counters_that_a_framework_keeps_as_parameters_are_no_obstacle():
    model = nn.Linear(4, 3)
    model.count = nn.Parameter(torch.tensor([3, 4]), requires_grad=False)
    report = gradcheck.scan(model, (torch.randn(16, 4), torch.randint(3, (16,))), loss=nn.functional.cross_entropy, steps=20)
    assert not report.coverage.in_part and not report.count("error")


def test_what_only_holds_a_parameter_is_not_the_layer_of_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(2, 2)])
            self.free, self.table = nn.ParameterList([torch.ones(2)]), nn.Module()
            self.table.w = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.heads[0](x) * self.free[0] + self.table.w

    outer = nn.Sequential(Net())
    watched = watch(outer, torch.optim.SGD(outer.parameters(), lr=0.1))
    assert {w.name: w.layer for w in watched if "bias" not in w.name} == {
        "0.heads.0.weight": "0.heads.0",
        "0.free.0": "0",
        "0.table.w": "0",
    }
