"""Activations, normalization, bypasses: a file before and after, as a careful colleague would have changed it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.remedies.editing.examples import STACK, changed, net, stack
from tests.remedies.editing.sheets import HEAD, Sheet, fix


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_activation_is_replaced_as_module_function_and_method() -> None:
    sheet = stack()
    assert sheet.edited(fix("replace-activation", "1", old="sigmoid", new="relu")) == sheet.text.replace("nn.Sigmoid()", "nn.ReLU()")
    sheet = net()
    p = fix("replace-activation", ":sigmoid", old="sigmoid", new="leaky_relu", negative_slope=0.01)
    assert sheet.edited(p) == sheet.text.replace("torch.sigmoid(self.first(x))", "F.leaky_relu(self.first(x), 0.01)")
    sheet = Sheet(HEAD + "def f(x):\n    return x.sigmoid() + 1\n").layer(":sigmoid", "x.sigmoid()", kind="activation")
    assert sheet.edited(fix("replace-activation", ":sigmoid", old="sigmoid", new="tanh")) == sheet.text.replace(
        "x.sigmoid()", "torch.tanh(x)"
    )


def test_a_class_that_is_handed_over_is_replaced_where_it_is_given() -> None:
    text = HEAD + "def block(act):\n    return nn.Sequential(nn.Linear(2, 2), act())\n\n\nmodel = block(nn.Sigmoid)\n"
    sheet = Sheet(text).layer("1", "act()", kind="activation", function="sigmoid")
    assert sheet.edited(fix("replace-activation", "1", old="sigmoid", new="relu")) == text.replace("nn.Sigmoid", "nn.ReLU")


def test_an_output_activation_goes_with_its_line() -> None:
    sheet = Sheet(HEAD + STACK.replace("  # the head\n", "\n        nn.Softmax(dim=1),\n")).layer("3", "nn.Softmax(dim=1)", kind="softmax")
    assert sheet.edited(fix("remove-output-activation", "3", function="softmax")) == sheet.text.replace("        nn.Softmax(dim=1),\n", "")


def test_an_activation_is_inserted_in_a_sequential_and_in_forward() -> None:
    sheet = Sheet(HEAD + "model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 4))\n").layer("0", "nn.Linear(8, 64)")
    assert sheet.edited(fix("insert-activation", "0", activation="relu")) == sheet.text.replace("(8, 64),", "(8, 64), nn.ReLU(),")
    sheet = net()
    assert sheet.edited(fix("insert-activation", "second", activation="gelu")) == sheet.text.replace(
        "return self.second(torch.sigmoid(self.first(x)))", "return F.gelu(self.second(torch.sigmoid(self.first(x))))"
    )


def test_a_normalization_is_inserted_and_takes_the_bias() -> None:
    sheet = stack()
    p = fix("insert-normalization", "0", kind="BatchNorm1d", drop_bias=True)
    assert sheet.edited(p) == sheet.text.replace(
        "        nn.Linear(8, 64),\n", "        nn.Linear(8, 64, bias=False),\n        nn.BatchNorm1d(64),\n"
    )
    sheet = net()
    assert changed(sheet, sheet.edited(fix("insert-normalization", "first", kind="LayerNorm"))) == [
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
        p = fix("insert-normalization", "0", "2", kind="LayerNorm")
        if room:
            assert sheet.edited(p) == sheet.text.replace("nn.Linear(8, 8), ", "nn.Linear(8, 8), nn.LayerNorm(8), ")
        else:
            assert "no room" in sheet.refused(p)


@pytest.mark.parametrize(
    ("returned", "used", "room"),
    [
        ("return [first, nn.ReLU(), second]", "nn.Sequential(*stage(), *stage())", True),
        ("parts = [first, nn.ReLU(), second]\n    return parts", "nn.Sequential(nn.Flatten(), *stage())", True),
        ("return [first, nn.ReLU(), second]", "nn.Sequential(stage()[0], stage()[2])", False),
        ("return [first, nn.ReLU(), second]", "nn.ModuleList(stage())", False),
    ],
)
def test_a_list_that_a_function_returns_has_room_where_all_callers_unpack_it(returned: str, used: str, room: bool) -> None:
    made = "nn.Linear(8, 8, True)", "nn.Linear(8, 8, False)"
    text = f"def stage():\n    first, second = {made[0]}, {made[1]}\n    {returned}\n\n\nmodel = {used}\n"
    sheet = Sheet(HEAD + text).layer("0", made[0]).layer("2", made[1])
    p = fix("insert-normalization", "0", "2", kind="LayerNorm")
    if room:
        expected = sheet.text.replace("[first,", "[first, nn.LayerNorm(8),").replace("second]", "second, nn.LayerNorm(8)]")
        assert sheet.edited(p) == expected
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
    assert changed(sheet, sheet.edited(fix("insert-normalization", *names, kind="BatchNorm1d"))) == [
        "        self.body_norm = nn.ModuleList([nn.BatchNorm1d(64) for _ in range(4)])",
        "        for layer, norm in zip(self.body, self.body_norm, strict=True):",
        "            x = torch.relu(norm(layer(x)))",
    ]


def test_a_layer_whose_site_makes_others_too_is_not_touched_alone() -> None:
    assert "body." in listed().refused(fix("insert-normalization", "body.0", kind="LayerNorm"))


def test_a_bypass_is_written_into_the_loop_the_block_and_around_items() -> None:
    sheet = listed()
    names = [f"body.{index}" for index in range(4)]
    assert changed(sheet, sheet.edited(fix("add-residual", *names, scale=0.5))) == ["            x = torch.relu(x + 0.5 * layer(x))"]
    text = (
        HEAD + "class Block(nn.Module):\n    def forward(self, x):\n        return self.f(x)\n\n\nmodel = nn.Sequential(Block(), Block())\n"
    )
    sheet = Sheet(text).layer("0", "Block()", kind="container", type="Block").layer("1", "Block()", 1, kind="container", type="Block")
    assert sheet.edited(fix("add-residual", "0", "1", scale=1.0)) == text.replace("return self.f(x)", "return x + self.f(x)")
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
    edited = sheet.edited(fix("add-residual", "1", "2", "3", scale=1.0))
    assert "*[Residual(block(64, 64)) for _ in range(3)]" in edited and edited.count("class Residual(nn.Module):") == 1


def test_batch_normalization_is_replaced_and_put_in_order_with_dropout() -> None:
    sheet = Sheet(HEAD + "model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 4))\n")
    sheet.layer("1", "nn.Dropout(0.5)", kind="dropout").layer("2", "nn.BatchNorm1d(64)", kind="norm")
    assert sheet.edited(fix("batch-free-normalization", "2", kind="GroupNorm", groups=8)) == sheet.text.replace(
        "BatchNorm1d(64)", "GroupNorm(8, 64)"
    )
    assert sheet.edited(fix("move-dropout", "1", "2")) == sheet.text.replace(
        "nn.Dropout(0.5), nn.BatchNorm1d(64)", "nn.BatchNorm1d(64), nn.Dropout(0.5)"
    )


def test_a_bias_that_other_code_sets_is_kept() -> None:
    sheet = Sheet(HEAD + "first = nn.Linear(8, 64)\nnn.init.zeros_(first.bias)\nmodel = nn.Sequential(first, nn.BatchNorm1d(64))\n")
    assert "bias" in sheet.layer("0", "nn.Linear(8, 64)").refused(fix("remove-bias", "0"))


BLOCK = """class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.feed = nn.MultiheadAttention(8, 2), nn.Linear(8, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm1(x + self.mix(x, x, x)[0])
        return self.norm2(
            torch.relu(self.feed(x)) + x  # the other way round
        )


model = nn.Sequential(Block(), Block())
"""


def blocks(text: str = BLOCK) -> Sheet:
    sheet = Sheet(HEAD + text).root("nn.Sequential(Block(), Block())", "Sequential")
    for index in range(2):
        sheet.layer(f"{index}", "Block()", index, "container", type="Block")
        sheet.layer(f"{index}.norm1", "nn.LayerNorm(8)", kind="norm").layer(f"{index}.norm2", "nn.LayerNorm(8)", 1, "norm")
    return sheet


PRE_NORM = fix("pre-norm", "0.norm1", "0.norm2", "1.norm1", "1.norm2")


def test_blocks_of_the_users_own_normalise_in_front_of_their_branches() -> None:
    sheet = blocks()
    edited = sheet.edited(PRE_NORM)
    assert changed(sheet, edited) == [
        "        normed = self.norm1(x)",
        "        x = x + self.mix(normed, normed, normed)[0]",
        "        return (",
        "            torch.relu(self.feed(self.norm2(x))) + x  # the other way round",
    ]
    ast.parse(edited)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("self.norm1(x + self.mix(x, x, x)[0])", "self.norm1(self.mix(x, x, x)[0])", None),
        ("        x = self.norm1", "        normed = x\n        x = self.norm1", "the name normed is taken"),
        ("class Block(nn", "class Other(nn", "Block is not a class in your files"),
        ("def forward(", "def run(", "Block is not a class in your files"),
    ],
)
def test_blocks_that_cannot_be_turned_are_refused(old: str, new: str, why: str | None) -> None:
    sheet = blocks(BLOCK.replace(old, new))
    if why is None:  # the other norm can
        assert changed(sheet, sheet.edited(PRE_NORM)) == [
            "        return (",
            "            torch.relu(self.feed(self.norm2(x))) + x  # the other way round",
        ]
    else:
        assert why in sheet.refused(PRE_NORM)


ATTENTION = """class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.k_proj = nn.Linear(8, 8)

    def forward(self, x):
        return F.scaled_dot_product_attention(self.q_proj(x), self.k_proj(x), x)


model = Attention()
"""


def test_queries_and_keys_are_normalised_behind_their_projections() -> None:
    sheet = Sheet(HEAD + ATTENTION).root("Attention()").layer("q_proj", "nn.Linear(8, 8)").layer("k_proj", "nn.Linear(8, 8)", 1)
    assert changed(sheet, sheet.edited(fix("qk-norm", "", projections="q_proj,k_proj"))) == [
        "        self.q_proj_norm = nn.LayerNorm(8)",
        "        self.k_proj_norm = nn.LayerNorm(8)",
        "        return F.scaled_dot_product_attention(self.q_proj_norm(self.q_proj(x)), self.k_proj_norm(self.k_proj(x)), x)",
    ]
    assert "not made by a layer each" in sheet.refused(fix("qk-norm", "", projections="q_proj"))
