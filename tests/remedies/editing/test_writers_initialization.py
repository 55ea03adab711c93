"""Initialisation: a file before and after, as a careful colleague would have changed it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests import literals
from tests.remedies.editing.examples import NET, changed, stack
from tests.remedies.editing.sheets import HEAD, Sheet, fix


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_statement_that_draws_the_weights_is_replaced() -> None:
    text = HEAD + NET.replace(
        "width, 4)\n", "width, 4)\n        for layer in (self.first, self.second):\n            nn.init.normal_(layer.weight, std=5.0)\n", 1
    )
    sheet = Sheet(text).layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)").root("Net()")
    edited = sheet.edited(fix("he-init", "first", "second", gain=1.4142))
    assert 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")\n' in edited
    assert "normal_(layer.weight, std=5.0)" not in edited


def test_a_helper_that_draws_the_weights_is_followed() -> None:
    text = (
        HEAD
        + "def weights(module):\n    if isinstance(module, nn.Linear):\n        module.weight.data.normal_(0, 3)\n\n\n"
        + NET
        + "model.apply(weights)\n"
    )
    sheet = Sheet(text).layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)").root("Net()")
    edited = sheet.edited(fix("xavier-init", "first", "second", gain=1.0))
    assert "        nn.init.xavier_uniform_(module.weight)\n" in edited and "normal_(0, 3)" not in edited


def _biases_set(condition: str = "") -> str:
    loop = f"        for layer in (self.first, self.second):\n            {condition}nn.init.constant_(layer.bias, -5.0)\n"
    return HEAD + NET.replace("width, 4)\n", "width, 4)\n" + loop, 1)


def test_weights_are_drawn_beside_the_biases() -> None:
    sheet = Sheet(_biases_set()).layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)").root("Net()")
    assert changed(sheet, sheet.edited(fix("he-init", "first", "second", gain=1.4142))) == [
        '            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
        "            nn.init.zeros_(layer.bias)",
    ]


def test_weights_of_one_layer_are_not_drawn_beside_the_biases_of_several() -> None:
    sheet = Sheet(_biases_set()).layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)").root("Net()")
    assert "kaiming_normal_(layer.weight" not in sheet.edited(fix("he-init", "first", gain=1.4142))


def test_weights_are_not_drawn_where_only_some_layers_have_a_bias() -> None:
    sheet = Sheet(_biases_set("if layer.bias is not None: "))
    sheet.layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)", parameters=("second.weight",)).root("Net()")
    assert "apply_gradcheck_fixes" in sheet.edited(fix("he-init", "first", "second", gain=1.4142))


def test_weights_are_drawn_behind_the_creation_of_a_layer_with_a_name() -> None:
    text = (
        HEAD + "def block(a, b):\n    linear = nn.Linear(a, b)\n    return nn.Sequential(linear, nn.ReLU())\n\n\n"
        "model = nn.Sequential(block(8, 64), block(64, 64))\n"
    )
    sheet = Sheet(text).layer("0.0", "nn.Linear(a, b)").layer("1.0", "nn.Linear(a, b)")
    assert changed(sheet, sheet.edited(fix("he-init", "0.0", "1.0", gain=1.4142))) == [
        '    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")',
        "    nn.init.zeros_(linear.bias)",
    ]


def test_layers_without_a_place_of_their_own_are_drawn_by_a_function_that_is_called_once() -> None:
    sheet = stack()
    first = sheet.edited(fix("orthogonal-init", "0", gain=1.05), fix("head-scaling", "2", factor=0.1, zero_bias=True))
    assert changed(sheet, first) == [
        "def apply_gradcheck_fixes(model: nn.Module) -> nn.Module:",
        '    """Orthogonal initialisation (Saxe et al. 2014)."""',
        "    nn.init.orthogonal_(model[0].weight, gain=1.05)",
        "    nn.init.zeros_(model[0].bias)",
        "    with torch.no_grad():",
        "        model[2].weight.mul_(0.1)",
        "        model[2].bias.zero_()",
        "    return model",
        "    model = nn.Sequential(",
        "    return apply_gradcheck_fixes(model)",
    ]


def test_layers_that_an_installed_package_creates_are_drawn_by_the_function() -> None:
    sheet = Sheet(HEAD + "from package import Big\n\nmodel = Big(3)\n").root("Big(3)", "Big")
    foreign = replace(sheet.at("Big(3)"), detail=literals.location(5, "package.py"))
    for index in range(6):
        sheet._layers.append(literals.layer(f"blocks.{index}.fc", site=foreign))
    sheet._layers.append(literals.layer("head", site=foreign, head=True))
    names = [f"blocks.{index}.fc" for index in range(6)]
    assert changed(sheet, sheet.edited(fix("he-init", *names, gain=1.4142))) == [
        "def apply_gradcheck_fixes(model: nn.Module) -> nn.Module:",
        '    """He initialisation (He et al. 2015)."""',
        "    for name, layer in model.named_modules():",
        '        if isinstance(layer, nn.Linear) and name != "head":',
        '            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
        "            nn.init.zeros_(layer.bias)",
        "    return model",
        "model = apply_gradcheck_fixes(Big(3))",
    ]


def test_a_parameter_of_a_class_is_drawn_where_it_is_created() -> None:
    text = (
        HEAD
        + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.w = nn.Parameter(torch.randn(8, 4))\n"
    )
    sheet = Sheet(text).layer("", "", kind="container", type="Net", parameters=("w",))
    sheet.having(parameters=(literals.parameter("w", layer=""),))
    edited = sheet.edited(fix("he-init", "w", gain=1.4142, transposed="w"))
    assert changed(sheet, edited) == ['        nn.init.kaiming_normal_(self.w, mode="fan_out", nonlinearity="relu")']


def test_a_forget_gate_is_opened() -> None:
    sheet = Sheet(
        HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.rnn = nn.LSTM(2, 3)\n\n\n"
        "model = Net()\n"
    )
    sheet.layer("rnn", "nn.LSTM(2, 3)", kind="recurrent").root("Net()")
    edited = sheet.edited(fix("forget-bias", "rnn", value=1.0))
    assert '            bias[hidden : 2 * hidden] = 1.0 if name.startswith("bias_ih") else 0.0  # the forget gate\n' in edited
