"""Weights are drawn as the formulas say, whatever the layer; findings go and models train."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradcheck.analysis.depth import gradient_trend
from gradcheck.remedies.initialization import weights as init
from gradcheck.remedies.initialization.lsuv import REMEDIES as LSUV
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from gradcheck.workload.workload import Workload
from tests.remedies.patients import finding, losses, measured, patient, plain, proposed, treated, unchanged

HE, LECUN, XAVIER, ORTHOGONAL, SYMMETRY = init.REMEDIES


def lone(module: nn.Module) -> TreatedWorkload:
    """A patient that never runs."""
    model = nn.Sequential(module)
    return TreatedWorkload(Workload("lone", model, (), lambda model, batch: torch.zeros(()), torch.optim.SGD(model.parameters())))


def drawn(name: str, module: nn.Module, gain: float = 2**0.5) -> torch.Tensor:
    """The weight of a lone layer after a fix."""
    one = lone(module)
    init.apply(one, Fix(name, "", "initialization", "safe", {"gain": gain}, ("0",)))
    return one.model[0].weight.detach()


class Conv1D(nn.Module):
    """As in GPT-2: the weight is [in, out]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(inputs, outputs)), nn.Parameter(torch.ones(outputs))


LAYERS = {
    "linear": (lambda: nn.Linear(256, 512), 256, 512),
    "conv": (lambda: nn.Conv2d(64, 128, 3), 64 * 9, 128 * 9),
    "grouped": (lambda: nn.Conv2d(64, 128, 3, groups=4), 16 * 9, 128 * 9),
    "transposed": (lambda: nn.ConvTranspose2d(64, 128, 3), 64 * 9, 128 * 9),
    "gpt": (lambda: Conv1D(512, 256), 256, 512),
}


@pytest.mark.parametrize(("make", "inputs", "outputs"), LAYERS.values(), ids=LAYERS)
def test_standard_deviations_are_those_of_the_formulas(make: object, inputs: int, outputs: int) -> None:
    he, lecun, xavier = (drawn(name, make(), gain) for name, gain in (("he-init", 2**0.5), ("lecun-init", 1.0), ("xavier-init", 1.0)))  # type: ignore[operator]
    assert he.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.02)
    assert lecun.std().item() == pytest.approx(math.sqrt(1 / inputs), rel=0.02)
    assert xavier.std().item() == pytest.approx(math.sqrt(2 / (inputs + outputs)), rel=0.02)
    assert xavier.abs().max().item() <= math.sqrt(6 / (inputs + outputs))
    assert xavier.abs().max().item() == pytest.approx(math.sqrt(6 / (inputs + outputs)), rel=0.01)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (64, 32), (32, 64)])
def test_orthogonal_weights_are_orthogonal_times_the_gain(inputs: int, outputs: int) -> None:
    w = drawn("orthogonal-init", nn.Linear(inputs, outputs), 1.05).double()
    small = w @ w.T if outputs <= inputs else w.T @ w
    torch.testing.assert_close(small, 1.05**2 * torch.eye(min(inputs, outputs), dtype=torch.double), atol=1e-5, rtol=0)


def test_biases_become_zero_and_the_same_seed_draws_the_same() -> None:
    model = plain(3)
    with unchanged(model):
        first, second = (treated(HE, model) for _ in range(2))
    assert all(not b.any() for n, b in first.model.named_parameters() if n.endswith("bias") and n != "6.bias")
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert torch.equal(first.model[6].weight, model[6].weight)  # a healthy head stays


def test_half_precision_keeps_its_type() -> None:
    one = lone(nn.Linear(256, 256).bfloat16())
    init.apply(one, Fix("he-init", "", "initialization", "safe", {"gain": 2**0.5}, ("0",)))
    assert one.model[0].weight.dtype == torch.bfloat16
    assert one.model[0].weight.float().std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.03)


@pytest.mark.parametrize(
    ("activation", "std", "treatment"),
    [(nn.ReLU, 0.05, HE), (nn.ReLU, 0.9, HE), (nn.Tanh, 0.05, ORTHOGONAL), (nn.SELU, 0.02, LECUN), (nn.GELU, None, ORTHOGONAL)],
    ids=["relu-vanishing", "relu-exploding", "tanh", "selu", "gelu-default"],
)
def test_the_gradient_reaches_the_first_layer_afterwards(activation: type[nn.Module], std: float | None, treatment: object) -> None:
    model = plain(14, activation, std)
    before = gradient_trend(measured(model))
    one = treated(treatment, model)  # type: ignore[arg-type]
    after = gradient_trend(measured(one.model))
    assert abs(before.total) > 3 and abs(after.total) < 1.5
    run = losses(one)
    assert run[-1] < 0.7 * run[0]


