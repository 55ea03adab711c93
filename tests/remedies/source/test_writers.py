"""Each writer: a file before and after, as a careful colleague would have changed it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradcheck.nouns.checks import Clip, Difference, Dropout, LossOperation
from gradcheck.nouns.measurement import BroadcastMix, HiddenTensor, Regularization
from gradcheck.remedies.source import WRITERS
from tests import literals
from tests.remedies.source.sheets import HEAD, Sheet, prescription

STACK = """def build_model():
    return nn.Sequential(
        nn.Linear(8, 64),
        nn.Sigmoid(),
        nn.Linear(64, 4),  # the head
    )


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.1)
"""
NET = """class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.second(torch.sigmoid(self.first(x)))


model = Net()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stack(**optimizer: Any) -> Sheet:
    sheet = Sheet(HEAD + STACK)
    sheet.layer("0", "nn.Linear(8, 64)", activation="sigmoid").layer("1", "nn.Sigmoid()", kind="activation", function="sigmoid")
    sheet.layer("2", "nn.Linear(64, 4)", head=True).root(
        sheet.text[sheet.text.index("nn.Sequential") : sheet.text.index("\n\n\ndef make")], "Sequential"
    )
    return sheet.optimizer("torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.1)", **optimizer)


def net() -> Sheet:
    sheet = Sheet(HEAD + NET)
    sheet.layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)", head=True)
    return sheet.layer(":sigmoid", "torch.sigmoid(self.first(x))", kind="activation", function="sigmoid").root("Net()")


def changed(sheet: Sheet, text: str) -> list[str]:
    """Lines that the text has in the place of others, or more than the sheet."""
    before = sheet.text.splitlines()
    return [line for line in text.splitlines() if line not in before]


# ------------------------------------------------------------------------------- optimizer


def test_a_setting_is_changed_where_the_optimizer_is_created() -> None:
    sheet = stack()
    assert sheet.edited(prescription("lower-learning-rate", lr=3e-4)) == sheet.text.replace("lr=1e-2", "lr=3e-4")
    assert sheet.edited(prescription("adam-epsilon", eps=1e-8)) == sheet.text.replace("eps=0.1", "eps=1e-8")


def test_a_setting_that_is_not_there_is_added_behind_the_others() -> None:
    sheet = stack()
    assert sheet.edited(prescription("weaker-weight-decay", weight_decay=0.01)) == sheet.text.replace(
        "eps=0.1)", "eps=0.1, weight_decay=0.01)"
    )


def test_a_number_is_changed_where_its_name_is_defined() -> None:
    sheet = Sheet(HEAD + "LR, STEPS = 10.0, 5\nmodel = nn.Linear(2, 2)\noptimizer = torch.optim.SGD(model.parameters(), LR)\n")
    sheet.optimizer("torch.optim.SGD(model.parameters(), LR)", "SGD")
    assert sheet.edited(prescription("lower-learning-rate", lr=0.1)) == sheet.text.replace("10.0", "0.1")


def test_a_number_whose_name_is_read_elsewhere_is_changed_in_place() -> None:
    sheet = Sheet(HEAD + "LR = 10.0\nprint(LR)\nmodel = nn.Linear(2, 2)\noptimizer = torch.optim.SGD(model.parameters(), lr=LR)\n")
    sheet.optimizer("torch.optim.SGD(model.parameters(), lr=LR)", "SGD")
    assert sheet.edited(prescription("lower-learning-rate", lr=0.1)) == sheet.text.replace("lr=LR", "lr=0.1")


def test_the_default_of_a_command_line_option_is_changed() -> None:
    text = (
        HEAD + 'parser.add_argument("--lr", type=float, default=10.0)\nargs = parser.parse_args()\n'
        "optimizer = torch.optim.SGD(weights, lr=args.lr)\n"
    )
    sheet = Sheet(text).optimizer("torch.optim.SGD(weights, lr=args.lr)", "SGD")
    assert sheet.edited(prescription("lower-learning-rate", lr=0.1)) == text.replace("10.0", "0.1")


def test_a_one_cycle_schedule_gets_the_new_rate_as_its_highest() -> None:
    text = (
        HEAD
        + "optimizer = torch.optim.SGD(weights, lr=0.05)\nsteps = torch.optim.lr_scheduler.OneCycleLR(optimizer, 300.0, total_steps=90)\n"
    )
    sheet = Sheet(text).optimizer("torch.optim.SGD(weights, lr=0.05)", "SGD", lr=300.0)
    assert sheet.edited(prescription("lower-learning-rate", lr=0.3)) == text.replace("300.0", "0.3")


def test_an_optimizer_made_too_early_goes_behind_the_last_change_of_its_model() -> None:
    made, change = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n", "model.head = nn.Linear(2, 2)\n"
    sheet = Sheet(HEAD + "model = Net()\n" + made + change + "print(optimizer)\n")
    sheet.optimizer("torch.optim.SGD(model.parameters(), lr=0.1)", "SGD")
    assert sheet.edited(prescription("add-to-optimizer")) == HEAD + "model = Net()\n" + change + made + "print(optimizer)\n"


