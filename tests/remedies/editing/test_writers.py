"""Optimizer, training loop, wiring, and several at once: a file before and after, as a careful colleague would have changed it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradcheck.types.checks import Clip
from gradcheck.types.parameters import HiddenTensor
from tests import literals
from tests.remedies.editing.examples import changed, stack
from tests.remedies.editing.sheets import HEAD, Sheet, fix


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------- optimizer


def test_a_setting_is_changed_where_the_optimizer_is_created() -> None:
    sheet = stack()
    assert sheet.edited(fix("lower-learning-rate", lr=3e-4)) == sheet.text.replace("lr=1e-2", "lr=3e-4")
    assert sheet.edited(fix("adam-epsilon", eps=1e-8)) == sheet.text.replace("eps=0.1", "eps=1e-8")


def test_a_setting_that_is_not_there_is_added_behind_the_others() -> None:
    sheet = stack()
    assert sheet.edited(fix("weaker-weight-decay", weight_decay=0.01)) == sheet.text.replace("eps=0.1)", "eps=0.1, weight_decay=0.01)")


def test_a_number_is_changed_where_its_name_is_defined() -> None:
    sheet = Sheet(HEAD + "LR, STEPS = 10.0, 5\nmodel = nn.Linear(2, 2)\noptimizer = torch.optim.SGD(model.parameters(), LR)\n")
    sheet.optimizer("torch.optim.SGD(model.parameters(), LR)", "SGD")
    assert sheet.edited(fix("lower-learning-rate", lr=0.1)) == sheet.text.replace("10.0", "0.1")


def test_a_number_whose_name_is_read_elsewhere_is_changed_in_place() -> None:
    sheet = Sheet(HEAD + "LR = 10.0\nprint(LR)\nmodel = nn.Linear(2, 2)\noptimizer = torch.optim.SGD(model.parameters(), lr=LR)\n")
    sheet.optimizer("torch.optim.SGD(model.parameters(), lr=LR)", "SGD")
    assert sheet.edited(fix("lower-learning-rate", lr=0.1)) == sheet.text.replace("lr=LR", "lr=0.1")


def test_the_default_of_a_command_line_option_is_changed() -> None:
    text = (
        HEAD + 'parser.add_argument("--lr", type=float, default=10.0)\nargs = parser.parse_args()\n'
        "optimizer = torch.optim.SGD(weights, lr=args.lr)\n"
    )
    sheet = Sheet(text).optimizer("torch.optim.SGD(weights, lr=args.lr)", "SGD")
    assert sheet.edited(fix("lower-learning-rate", lr=0.1)) == text.replace("10.0", "0.1")


def test_a_one_cycle_schedule_gets_the_new_rate_as_its_highest() -> None:
    text = (
        HEAD
        + "optimizer = torch.optim.SGD(weights, lr=0.05)\nsteps = torch.optim.lr_scheduler.OneCycleLR(optimizer, 300.0, total_steps=90)\n"
    )
    sheet = Sheet(text).optimizer("torch.optim.SGD(weights, lr=0.05)", "SGD", lr=300.0)
    assert sheet.edited(fix("lower-learning-rate", lr=0.3)) == text.replace("300.0", "0.3")


def test_an_optimizer_made_too_early_goes_behind_the_last_change_of_its_model() -> None:
    made, change = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n", "model.head = nn.Linear(2, 2)\n"
    sheet = Sheet(HEAD + "model = Net()\n" + made + change + "print(optimizer)\n")
    sheet.optimizer("torch.optim.SGD(model.parameters(), lr=0.1)", "SGD")
    assert sheet.edited(fix("add-to-optimizer")) == HEAD + "model = Net()\n" + change + made + "print(optimizer)\n"


def test_groups_with_rates_of_their_own_keep_their_ratio() -> None:
    text = HEAD + 'optimizer = torch.optim.SGD([{"params": a, "lr": 1.0}, {"params": b, "lr": 0.1}], lr=1.0)\n'
    call = text[text.index("torch.optim") : -1]
    sheet = Sheet(text).optimizer(call, "SGD", lr=1.0)
    assert sheet.edited(fix("lower-learning-rate", lr=0.01)) == text.replace('"lr": 1.0', '"lr": 0.01').replace(
        '"lr": 0.1', '"lr": 0.001', 1
    ).replace("lr=1.0", "lr=0.01")


def test_biases_and_gains_get_a_group_without_decay() -> None:
    sheet = stack(weight_decay=0.1)
    assert changed(sheet, sheet.edited(fix("weight-decay-groups", weight_decay=0.1))) == [
        "    decayed = [p for p in model.parameters() if p.ndim >= 2]",
        "    spared = [p for p in model.parameters() if p.ndim < 2]  # biases and gains",
        '    return torch.optim.Adam([{"params": decayed}, {"params": spared, "weight_decay": 0.0}], lr=1e-2, eps=0.1)',
    ]


def test_each_of_several_groups_is_halved() -> None:
    groups = '[{"params": a.parameters(), "lr": 0.2, "weight_decay": 0.3}, {"params": b.parameters()}]'
    for text in (
        f"optimizer = torch.optim.AdamW({groups}, lr=0.1)\n",
        f"groups = {groups}\noptimizer = torch.optim.AdamW(groups, lr=0.1)\n",
    ):
        sheet = Sheet(HEAD + text)
        sheet.optimizer(sheet.text[sheet.text.index("torch.optim.AdamW") : -1], "AdamW")
        assert sheet.edited(fix("weight-decay-groups")) == sheet.text.replace(
            groups,
            '[{"params": [p for p in a.parameters() if p.ndim >= 2], "lr": 0.2, "weight_decay": 0.3}, '
            '{"params": [p for p in a.parameters() if p.ndim < 2], "lr": 0.2, "weight_decay": 0.0}, '
            '{"params": [p for p in b.parameters() if p.ndim >= 2]}, '
            '{"params": [p for p in b.parameters() if p.ndim < 2], "weight_decay": 0.0}]',
        )


@pytest.mark.parametrize("group", ['{"params": weights}', '{**own, "params": a.parameters()}', "group"])
def test_groups_whose_parameters_are_not_a_modules_are_left(group: str) -> None:
    sheet = Sheet(HEAD + f"optimizer = torch.optim.AdamW([{group}], lr=0.1)\n")
    assert "not given the parameters" in sheet.optimizer(sheet.text[sheet.text.index("torch.optim.AdamW") : -1], "AdamW").refused(
        fix("weight-decay-groups")
    )


def test_adam_becomes_adamw() -> None:
    sheet = stack()
    text = sheet.edited(fix("decoupled-weight-decay", weight_decay=0.01))
    assert text == sheet.text.replace("optim.Adam(", "optim.AdamW(").replace("eps=0.1)", "eps=0.1, weight_decay=0.01)")


def test_maximize_is_dropped() -> None:
    sheet = Sheet(HEAD + "optimizer = torch.optim.SGD(weights, lr=0.1, maximize=True)\n")
    sheet.optimizer("torch.optim.SGD(weights, lr=0.1, maximize=True)", "SGD")
    assert sheet.edited(fix("flip-sign", maximize=False)) == sheet.text.replace(", maximize=True", "")


def test_an_assumed_optimizer_is_not_written() -> None:
    sheet = stack().having(optimizer=literals.optimizer("AdamW", given=False))
    assert "assumed" in sheet.refused(fix("lower-learning-rate", lr=1e-4))


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
    text = sheet.edited(fix("clip-gradient-norm", stage="clipping", max_norm=1.0))
    assert text == sheet.text.replace("    optimizer.step()", "    nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n    optimizer.step()")


def test_a_scaler_unscales_before_the_clipping() -> None:
    sheet = script(LOOP.replace("optimizer.step()", "scaler.step(optimizer)"), "scaler.step(optimizer)")
    assert changed(sheet, sheet.edited(fix("clip-gradient-value", clip_value=0.5))) == [
        "    scaler.unscale_(optimizer)",
        "    nn.utils.clip_grad_value_(model.parameters(), 0.5)",
    ]


def test_the_clipping_that_is_there_gets_another_threshold_and_kind() -> None:
    call = "torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)"
    sheet = script(LOOP.replace("    optimizer.step()", f"    {call}\n    optimizer.step()"))
    sheet.having(clip=Clip("value", 1e-4, site=sheet.at(call)))
    assert changed(sheet, sheet.edited(fix("clip-gradient-norm", max_norm=2.0))) == [
        "    torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)"
    ]


def test_a_one_line_loop_is_unfolded() -> None:
    text = LOOP.replace("    F.cross", "    if x is not None: F.cross").replace(
        "backward()\n    optimizer.step()", "backward(); optimizer.step()"
    )
    text = text.replace("    optimizer.zero_grad()\n", "")
    sheet = script(text)
    assert sheet.edited(fix("clip-gradient-norm", max_norm=1.0)).endswith(
        "    if x is not None:\n"
        "        F.cross_entropy(model(x), y).backward()\n"
        "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
        "        optimizer.step()\n"
    )


def test_a_model_file_gets_the_number_that_gradcheck_reads() -> None:
    sheet = stack()
    assert changed(sheet, sheet.edited(fix("clip-gradient-norm", max_norm=1.0))) == [
        "# The training loop clips with it between backward and step.",
        "max_grad_norm = 1.0",
    ]


def test_a_warm_up_is_stepped_by_the_loop() -> None:
    sheet = script()
    assert changed(sheet, sheet.edited(fix("warm-up", steps=50, start=0.01))) == [
        "warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=50)",
        "    warm_up.step()",
    ]


def test_a_warm_up_of_a_model_file_is_made_with_the_optimizer() -> None:
    sheet = stack()
    assert changed(sheet, sheet.edited(fix("warm-up", steps=50, start=0.01))) == [
        "    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.1)",
        "    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=50)  # stepped by the training loop",
        "    return optimizer",
    ]


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
    assert hidden(Sheet(text), "nn.Linear(2, 2)").edited(fix("register-modules")) == text.replace(body, after)


def test_hidden_modules_of_a_class_with_another_name_for_self() -> None:
    text = HEAD + "class Net(nn.Module):\n    def __init__(s): super().__init__(); s.a = [nn.Linear(2, 2)]; s.b = nn.Linear(2, 1)\n"
    assert hidden(Sheet(text), "nn.Linear(2, 2)").edited(fix("register-modules")) == text.replace(
        "[nn.Linear(2, 2)]", "nn.ModuleList([nn.Linear(2, 2)])"
    )
    other = text.replace("s.a =", "other.a =")
    assert "not kept in a list" in hidden(Sheet(other), "nn.Linear(2, 2)").refused(fix("register-modules"))


def test_missing_parameters_join_the_optimizer() -> None:
    text = HEAD + "params = [*model.a.parameters(), *model.c.parameters()]\noptimizer = torch.optim.SGD(params, lr=0.1)\n"
    sheet = Sheet(text).optimizer("torch.optim.SGD(params, lr=0.1)", "SGD")
    groups = {"a.weight": 1, "b.weight": 0, "b.bias": 0, "c.weight": 1}
    sheet.having(parameters=tuple(literals.parameter(name, layer=name[0], groups=count) for name, count in groups.items()))
    assert sheet.edited(fix("add-to-optimizer", "b")) == text.replace(
        "*model.c.parameters()]", "*model.c.parameters(), *model.b.parameters()]"
    )


def test_an_optimizer_of_another_module_gets_the_model_in_its_place() -> None:
    text = HEAD + "body = nn.Linear(4, 2)\nhead = nn.Linear(2, 2)\noptimizer = torch.optim.SGD(body.parameters(), lr=0.1)\n"
    sheet = Sheet(text).optimizer("torch.optim.SGD(body.parameters(), lr=0.1)", "SGD").layer("", "nn.Linear(2, 2)")
    sheet.having(parameters=(literals.parameter("weight", layer="", groups=0),))
    assert sheet.edited(fix("add-to-optimizer")) == text.replace("SGD(body", "SGD(head")
    sheet.having(parameters=(literals.parameter("weight", layer="", groups=1),))
    assert "not plain" in sheet.refused(fix("add-to-optimizer"))


def test_a_cut_gradient_is_let_through() -> None:
    sheet = Sheet(HEAD + "def f(x):\n    return (x + 1).detach() * 2\n")
    assert sheet.edited(fix("remove-detach", location=sheet.at("(x + 1).detach()"))) == sheet.text.replace(".detach()", "")
    sheet = Sheet(HEAD + "def f(x):\n    with torch.no_grad():\n        y = x + 1  # one more\n        y = 2 * y\n    return y\n")
    assert sheet.edited(fix("remove-detach", location=sheet.at("x + 1"))).endswith(
        "def f(x):\n    y = x + 1  # one more\n    y = 2 * y\n    return y\n"
    )


def test_a_softmax_goes_over_another_axis() -> None:
    for before, after in (
        ("F.softmax(x, dim=0)", "F.softmax(x, dim=1)"),
        ("F.softmax(x, 0)", "F.softmax(x, 1)"),
        ("x.softmax(0)", "x.softmax(1)"),
    ):
        sheet = Sheet(HEAD + f"def f(x):\n    return {before}\n")
        assert sheet.edited(fix("fix-softmax-dimension", "", location=sheet.at(before), dim=1)) == sheet.text.replace(before, after)


# ------------------------------------------------------------------------- several at once


def test_several_remedies_meet_in_one_file() -> None:
    sheet = stack(weight_decay=0.1)
    edited = sheet.edited(
        fix("insert-normalization", "0", stage="architecture", kind="LayerNorm"),
        fix("weaker-weight-decay", stage="regularization", weight_decay=0.01),
        fix("replace-activation", "1", stage="architecture", old="sigmoid", new="relu"),
        fix("lower-learning-rate", stage="optimizer", lr=1e-3),
        fix("xavier-init", "0", "2", stage="initialization", gain=1.0),
        fix("clip-gradient-norm", stage="clipping", max_norm=1.0),
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
    good, bad = fix("adam-epsilon", eps=1e-8), fix("insert-normalization", "1", kind="LayerNorm")
    plan = sheet.plan(good, bad, fix("early-stopping"))
    assert [p.treatment for p in plan.written] == ["adam-epsilon"]
    assert {p.treatment: why for p, why in plan.unwritten}["early-stopping"] == "there is no edit of the source for it"
    assert plan.texts[sheet.path].decode() == sheet.text.replace("eps=0.1", "eps=1e-8")


def test_code_that_counts_on_the_items_is_renumbered_or_refused() -> None:
    text = HEAD + "model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))\nnn.init.zeros_(model[2].bias)\n"
    sheet = Sheet(text).layer("0", "nn.Linear(8, 64)").layer("1", "nn.ReLU()", kind="activation").layer("2", "nn.Linear(64, 4)")
    sheet.root(text[text.index("nn.Sequential") : text.index("\nnn.init")], "Sequential")
    assert "nn.init.zeros_(model[3].bias)" in sheet.edited(fix("insert-normalization", "0", kind="LayerNorm"))
    sheet = Sheet(text + "first = model[:2]\n").layer("0", "nn.Linear(8, 64)").layer("1", "nn.ReLU()").layer("2", "nn.Linear(64, 4)")
    sheet.root(text[text.index("nn.Sequential") : text.index("\nnn.init")], "Sequential")
    assert "model[:2] counts on the order" in sheet.refused(fix("insert-normalization", "0", kind="LayerNorm"))


def test_a_file_of_another_is_not_touched() -> None:
    sheet = stack()
    foreign = replace(sheet.at("nn.Sigmoid()"), path="elsewhere.py")
    sheet._layers[1] = replace(sheet._layers[1], site=foreign)
    assert "elsewhere.py is not a file of yours" in sheet.refused(fix("replace-activation", "1", old="sigmoid", new="relu"))


def test_layers_are_scaled_to_unit_variance_on_the_training_inputs() -> None:
    text = HEAD + "inputs = 5 * torch.randn(64, 8)\nloader = DataLoader(TensorDataset(inputs, y))\n"
    text += "model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))\n"
    stubs = "class DataLoader:\n    def __init__(self, data):\n        pass\n\n\nTensorDataset, y = zip, []\n"
    sheet = Sheet(text.replace("\n\n\n", "\n\n\n" + stubs, 1))
    sheet.layer("0", "nn.Linear(8, 64)").layer("2", "nn.Linear(64, 4)").root(text[text.index("nn.Sequential") : -1], "Sequential")
    edited = sheet.edited(fix("lsuv-init", "0", "2"))
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(edited, "model.py", "exec"), scope)
    batch = scope["inputs"][:32]  # what was measured with
    hidden = scope["model"][0](batch)
    assert abs(hidden.std() - 1) < 0.05 and abs(scope["model"](batch).std() - 1) < 0.05


def test_two_new_items_behind_one_layer_leave_the_numbers_right() -> None:
    sheet = stack()
    edited = sheet.edited(
        fix("prior-bias", "2", stage="initialization", bias="1.5"),
        fix("insert-normalization", "0", stage="architecture", kind="LayerNorm"),
        fix("dropout", "1", stage="regularization", rate=0.1, insert=True),
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
    assert sheet.edited(fix("remove-output-activation", ":relu", function="relu")) == sheet.text.replace(before, after)


def test_children_that_are_no_python_names_are_reached() -> None:
    sheet = Sheet(HEAD + "from package import Big\n\nmodel = Big(3)\n").root("Big(3)", "Big")
    sheet._layers.append(literals.layer("heads.4a.fc", site=None))
    assert 'model.heads["4a"].fc.weight' in sheet.edited(fix("he-init", "heads.4a.fc", gain=1.4142))