def test_one_faulty_layer_is_drawn_alone_but_with_those_of_its_expression() -> None:
    model = plain(4)
    assert proposed(HE, model, finding("INIT002", "2")).layers == ("2",)
    assert proposed(HE, model, finding("ACT002", "3")).layers == ("2",)  # the activation's own layer
    assert proposed(HE, model, finding("GRAD001", "2")).layers == ("0", "2", "4", "6")


def test_trained_models_are_left_alone() -> None:
    model = plain(12)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    m = measured(model, optimizer=optimizer)
    assert m.pretrained
    assert all(not t.propose(finding("GRAD001"), m) for t in (*init.REMEDIES, *LSUV))


def test_a_head_that_explodes_too_is_drawn_with_gain_one() -> None:
    model = plain(6, std=1.0)
    nn.init.normal_(model[12].weight, std=1.0)
    one = treated(HE, model, finding("GRAD002", "0"))
    assert one.model[12].weight.std().item() == pytest.approx(math.sqrt(1 / 32), rel=0.2)


def test_reparametrised_weights_are_refused_in_words() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(Inapplicable, match="computed from others"):
        init.apply(patient(model), Fix("he-init", "", "initialization", "safe", {"gain": 1.0}, ("0",)))
    assert all("0" not in p.layers for p in HE.propose(None, measured(model)))


class Functional(nn.Module):
    """Weights of its own, as F.linear ([out, in]) and as a product ([in, out])."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(64, 16) * 0.01)
        self.second = nn.Parameter(torch.randn(64, 48) * 0.01)
        self.head = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(torch.relu(nn.functional.linear(x, self.first)) @ self.second))


@pytest.mark.parametrize("treatment", [HE, *LSUV], ids=lambda t: t.name)
def test_functional_weights_are_drawn_for_their_own_fan_in(treatment: object) -> None:
    model = Functional()
    p = proposed(treatment, model)  # type: ignore[arg-type]
    assert p.layers == ("first", "second") and p.settings["transposed"] == "second"
    one = treated(treatment, model)  # type: ignore[arg-type]
    if treatment is HE:
        assert one.model.first.std().item() == pytest.approx(math.sqrt(2 / 16), rel=0.1)
        assert one.model.second.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.1)
    run = losses(one)
    assert run[-1] < 0.5 * run[0]


def test_embeddings_only_when_asked() -> None:
    model = nn.Sequential(nn.Embedding(20, 64), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    data = [(torch.randint(20, (64, 1)), torch.randint(4, (64,)))]
    assert "0" not in proposed(LECUN, model, data=data).layers
    asked = proposed(LECUN, model, finding("INIT002", "0"), data=data)
    assert asked.layers == ("0",) and asked.settings["std"] == 0.125
    assert treated(LECUN, model, finding("INIT002", "0"), data=data).model[0].weight.std().item() == pytest.approx(0.125, rel=0.05)


def test_equal_units_come_apart() -> None:
    model = plain(3)
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.05)
    p, other = (proposed(SYMMETRY, model, finding("INIT005", name)) for name in ("0", "2"))
    assert p.layers == other.layers  # one fix for both findings
    assert p.layers == ("0", "2")  # the other one is as faulty
    one = treated(SYMMETRY, model, finding("INIT005", "0"))
    assert len({tuple(row.tolist()) for row in one.model[0].weight}) == 32


# ------------------------------------------------------------------------------------ LSUV


def slow_stds(model: nn.Sequential, x: torch.Tensor) -> list[float]:
    """Standard deviation of the output of each hidden linear layer, one after another."""
    found = []
    with torch.no_grad():
        for layer in model[:-1]:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                found.append(x.std().item())
    return found


@pytest.mark.parametrize("std", [0.01, None, 2.0], ids=["small", "default", "large"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_every_output_has_unit_variance(std: float | None, activation: type[nn.Module]) -> None:
    model = plain(10, activation, std)
    with unchanged(model):
        one = treated(LSUV[0], model)
    assert slow_stds(one.model, one.workload.batches[0][0]) == pytest.approx([1.0] * 10, abs=0.06)


def test_weights_keep_their_direction() -> None:
    model = plain(4)
    one = treated(LSUV[0], model)
    ratio = one.model[2].weight / model[2].weight
    assert ratio.std().item() < 1e-4 * ratio.mean().item()


def test_no_rescaling_for_stacks_of_sigmoids_and_constant_weights_become_orthogonal() -> None:
    assert not LSUV[0].propose(None, measured(plain(10, nn.Sigmoid)))
    model = plain(3)
    nn.init.zeros_(model[0].weight)
    one = treated(LSUV[0], model)
    assert slow_stds(one.model, one.workload.batches[0][0]) == pytest.approx([1.0] * 3, abs=0.06)


def test_random_state_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
    one = patient(model)
    p = LSUV[0].fix("", layers=("0",))
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert LSUV[0].apply is not None
    LSUV[0].apply(one, p)
    assert torch.equal(state, torch.random.get_rng_state())