def test_groups_with_rates_of_their_own_keep_their_ratio() -> None:
    text = HEAD + 'optimizer = torch.optim.SGD([{"params": a, "lr": 1.0}, {"params": b, "lr": 0.1}], lr=1.0)\n'
    call = text[text.index("torch.optim") : -1]
    sheet = Sheet(text).optimizer(call, "SGD", lr=1.0)
    assert sheet.edited(prescription("lower-learning-rate", lr=0.01)) == text.replace('"lr": 1.0', '"lr": 0.01').replace(
        '"lr": 0.1', '"lr": 0.001', 1
    ).replace("lr=1.0", "lr=0.01")


def test_biases_and_gains_get_a_group_without_decay() -> None:
    sheet = stack(weight_decay=0.1)
    assert changed(sheet, sheet.edited(prescription("weight-decay-groups", weight_decay=0.1))) == [
        "    decayed = [p for p in model.parameters() if p.ndim >= 2]",
        "    spared = [p for p in model.parameters() if p.ndim < 2]  # biases and gains",
        '    return torch.optim.Adam([{"params": decayed}, {"params": spared, "weight_decay": 0.0}], lr=1e-2, eps=0.1)',
    ]


def test_adam_becomes_adamw() -> None:
    sheet = stack()
    text = sheet.edited(prescription("decoupled-weight-decay", weight_decay=0.01))
    assert text == sheet.text.replace("optim.Adam(", "optim.AdamW(").replace("eps=0.1)", "eps=0.1, weight_decay=0.01)")


def test_maximize_is_dropped() -> None:
    sheet = Sheet(HEAD + "optimizer = torch.optim.SGD(weights, lr=0.1, maximize=True)\n")
    sheet.optimizer("torch.optim.SGD(weights, lr=0.1, maximize=True)", "SGD")
    assert sheet.edited(prescription("flip-sign", maximize=False)) == sheet.text.replace(", maximize=True", "")


def test_an_assumed_optimizer_is_not_written() -> None:
    sheet = stack().having(optimizer=literals.optimizer("AdamW", given=False))
    assert "assumed" in sheet.refused(prescription("lower-learning-rate", lr=1e-4))


# -------------------------------------------------------------------------- the training loop

LOOP = """model = nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
"""


def script(text: str = LOOP, step: str = "optimizer.step()") -> Sheet:
    sheet = Sheet(HEAD + text, path="train.py")
    sheet.optimizer("torch.optim.SGD(model.parameters(), lr=0.1)", "SGD")
    return sheet.having(loop=literals.loop(step_site=sheet.at(step)))


def test_clipping_goes_between_backward_and_step() -> None:
    sheet = script()
    text = sheet.edited(prescription("clip-gradient-norm", stage="clipping", max_norm=1.0))
    assert text == sheet.text.replace("    optimizer.step()", "    nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n    optimizer.step()")


def test_a_scaler_unscales_before_the_clipping() -> None:
    sheet = script(LOOP.replace("optimizer.step()", "scaler.step(optimizer)"), "scaler.step(optimizer)")
    assert changed(sheet, sheet.edited(prescription("clip-gradient-value", clip_value=0.5))) == [
        "    scaler.unscale_(optimizer)",
        "    nn.utils.clip_grad_value_(model.parameters(), 0.5)",
    ]


def test_the_clipping_that_is_there_gets_another_threshold_and_kind() -> None:
    call = "torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)"
    sheet = script(LOOP.replace("    optimizer.step()", f"    {call}\n    optimizer.step()"))
    sheet.having(clip=Clip("value", 1e-4, site=sheet.at(call)))
    assert changed(sheet, sheet.edited(prescription("clip-gradient-norm", max_norm=2.0))) == [
        "    torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)"
    ]


def test_a_one_line_loop_is_unfolded() -> None:
    text = LOOP.replace("    F.cross", "    if x is not None: F.cross").replace(
        "backward()\n    optimizer.step()", "backward(); optimizer.step()"
    )
    text = text.replace("    optimizer.zero_grad()\n", "")
    sheet = script(text)
    assert sheet.edited(prescription("clip-gradient-norm", max_norm=1.0)).endswith(
        "    if x is not None:\n"
        "        F.cross_entropy(model(x), y).backward()\n"
        "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
        "        optimizer.step()\n"
    )


def test_a_model_file_gets_the_number_that_gradcheck_reads() -> None:
    sheet = stack()
    assert changed(sheet, sheet.edited(prescription("clip-gradient-norm", max_norm=1.0))) == [
        "# The training loop clips with it between backward and step.",
        "max_grad_norm = 1.0",
    ]


def test_a_warm_up_is_stepped_by_the_loop() -> None:
    sheet = script()
    assert changed(sheet, sheet.edited(prescription("warm-up", steps=50, start=0.01))) == [
        "warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=50)",
        "    warm_up.step()",
    ]


def test_a_warm_up_of_a_model_file_is_made_with_the_optimizer() -> None:
    sheet = stack()
    assert changed(sheet, sheet.edited(prescription("warm-up", steps=50, start=0.01))) == [
        "    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.1)",
        "    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=50)  # stepped by the training loop",
        "    return optimizer",
    ]


