"""Step functions, scales, placeholders, precision and modes: files before and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remedies.editing.sheets import HEAD, Sheet, fix


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("operation", "call", "before", "after"),
    [
        ("round", "torch.round(x)", "    x = torch.round(x)", "    x = x + (torch.round(x) - x).detach()"),
        ("sign", "x.sign()", "    return x.sign()", "    return x.clamp(-1, 1) + (x.sign() - x.clamp(-1, 1)).detach()"),
        (
            "round",
            "torch.round(self.fc(x), decimals=2)",
            "    codes = torch.round(self.fc(x), decimals=2)",
            "    codes = self.fc(x)\n    codes = codes + (torch.round(codes, decimals=2) - codes).detach()",
        ),
        ("floor", "(x + 1).floor()", "    return (x + 1).floor()", "    z1 = x + 1\n    return z1 + (z1.floor() - z1).detach()"),
        (
            "ceil",
            "torch.ceil(z * x)",
            "    return self.fc(torch.ceil(z * x))",
            "    return self.fc((z1 := z * x) + (torch.ceil(z1) - z1).detach())",
        ),
        ("trunc", "x.trunc()", "    return 2 * x.trunc()", "    return 2 * (x + (x.trunc() - x).detach())"),
    ],
)
def test_a_step_function_keeps_its_values_and_gets_a_derivative(operation: str, call: str, before: str, after: str) -> None:
    sheet = Sheet(HEAD + f"def forward(self, x, z=1):\n{before}\n    return z\n")
    p = fix("straight-through", location=sheet.at(call), stage="wiring", operation=operation)
    assert sheet.edited(p) == sheet.text.replace(before, after)


BLOCK = """class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        {}

    def forward(self, x):
        return x + self.scale * x


model = nn.Sequential(Block(2), Block(2))
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('self.register_buffer("scale", torch.zeros(1))', "self.scale = nn.Parameter(torch.zeros(1))"),
        ('self.register_buffer("scale", tensor=torch.zeros(width), persistent=False)', "self.scale = nn.Parameter(torch.zeros(width))"),
        ("self.scale = torch.zeros(width)", "self.scale = nn.Parameter(torch.zeros(width))"),
        ("self.scale = nn.Parameter(torch.zeros(1), requires_grad=False)", "self.scale = nn.Parameter(torch.zeros(1))"),
    ],
)
def test_a_scale_becomes_a_parameter(before: str, after: str) -> None:
    sheet = Sheet(HEAD + BLOCK.format(before))
    for i in range(2):
        sheet.layer(str(i), "Block(2)", i, kind="container", type="Block")
    p = fix("trainable-scale", "0", "1", stage="wiring", factors="0.scale,1.scale")
    assert sheet.edited(p) == sheet.text.replace(before, after)


def test_a_scale_that_is_set_twice_is_left_alone() -> None:
    sheet = Sheet(HEAD + BLOCK.format("self.scale = torch.zeros(1)\n        self.scale = torch.zeros(2)"))
    sheet.layer("0", "Block(2)", kind="container", type="Block")
    assert "several places" in sheet.refused(fix("trainable-scale", "0", stage="wiring", factors="0.scale"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('with torch.autocast("cpu", dtype=torch.float16):', 'with torch.autocast("cpu", dtype=torch.bfloat16):'),
        ('with torch.autocast("cuda"):', 'with torch.autocast("cuda", dtype=torch.bfloat16):'),
        ('with torch.autocast("cuda", torch.half, True):', 'with torch.autocast("cuda", torch.bfloat16, True):'),
        ("with torch.cuda.amp.autocast():", "with torch.cuda.amp.autocast(dtype=torch.bfloat16):"),
    ],
)
def test_autocast_goes_to_bfloat16(before: str, after: str) -> None:
    sheet = Sheet(HEAD + f"def step(model, x):\n    {before}\n        return model(x)\n")
    assert sheet.edited(fix("bfloat16", stage="loss")) == sheet.text.replace(before, after)


def test_the_name_of_a_type_is_changed_where_it_is_defined() -> None:
    sheet = Sheet(HEAD + 'DTYPE = torch.float16\nwith torch.autocast("cuda", dtype=DTYPE):\n    y = 1\n')
    assert sheet.edited(fix("bfloat16", stage="loss")) == sheet.text.replace("torch.float16", "torch.bfloat16")
    sheet = Sheet(HEAD + 'DTYPE = torch.float16\nprint(DTYPE)\nwith torch.autocast("cuda", dtype=DTYPE):\n    y = 1\n')
    assert sheet.edited(fix("bfloat16", stage="loss")) == sheet.text.replace("dtype=DTYPE", "dtype=torch.bfloat16")


def test_autocast_to_another_type_is_left_alone() -> None:
    sheet = Sheet(HEAD + 'with torch.autocast("cpu"), torch.autocast("cuda", enabled=False):\n    y = 1\n')
    assert "no autocast" in sheet.refused(fix("bfloat16", stage="loss"))


NET = """class Net(nn.Module):
    def forward(self, x):
        return {}


class Other(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


model = Net()
"""


def test_the_input_takes_the_place_of_a_tensor_like_it() -> None:
    for before, after in (("self.body(torch.zeros_like(x))", "self.body(x)"), ("torch.randn_like(input=x) + 1", "x + 1")):
        sheet = Sheet(HEAD + NET.format(before)).root("Net()")
        assert sheet.edited(fix("use-input", stage="wiring")) == sheet.text.replace(before, after)
    sheet = Sheet(HEAD + NET.format("torch.zeros_like(x) + torch.ones_like(x)")).root("Net()")
    assert "several places" in sheet.refused(fix("use-input", stage="wiring"))


NORMED = """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(4) for _ in range(2)])
        self.last = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()

    def forward(self, x):
        self.drop.eval()
        for norm in self.norms:
            norm.eval()
            x = norm(x)
        self.last.train(mode=False)
        return self.last(self.drop(x))


model = Net()
"""


def test_every_call_that_puts_these_layers_into_evaluation_mode_follows_the_module() -> None:
    sheet = Sheet(HEAD + NORMED).root("Net()").layer("drop", "nn.Dropout()", kind="other")
    for name, occurrence in (("norms.0", 0), ("norms.1", 0), ("last", 1)):
        sheet.layer(name, "nn.BatchNorm1d(4)", occurrence, kind="norm", type="BatchNorm1d")
    p = fix("training-mode", "norms.0", "norms.1", "last", stage="wiring")
    wanted = sheet.text.replace("norm.eval()", "norm.train(self.training)").replace("train(mode=False)", "train(self.training)")
    assert sheet.edited(p) == wanted


def test_layers_that_no_code_puts_to_sleep_are_not_written() -> None:
    sheet = Sheet(HEAD + NORMED.replace("norm.eval()", "pass")).root("Net()")
    sheet.layer("norms.0", "nn.BatchNorm1d(4)", kind="norm", type="BatchNorm1d")
    assert "not written in your files" in sheet.refused(fix("training-mode", "norms.0", stage="wiring"))
