"""Activations are replaced and inserted, as modules and as calls, and removed where the loss does not expect them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.analysis.depth import gradient_trend
from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.activation import insert_activation, remove_output_activation, replace_activation
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, treated_copy
from tests.remedies.patients import batches, finding, losses, measured, outputs, plain, proposed, treated, unchanged, workload


class Calls(nn.Module):
    """Ten layers, the activation one call in a loop."""

    def __init__(self, depth: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(depth)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


@pytest.mark.parametrize("make", [lambda: plain(10, nn.Sigmoid), Calls], ids=["modules", "calls"])
def test_a_stack_of_sigmoids_becomes_one_of_relus(make: type[nn.Module]) -> None:
    model = make()
    before = gradient_trend(measured(model))
    with unchanged(model):
        one = treated(replace_activation, model, finding("ACT003"))
    m = measured(one.model)
    assert {x.function for x in m.layers if x.kind == "activation"} == {"relu"}
    assert before.total > 5 and abs(gradient_trend(m).total) < 1.5
    run = losses(one)
    assert run[-1] < 0.5 * run[0]


def test_all_layers_of_the_loop_are_initialised_for_the_new_activation() -> None:
    p = proposed(replace_activation, Calls(), finding("ACT003"))
    assert p.layers == (":sigmoid",) and p.settings["new"] == "relu"
    assert str(p.settings["initialized"]).split(",") == [f"layers.{i}" for i in range(10)]


def test_dead_units_leak_and_keep_their_weights() -> None:
    model = plain(3)
    nn.init.constant_(model[2].bias, -30.0)  # type: ignore[arg-type]
    one = treated(replace_activation, model, finding("ACT002", "3"))
    assert isinstance(one.model[3], nn.LeakyReLU) and isinstance(one.model[1], nn.ReLU)
    assert list(one.model.state_dict()) == list(model.state_dict())
    x = model[:3](one.workload.batches[0][0])
    torch.testing.assert_close(outputs(one), model[4:](F.leaky_relu(x, 0.01)))


class Inside(nn.Module):
    """An activation that torch's own code calls, in a module that this one runs in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)])
        self.stack = nn.TransformerEncoder(self.blocks[0], 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        if self.way == "stack":
            x = self.stack(x)
        elif self.way == "index":
            x = self.blocks[0](x)
        else:
            for i, block in enumerate(self.blocks):
                x = block(x) * (i + 1)
        return self.head(x[:, 0])


@pytest.mark.parametrize("way", ["stack", "index", "loop"])
def test_a_module_is_not_taken_for_the_activation_inside_of_it(way: str) -> None:
    model = Inside(way)
    inner = [name for p in replace_activation.propose(finding("ACT002"), measured(model)) for name in p.layers if name.endswith(":relu")]
    assert inner
    with unchanged(model), pytest.raises(Inapplicable, match="it lies in a module that is called at"):
        treated(replace_activation, model, finding("ACT002", *inner))


def test_gates_and_outputs_stay() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            return torch.sigmoid(self.head(x * torch.sigmoid(self.gate(x))))

    names = [name for p in replace_activation.propose(None, measured(Gated())) for name in p.layers]
    assert not any("sigmoid" in name for name in names)


def test_nothing_is_replaced_in_a_trained_stack_without_its_weights_staying() -> None:
    m = measured(plain(10, nn.Sigmoid))
    (p,) = replace_activation.propose(finding("ACT003"), replace(m, pretrained=True))
    assert "initialized" not in p.settings


# ------------------------------------------------------------------------------- inserting


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.gelu(self.second(self.first(x))))


def test_the_usual_activation_comes_between_two_layers() -> None:
    model = Affine()
    with unchanged(model):
        one = treated(insert_activation, model, finding("ACT006", "first", "second"))
    x = one.workload.batches[0][0]
    torch.testing.assert_close(outputs(one), model.head(F.gelu(model.second(F.gelu(model.first(x))))))
    assert not measured(one.model).pairs


class AffineCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(32, 16) / 4), nn.Parameter(torch.randn(4, 32) / 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.first), self.second)


def test_between_two_calls_too() -> None:
    model = AffineCalls()
    pair = measured(model).pairs[0]
    one = treated(insert_activation, model, finding("ACT006", pair.first, pair.second))
    x = one.workload.batches[0][0]
    torch.testing.assert_close(outputs(one), F.linear(torch.relu(F.linear(x, model.first)), model.second))


# --------------------------------------------------------------------------- at the output


class Ending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.softmax(self.net(x), dim=1)


@pytest.mark.parametrize("make", [Ending, lambda: nn.Sequential(nn.Linear(16, 4), nn.Softmax(dim=1))], ids=["call", "module"])
def test_softmax_before_cross_entropy_goes(make: type[nn.Module]) -> None:
    model = make()
    one, codes = cured(remove_output_activation, model, workload(model), "LOSS001")
    layer = model.net if isinstance(model, Ending) else model[0]  # type: ignore[index]
    torch.testing.assert_close(outputs(one), layer(one.workload.batches[0][0]))
    assert "LOSS001" not in codes


def test_an_activation_that_hidden_layers_share_stays() -> None:
    act = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(16, 8), act, nn.Linear(8, 1), act)
    data = [(x, (y > 1).float()[:, None]) for x, y in batches()]
    m = scan_workload(workload(model, data, loss=F.binary_cross_entropy_with_logits), Settings(fast=True)).measurement
    assert m.losses[0].producer == "sigmoid" and not remove_output_activation.propose(finding("LOSS001", "1", "3"), m)


def test_softmax_over_one_unit_becomes_a_sigmoid_where_the_loss_takes_probabilities() -> None:
    model = nn.Sequential(nn.Linear(16, 1), nn.Softmax(dim=1))
    data = [(x, (y > 1).float()[:, None]) for x, y in batches()]
    one, codes = cured(remove_output_activation, model, workload(model, data, loss=F.binary_cross_entropy), "LOSS001")
    assert isinstance(one.model[1], nn.Sigmoid) and "LOSS001" not in codes
    run = losses(one)
    assert run[-1] < run[0]


def cured(treatment: RemedyDefinition, model: nn.Module, work: object, code: str) -> tuple[TreatedWorkload, set[str]]:
    """A patient after the treatment of a real finding, and the codes that a scan still finds."""
    report = scan_workload(work, Settings(fast=True))  # type: ignore[arg-type]
    found = next(f for f in report.findings if f.code == code)
    with unchanged(model):
        one = treated_copy(work)  # type: ignore[arg-type]
        assert treatment.apply is not None
        treatment.apply(one, treatment.propose(found, report.measurement)[0])
    return one, {f.code for f in scan_workload(one.workload, Settings(fast=True)).findings}