# ---------------------------------------------------------------------------- initialisation


def test_the_statement_that_draws_the_weights_is_replaced() -> None:
    text = HEAD + NET.replace(
        "width, 4)\n", "width, 4)\n        for layer in (self.first, self.second):\n            nn.init.normal_(layer.weight, std=5.0)\n", 1
    )
    sheet = Sheet(text).layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)").root("Net()")
    edited = sheet.edited(prescription("he-init", "first", "second", gain=1.4142))
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
    edited = sheet.edited(prescription("xavier-init", "first", "second", gain=1.0))
    assert "        nn.init.xavier_uniform_(module.weight)\n" in edited and "normal_(0, 3)" not in edited


def _biases_set(condition: str = "") -> str:
    loop = f"        for layer in (self.first, self.second):\n            {condition}nn.init.constant_(layer.bias, -5.0)\n"
    return HEAD + NET.replace("width, 4)\n", "width, 4)\n" + loop, 1)


def test_weights_are_drawn_beside_the_biases() -> None:
    sheet = Sheet(_biases_set()).layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)").root("Net()")
    assert changed(sheet, sheet.edited(prescription("he-init", "first", "second", gain=1.4142))) == [
        '            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
        "            nn.init.zeros_(layer.bias)",
    ]


def test_weights_of_one_layer_are_not_drawn_beside_the_biases_of_several() -> None:
    sheet = Sheet(_biases_set()).layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)").root("Net()")
    assert "kaiming_normal_(layer.weight" not in sheet.edited(prescription("he-init", "first", gain=1.4142))


def test_weights_are_not_drawn_where_only_some_layers_have_a_bias() -> None:
    sheet = Sheet(_biases_set("if layer.bias is not None: "))
    sheet.layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)", parameters=("second.weight",)).root("Net()")
    assert "apply_gradcheck_fixes" in sheet.edited(prescription("he-init", "first", "second", gain=1.4142))


def test_weights_are_drawn_behind_the_creation_of_a_layer_with_a_name() -> None:
    text = (
        HEAD + "def block(a, b):\n    linear = nn.Linear(a, b)\n    return nn.Sequential(linear, nn.ReLU())\n\n\n"
        "model = nn.Sequential(block(8, 64), block(64, 64))\n"
    )
    sheet = Sheet(text).layer("0.0", "nn.Linear(a, b)").layer("1.0", "nn.Linear(a, b)")
    assert changed(sheet, sheet.edited(prescription("he-init", "0.0", "1.0", gain=1.4142))) == [
        '    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")',
        "    nn.init.zeros_(linear.bias)",
    ]


def test_layers_without_a_place_of_their_own_are_drawn_by_a_function_that_is_called_once() -> None:
    sheet = stack()
    first = sheet.edited(prescription("orthogonal-init", "0", gain=1.05), prescription("head-scaling", "2", factor=0.1, zero_bias=True))
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
    assert changed(sheet, sheet.edited(prescription("he-init", *names, gain=1.4142))) == [
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
    edited = sheet.edited(prescription("he-init", "w", gain=1.4142, transposed="w"))
    assert changed(sheet, edited) == ['        nn.init.kaiming_normal_(self.w, mode="fan_out", nonlinearity="relu")']


def test_a_forget_gate_is_opened() -> None:
    sheet = Sheet(
        HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.rnn = nn.LSTM(2, 3)\n\n\n"
        "model = Net()\n"
    )
    sheet.layer("rnn", "nn.LSTM(2, 3)", kind="recurrent").root("Net()")
    edited = sheet.edited(prescription("forget-bias", "rnn", value=1.0))
    assert '            bias[hidden : 2 * hidden] = 1.0 if name.startswith("bias_ih") else 0.0  # the forget gate\n' in edited


# -------------------------------------------------------------------- activations and the rest


def test_an_activation_is_replaced_as_module_function_and_method() -> None:
    sheet = stack()
    assert sheet.edited(prescription("replace-activation", "1", old="sigmoid", new="relu")) == sheet.text.replace(
        "nn.Sigmoid()", "nn.ReLU()"
    )
    sheet = net()
    p = prescription("replace-activation", ":sigmoid", old="sigmoid", new="leaky_relu", negative_slope=0.01)
    assert sheet.edited(p) == sheet.text.replace("torch.sigmoid(self.first(x))", "F.leaky_relu(self.first(x), 0.01)")
    sheet = Sheet(HEAD + "def f(x):\n    return x.sigmoid() + 1\n").layer(":sigmoid", "x.sigmoid()", kind="activation")
    assert sheet.edited(prescription("replace-activation", ":sigmoid", old="sigmoid", new="tanh")) == sheet.text.replace(
        "x.sigmoid()", "torch.tanh(x)"
    )


def test_a_class_that_is_handed_over_is_replaced_where_it_is_given() -> None:
    text = HEAD + "def block(act):\n    return nn.Sequential(nn.Linear(2, 2), act())\n\n\nmodel = block(nn.Sigmoid)\n"
    sheet = Sheet(text).layer("1", "act()", kind="activation", function="sigmoid")
    assert sheet.edited(prescription("replace-activation", "1", old="sigmoid", new="relu")) == text.replace("nn.Sigmoid", "nn.ReLU")


def test_an_output_activation_goes_with_its_line() -> None:
    sheet = Sheet(HEAD + STACK.replace("  # the head\n", "\n        nn.Softmax(dim=1),\n")).layer("3", "nn.Softmax(dim=1)", kind="softmax")
    assert sheet.edited(prescription("remove-output-activation", "3", function="softmax")) == sheet.text.replace(
        "        nn.Softmax(dim=1),\n", ""
    )


def test_an_activation_is_inserted_in_a_sequential_and_in_forward() -> None:
    sheet = Sheet(HEAD + "model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 4))\n").layer("0", "nn.Linear(8, 64)")
    assert sheet.edited(prescription("insert-activation", "0", activation="relu")) == sheet.text.replace("(8, 64),", "(8, 64), nn.ReLU(),")
    sheet = net()
    assert sheet.edited(prescription("insert-activation", "second", activation="gelu")) == sheet.text.replace(
        "return self.second(torch.sigmoid(self.first(x)))", "return F.gelu(self.second(torch.sigmoid(self.first(x))))"
    )


def test_a_normalization_is_inserted_and_takes_the_bias() -> None:
    sheet = stack()
    p = prescription("insert-normalization", "0", kind="BatchNorm1d", drop_bias=True)
    assert sheet.edited(p) == sheet.text.replace(
        "        nn.Linear(8, 64),\n", "        nn.Linear(8, 64, bias=False),\n        nn.BatchNorm1d(64),\n"
    )
    sheet = net()
    assert changed(sheet, sheet.edited(prescription("insert-normalization", "first", kind="LayerNorm"))) == [
        "        self.first_norm = nn.LayerNorm(width)",
        "        return self.second(torch.sigmoid(self.first_norm(self.first(x))))",
    ]


@pytest.mark.parametrize(
    ("made", "room"),
    [
        ("part for _ in range(2) for part in (nn.Linear(8, 8), nn.Tanh())", True),
        ("(part) for _ in range(2) for part in [nn.Linear(8, 8), nn.Tanh()]", True),
        ("part for _ in range(2) for part in (nn.Linear(8, 8), nn.Tanh()) if part", False),
        ("last for _ in range(2) for (part, last) in [(nn.Linear(8, 8), nn.Linear(8, 8))]", False),
    ],
)
def test_a_comprehension_that_is_unpacked_into_a_sequential_has_room(made: str, room: bool) -> None:
    for text in (f"model = nn.Sequential(*[{made}])\n", f"parts = [{made}]\nmodel = nn.Sequential(*parts)\n"):
        sheet = Sheet(HEAD + text).layer("0", "nn.Linear(8, 8)").layer("2", "nn.Linear(8, 8)")
        p = prescription("insert-normalization", "0", "2", kind="LayerNorm")
        if room:
            assert sheet.edited(p) == sheet.text.replace("nn.Linear(8, 8), ", "nn.Linear(8, 8), nn.LayerNorm(8), ")
        else:
            assert "no room" in sheet.refused(p)


LIST = """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])

    def forward(self, x):
        for layer in self.body:
            x = torch.relu(layer(x))
        return x


model = Net()
"""


def listed() -> Sheet:
    sheet = Sheet(HEAD + LIST)
    for index in range(4):
        sheet.layer(f"body.{index}", "nn.Linear(64, 64)")
    return sheet.root("Net()")


def test_a_list_of_layers_gets_a_list_of_normalizations() -> None:
    sheet = listed()
    names = [f"body.{index}" for index in range(4)]
    assert changed(sheet, sheet.edited(prescription("insert-normalization", *names, kind="BatchNorm1d"))) == [
        "        self.body_norm = nn.ModuleList([nn.BatchNorm1d(64) for _ in range(4)])",
        "        for layer, norm in zip(self.body, self.body_norm, strict=True):",
        "            x = torch.relu(norm(layer(x)))",
    ]


def test_a_layer_whose_site_makes_others_too_is_not_touched_alone() -> None:
    assert "body." in listed().refused(prescription("insert-normalization", "body.0", kind="LayerNorm"))


def test_a_bypass_is_written_into_the_loop_the_block_and_around_items() -> None:
    sheet = listed()
    names = [f"body.{index}" for index in range(4)]
    assert changed(sheet, sheet.edited(prescription("add-residual", *names, scale=0.5))) == [
        "            x = torch.relu(x + 0.5 * layer(x))"
    ]
    text = (
        HEAD + "class Block(nn.Module):\n    def forward(self, x):\n        return self.f(x)\n\n\nmodel = nn.Sequential(Block(), Block())\n"
    )
    sheet = Sheet(text).layer("0", "Block()", kind="container", type="Block").layer("1", "Block()", 1, kind="container", type="Block")
    assert sheet.edited(prescription("add-residual", "0", "1", scale=1.0)) == text.replace("return self.f(x)", "return x + self.f(x)")
    text = (
        HEAD + "def block(a, b):\n    return nn.Sequential(nn.Linear(a, b), nn.ReLU())\n\n\n"
        "model = nn.Sequential(block(8, 64), *[block(64, 64) for _ in range(3)], nn.Linear(64, 4))\n"
    )
    sheet = Sheet(text).root(text[text.index("nn.Sequential(block") : -1], "Sequential")
    for index in range(4):
        sheet.layer(f"{index}", "nn.Sequential(nn.Linear(a, b), nn.ReLU())", kind="container", type="Sequential").layer(
            f"{index}.0", "nn.Linear(a, b)"
        )
    sheet.layer("4", "nn.Linear(64, 4)")
    edited = sheet.edited(prescription("add-residual", "1", "2", "3", scale=1.0))
    assert "*[Residual(block(64, 64)) for _ in range(3)]" in edited and edited.count("class Residual(nn.Module):") == 1


def test_batch_normalization_is_replaced_and_put_in_order_with_dropout() -> None:
    sheet = Sheet(HEAD + "model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 4))\n")
    sheet.layer("1", "nn.Dropout(0.5)", kind="dropout").layer("2", "nn.BatchNorm1d(64)", kind="norm")
    assert sheet.edited(prescription("batch-free-normalization", "2", kind="GroupNorm", groups=8)) == sheet.text.replace(
        "BatchNorm1d(64)", "GroupNorm(8, 64)"
    )
    assert sheet.edited(prescription("move-dropout", "1", "2")) == sheet.text.replace(
        "nn.Dropout(0.5), nn.BatchNorm1d(64)", "nn.BatchNorm1d(64), nn.Dropout(0.5)"
    )


def test_a_bias_that_other_code_sets_is_kept() -> None:
    sheet = Sheet(HEAD + "first = nn.Linear(8, 64)\nnn.init.zeros_(first.bias)\nmodel = nn.Sequential(first, nn.BatchNorm1d(64))\n")
    assert "bias" in sheet.layer("0", "nn.Linear(8, 64)").refused(prescription("remove-bias", "0"))


# ------------------------------------------------------------------------------------ wiring


def hidden(sheet: Sheet, wanted: str) -> Sheet:
    return sheet.having(hidden=(HiddenTensor("self.a[0].weight", "Linear", (2, 2), sheet.at(wanted), False),))


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("self.a = [nn.Linear(2, 2)]", "self.a = nn.ModuleList([nn.Linear(2, 2)])"),
        ("self.a = {'x': nn.Linear(2, 2)}", "self.a = nn.ModuleDict({'x': nn.Linear(2, 2)})"),
        ("self.a = []\n        self.a.append(nn.Linear(2, 2))", "self.a = nn.ModuleList([])\n        self.a.append(nn.Linear(2, 2))"),
        (
            "a = []\n        a += [nn.Linear(2, 2)]\n        self.a = a",
            "a = []\n        a += [nn.Linear(2, 2)]\n        self.a = nn.ModuleList(a)",
        ),
    ],
)
def test_hidden_modules_are_registered(body: str, after: str) -> None:
    text = HEAD + f"class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {body}\n"
    assert hidden(Sheet(text), "nn.Linear(2, 2)").edited(prescription("register-modules")) == text.replace(body, after)


def test_hidden_modules_of_a_class_with_another_name_for_self() -> None:
    text = HEAD + "class Net(nn.Module):\n    def __init__(s): super().__init__(); s.a = [nn.Linear(2, 2)]; s.b = nn.Linear(2, 1)\n"
    assert hidden(Sheet(text), "nn.Linear(2, 2)").edited(prescription("register-modules")) == text.replace(
        "[nn.Linear(2, 2)]", "nn.ModuleList([nn.Linear(2, 2)])"
    )
    other = text.replace("s.a =", "other.a =")
    assert "not kept in a list" in hidden(Sheet(other), "nn.Linear(2, 2)").refused(prescription("register-modules"))


def test_missing_parameters_join_the_optimizer() -> None:
    text = HEAD + "params = [*model.a.parameters(), *model.c.parameters()]\noptimizer = torch.optim.SGD(params, lr=0.1)\n"
    sheet = Sheet(text).optimizer("torch.optim.SGD(params, lr=0.1)", "SGD")
    groups = {"a.weight": 1, "b.weight": 0, "b.bias": 0, "c.weight": 1}
    sheet.having(parameters=tuple(literals.parameter(name, layer=name[0], groups=count) for name, count in groups.items()))
    assert sheet.edited(prescription("add-to-optimizer", "b")) == text.replace(
        "*model.c.parameters()]", "*model.c.parameters(), *model.b.parameters()]"
    )


def test_an_optimizer_of_another_module_gets_the_model_in_its_place() -> None:
    text = HEAD + "body = nn.Linear(4, 2)\nhead = nn.Linear(2, 2)\noptimizer = torch.optim.SGD(body.parameters(), lr=0.1)\n"
    sheet = Sheet(text).optimizer("torch.optim.SGD(body.parameters(), lr=0.1)", "SGD").layer("", "nn.Linear(2, 2)")
    sheet.having(parameters=(literals.parameter("weight", layer="", groups=0),))
    assert sheet.edited(prescription("add-to-optimizer")) == text.replace("SGD(body", "SGD(head")
    sheet.having(parameters=(literals.parameter("weight", layer="", groups=1),))
    assert "not plain" in sheet.refused(prescription("add-to-optimizer"))


def test_a_cut_gradient_is_let_through() -> None:
    sheet = Sheet(HEAD + "def f(x):\n    return (x + 1).detach() * 2\n")
    assert sheet.edited(prescription("remove-detach", location=sheet.at("(x + 1).detach()"))) == sheet.text.replace(".detach()", "")
    sheet = Sheet(HEAD + "def f(x):\n    with torch.no_grad():\n        y = x + 1  # one more\n        y = 2 * y\n    return y\n")
    assert sheet.edited(prescription("remove-detach", location=sheet.at("x + 1"))).endswith(
        "def f(x):\n    y = x + 1  # one more\n    y = 2 * y\n    return y\n"
    )


def test_a_softmax_goes_over_another_axis() -> None:
    for before, after in (
        ("F.softmax(x, dim=0)", "F.softmax(x, dim=1)"),
        ("F.softmax(x, 0)", "F.softmax(x, 1)"),
        ("x.softmax(0)", "x.softmax(1)"),
    ):
        sheet = Sheet(HEAD + f"def f(x):\n    return {before}\n")
        assert sheet.edited(prescription("fix-softmax-dimension", "", location=sheet.at(before), dim=1)) == sheet.text.replace(
            before, after
        )


# -------------------------------------------------------------------------------------- loss


def test_the_loss_is_replaced_as_module_and_as_function() -> None:
    p = prescription("replace-loss", old="nll_loss", new="cross_entropy", function="addmm")
    for before, after in (("loss_fn = nn.NLLLoss()", "loss_fn = nn.CrossEntropyLoss()"), ("F.nll_loss(z, y)", "F.cross_entropy(z, y)")):
        sheet = Sheet(HEAD + before + "\n").having(losses=(literals.loss_call("nll_loss", site=None),))
        assert sheet.edited(p) == sheet.text.replace(before, after)


def test_softmax_becomes_log_softmax_with_its_loss() -> None:
    text = HEAD + "model = nn.Sequential(nn.Linear(2, 4), nn.Softmax(dim=1))\nloss_fn = nn.CrossEntropyLoss()\n"
    sheet = Sheet(text)
    sheet.having(losses=(literals.loss_call("cross_entropy", producer="softmax", producer_site=sheet.at("nn.Softmax(dim=1)"), site=None),))
    edited = sheet.edited(prescription("replace-loss", old="cross_entropy", new="nll_loss", function="softmax"))
    assert edited == text.replace("nn.Softmax", "nn.LogSoftmax").replace("CrossEntropyLoss", "NLLLoss")


def test_shapes_are_matched_in_the_call_or_by_a_function_of_the_same_name() -> None:
    p = prescription("match-shapes", operand="output", operation="squeeze", dim=1)
    facts = (literals.loss_call("mse_loss", broadcast=(8, 8), site=None),)
    sheet = Sheet(HEAD + "def loss_fn(output, target):\n    return F.mse_loss(output, target)\n").having(losses=facts)
    assert sheet.edited(p) == sheet.text.replace("(output, target)\n", "(output.squeeze(1), target)\n")
    sheet = Sheet(HEAD + 'x = 1\nloss_fn = nn.MSELoss(reduction="sum")\n').having(losses=facts)
    assert changed(sheet, sheet.edited(p)) == [
        "def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:",
        '    return F.mse_loss(output.squeeze(1), target, reduction="sum")',
    ]
    sheet = Sheet(HEAD + "def f(output, y):\n    return ((output - y) ** 2).mean()\n")
    sheet.having(mixes=(BroadcastMix("sub", sheet.at("output - y"), (8, 1), (8,), (8, 8)),), losses=(), differences=())
    assert sheet.edited(p) == sheet.text.replace("(output - y)", "(output.squeeze(1) - y)")
    assert Difference is not None


def test_a_sign_is_turned() -> None:
    facts = (literals.loss_call("cross_entropy", site=None),)
    p = prescription("flip-sign", function="cross_entropy", whole=True)
    for before, after in (
        ("return -F.cross_entropy(z, y)", "return F.cross_entropy(z, y)"),
        ("return a - F.cross_entropy(z, y)", "return a + F.cross_entropy(z, y)"),
    ):
        sheet = Sheet(HEAD + f"def f(a, z, y):\n    {before}\n").having(losses=facts)
        assert sheet.edited(p) == sheet.text.replace(before, after)


@pytest.mark.parametrize(
    ("treatment", "before", "after"),
    [
        ("stable-loss", "torch.log(F.softmax(z, dim=1))", "F.log_softmax(z, dim=1)"),
        ("stable-loss", "torch.sigmoid(z).log()", "F.logsigmoid(z)"),
        ("stable-loss", "torch.log(1 - torch.sigmoid(z))", "F.logsigmoid(-(z))"),
        ("stable-loss", "torch.log(torch.exp(z).sum(1))", "torch.logsumexp(z, 1)"),
        ("stable-loss", "torch.exp(z) / torch.exp(z).sum(1, keepdim=True)", "torch.softmax(z, 1)"),
        ("guard-domain", "torch.sqrt(z + y)", "torch.sqrt((z + y).clamp_min(1e-8))"),
        ("guard-domain", "z / y", "z / (y + 1e-6)"),
        ("guard-domain", "z.exp()", "z.clamp_max(20.0).exp()"),
    ],
)
def test_an_operation_is_kept_inside_its_domain(treatment: str, before: str, after: str) -> None:
    sheet = Sheet(HEAD + f"def f(z, y):\n    return {before}\n")
    sheet.having(loss_operations=(LossOperation("log", "softmax", sheet.at(before)),))
    assert sheet.edited(prescription(treatment, location=sheet.at(before))) == sheet.text.replace(before, after)


# ---------------------------------------------------------------------- data, regularisation


def test_inputs_are_standardised_where_the_dataset_is_made() -> None:
    text = HEAD + "train_loader = DataLoader(TensorDataset(raw, y), shuffle=True)\nval_loader = DataLoader(TensorDataset(raw_val, y_val))\n"
    sheet = Sheet(text)
    assert changed(sheet, sheet.edited(prescription("standardize-input", axis="feature", input="0"))) == [
        "mean, std = raw.mean(dim=0), raw.std(dim=0)",
        "raw = (raw - mean) / std",
        "raw_val = (raw_val - mean) / std",
    ]


def test_an_expression_gets_a_name_and_targets_their_inverse() -> None:
    sheet = Sheet(HEAD + "train_loader = DataLoader(TensorDataset(a + b, y))\n")
    assert changed(sheet, sheet.edited(prescription("standardize-input", axis="all", mean=3.0, std=2.0))) == [
        "inputs = a + b",
        "inputs = (inputs - 3.0) / 2.0",
        "train_loader = DataLoader(TensorDataset(inputs, y))",
    ]
    assert changed(sheet, sheet.edited(prescription("standardize-target", mean=150.0, std=75.0))) == [
        "y = (y - 150.0) / 75.0  # a prediction is output * 75.0 + 150.0"
    ]


def test_the_training_loader_is_shuffled() -> None:
    sheet = Sheet(HEAD + "val_loader = DataLoader(b)\ntrain_loader = DataLoader(a, batch_size=8, shuffle=False)\n")
    assert sheet.edited(prescription("shuffle-data")) == sheet.text.replace("shuffle=False", "shuffle=True")


def test_the_rate_of_dropouts_is_changed_where_it_is_defined() -> None:
    sheet = Sheet(HEAD + "RATE = 0.97\n\n\ndef f(x, training):\n    return F.dropout(F.dropout(x, RATE, training), RATE, training)\n")
    sites = (sheet.at("F.dropout(x, RATE, training)"), sheet.at("F.dropout(F.dropout(x, RATE, training), RATE, training)"))
    sheet.having(regularization=Regularization(dropouts=tuple(Dropout(":dropout", 0.97, site) for site in sites)))
    assert sheet.edited(prescription("lower-dropout", ":dropout", rate=0.2)) == sheet.text.replace("0.97", "0.2")


def test_labels_are_smoothed() -> None:
    sheet = Sheet(HEAD + "loss_fn = nn.CrossEntropyLoss()\n").having(losses=(literals.loss_call("cross_entropy", site=None),))
    assert sheet.edited(prescription("label-smoothing", smoothing=0.1)) == sheet.text.replace("Loss()", "Loss(label_smoothing=0.1)")


def test_a_proximal_step_is_registered_with_the_optimizer() -> None:
    sheet = stack()
    edited = sheet.edited(prescription("l1", l1=1e-4))
    assert "    optimizer.register_step_post_hook(shrink_weights)\n    return optimizer\n" in edited
    assert "p.copy_(p.sign() * (p.abs() - rate * 1e-4).clamp_min(0))" in edited


def test_writers_have_the_names_of_treatments() -> None:
    from gradcheck.remedies.vocabulary import VOCABULARY

    assert set(WRITERS) <= set(VOCABULARY)


# ------------------------------------------------------------------------- several at once


def test_several_remedies_meet_in_one_file() -> None:
    sheet = stack(weight_decay=0.1)
    edited = sheet.edited(
        prescription("insert-normalization", "0", stage="architecture", kind="LayerNorm"),
        prescription("weaker-weight-decay", stage="regularization", weight_decay=0.01),
        prescription("replace-activation", "1", stage="architecture", old="sigmoid", new="relu"),
        prescription("lower-learning-rate", stage="optimizer", lr=1e-3),
        prescription("xavier-init", "0", "2", stage="initialization", gain=1.0),
        prescription("clip-gradient-norm", stage="clipping", max_norm=1.0),
    )
    assert changed(sheet, edited) == [
        "def apply_gradcheck_fixes(model: nn.Module) -> nn.Module:",
        '    """Xavier initialisation (Glorot and Bengio 2010)."""',
        "    for layer in (model[0], model[3]):",  # the head is an item further on behind the new normalization
        "        nn.init.xavier_uniform_(layer.weight)",
        "        nn.init.zeros_(layer.bias)",
        "    return model",
        "    model = nn.Sequential(",
        "        nn.LayerNorm(64),",
        "        nn.ReLU(),",
        "    return apply_gradcheck_fixes(model)",
        "# The training loop clips with it between backward and step.",
        "max_grad_norm = 1.0",
        "    return torch.optim.Adam(model.parameters(), lr=0.001, eps=0.1, weight_decay=0.01)",
    ]


def test_what_cannot_be_written_leaves_no_half_of_it() -> None:
    sheet = stack()
    good, bad = prescription("adam-epsilon", eps=1e-8), prescription("insert-normalization", "1", kind="LayerNorm")
    plan = sheet.plan(good, bad, prescription("early-stopping"))
    assert [p.treatment for p in plan.written] == ["adam-epsilon"]
    assert {p.treatment: why for p, why in plan.unwritten}["early-stopping"] == "there is no edit of the source for it"
    assert plan.texts[sheet.path].decode() == sheet.text.replace("eps=0.1", "eps=1e-8")


def test_code_that_counts_on_the_items_is_renumbered_or_refused() -> None:
    text = HEAD + "model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))\nnn.init.zeros_(model[2].bias)\n"
    sheet = Sheet(text).layer("0", "nn.Linear(8, 64)").layer("1", "nn.ReLU()", kind="activation").layer("2", "nn.Linear(64, 4)")
    sheet.root(text[text.index("nn.Sequential") : text.index("\nnn.init")], "Sequential")
    assert "nn.init.zeros_(model[3].bias)" in sheet.edited(prescription("insert-normalization", "0", kind="LayerNorm"))
    sheet = Sheet(text + "first = model[:2]\n").layer("0", "nn.Linear(8, 64)").layer("1", "nn.ReLU()").layer("2", "nn.Linear(64, 4)")
    sheet.root(text[text.index("nn.Sequential") : text.index("\nnn.init")], "Sequential")
    assert "model[:2] counts on the order" in sheet.refused(prescription("insert-normalization", "0", kind="LayerNorm"))


def test_a_file_of_another_is_not_touched() -> None:
    sheet = stack()
    foreign = replace(sheet.at("nn.Sigmoid()"), path="elsewhere.py")
    sheet._layers[1] = replace(sheet._layers[1], site=foreign)
    assert "elsewhere.py is not a file of yours" in sheet.refused(prescription("replace-activation", "1", old="sigmoid", new="relu"))


def test_layers_are_scaled_to_unit_variance_on_the_training_inputs() -> None:
    text = HEAD + "inputs = 5 * torch.randn(64, 8)\nloader = DataLoader(TensorDataset(inputs, y))\n"
    text += "model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))\n"
    stubs = "class DataLoader:\n    def __init__(self, data):\n        pass\n\n\nTensorDataset, y = zip, []\n"
    sheet = Sheet(text.replace("\n\n\n", "\n\n\n" + stubs, 1))
    sheet.layer("0", "nn.Linear(8, 64)").layer("2", "nn.Linear(64, 4)").root(text[text.index("nn.Sequential") : -1], "Sequential")
    edited = sheet.edited(prescription("lsuv-init", "0", "2"))
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(edited, "model.py", "exec"), scope)
    batch = scope["inputs"][:32]  # what was measured with
    hidden = scope["model"][0](batch)
    assert abs(hidden.std() - 1) < 0.05 and abs(scope["model"](batch).std() - 1) < 0.05


def test_two_new_items_behind_one_layer_leave_the_numbers_right() -> None:
    sheet = stack()
    edited = sheet.edited(
        prescription("prior-bias", "2", stage="initialization", bias="1.5"),
        prescription("insert-normalization", "0", stage="architecture", kind="LayerNorm"),
        prescription("dropout", "1", stage="regularization", rate=0.1, insert=True),
    )
    assert "model[4].bias.fill_(1.5)" in edited
    assert "        nn.LayerNorm(64),\n        nn.Sigmoid(),\n        nn.Dropout(0.1),\n" in edited


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("torch.relu(a + b) * 2", "(a + b) * 2"),
        ("torch.relu(a + b)", "a + b"),
        ("torch.relu(a)[0]", "a[0]"),
        ("(a @ b).relu().sum()", "(a @ b).sum()"),
    ],
)
def test_an_operand_keeps_together_when_its_function_goes(before: str, after: str) -> None:
    sheet = Sheet(HEAD + f"def f(a, b):\n    return {before}\n")
    wanted = "(a @ b).relu()" if "@" in before else before.removesuffix(" * 2").removesuffix("[0]")
    sheet.layer(":relu", wanted, kind="activation", function="relu")
    assert sheet.edited(prescription("remove-output-activation", ":relu", function="relu")) == sheet.text.replace(before, after)


def test_children_that_are_no_python_names_are_reached() -> None:
    sheet = Sheet(HEAD + "from package import Big\n\nmodel = Big(3)\n").root("Big(3)", "Big")
    sheet._layers.append(literals.layer("heads.4a.fc", site=None))
    assert 'model.heads["4a"].fc.weight' in sheet.edited(prescription("he-init", "heads.4a.fc", gain=1.4142))
