"""Edits over generated layouts: the bytes outside are untouched, the file means what was meant, and a second run changes nothing."""

from __future__ import annotations

import ast
import difflib
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.types.fix import Fix
from tests import literals
from tests.remedies.editing.layouts import LINEAR, LOOPS, MODELS, SIGMOID, Layout, layouts
from tests.remedies.editing.sheets import Sheet, fix

SEEDS = range(3)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sheet_of(layout: Layout, linear: str = LINEAR, activation: str = SIGMOID) -> Sheet:
    """With the names that torch gives to the layers of this file."""
    sheet = Sheet(layout.text, data=layout.data)
    model = run()["model"]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            sheet.layer(name, linear)
        elif isinstance(module, (nn.Sigmoid, nn.ReLU)):
            sheet.layer(name, activation, kind="activation", function="sigmoid")
        elif name == "":
            sheet.root(root_of(layout.text), type(module).__name__)
    return sheet


def root_of(text: str) -> str:
    """The expression that makes the model: the last Sequential or Net that is called."""
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("nn.Sequential", "Net")]
    made = next((c for c in calls if c.args and isinstance(c.args[0], ast.Call) and ast.unparse(c.args[0].func) == "block"), calls[-1])
    return ast.get_source_segment(text, made) or ""


def run() -> dict[str, Any]:
    return runpy.run_path("model.py")


def names_of(sheet: Sheet, type: str) -> list[str]:
    return [x.name for x in sheet.measurement.layers if x.kind == type]


def written(sheet: Sheet, layout: Layout, p: Fix) -> str:
    """Writes the edited file, and checks what holds for every edit."""
    before = Path("model.py").read_bytes()
    plan = sheet.plan(p)
    assert not plan.unwritten, plan.unwritten[0][1]
    plan.write()
    after = Path("model.py").read_bytes()
    assert after.startswith(b"\xef\xbb\xbf") == layout.bom
    text = after.decode("utf-8-sig" if layout.bom else layout.encoding)
    newline = "\r\n" if "\r\n" in layout.text else "\n"
    assert ("\r\n" in text) == (newline == "\r\n") and text.count("\n") == text.count(newline)
    kept = sum(size for _, _, size in difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks())
    assert kept > len(before) - 60, "most of the file was replaced"
    return text


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_expression_is_replaced_byte_by_byte(name: str, seed: int) -> None:
    layout = layouts(seed, MODELS[name])
    sheet = sheet_of(layout)
    p = fix("replace-activation", *names_of(sheet, "activation"), old="sigmoid", new="relu")
    text = written(sheet, layout, p)
    assert Path("model.py").read_bytes() == layout.stored(layout.text.replace(SIGMOID, "nn.ReLU()"))
    again = sheet_of(Layout(text, layout.encoding, layout.bom), activation="nn.ReLU()")
    assert again.plan(p).drafts == ()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_argument_is_added_byte_by_byte(name: str, seed: int) -> None:
    layout = layouts(seed, MODELS[name])
    sheet = sheet_of(layout)
    p = fix("remove-bias", *names_of(sheet, "linear"))
    text = written(sheet, layout, p)
    assert Path("model.py").read_bytes() == layout.stored(layout.text.replace(LINEAR, "nn.Linear(8, 8, bias=False)"))
    again = sheet_of(Layout(text, layout.encoding, layout.bom), linear="nn.Linear(8, 8, bias=False)")
    assert again.plan(p).drafts == ()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_weights_are_drawn_anew_however_the_layers_are_made(name: str, seed: int) -> None:
    layout = layouts(seed, MODELS[name])
    sheet = sheet_of(layout)
    p = fix("orthogonal-init", *names_of(sheet, "linear"), gain=3.0)
    text = written(sheet, layout, p)
    for module in run()["model"].modules():
        if isinstance(module, nn.Linear):
            torch.testing.assert_close(module.weight @ module.weight.T, 9 * torch.eye(8))
            assert module.bias.count_nonzero() == 0
    again = sheet_of(Layout(text, layout.encoding, layout.bom))
    assert again.plan(p).drafts == (), again.plan(p).diff


@pytest.mark.parametrize("name", [name for name in MODELS if name != "comprehension"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_normalization_is_inserted_however_the_layers_are_made(name: str, seed: int) -> None:
    layout = layouts(seed, MODELS[name])
    sheet = sheet_of(layout)
    written(sheet, layout, fix("insert-normalization", *names_of(sheet, "linear"), kind="LayerNorm"))
    model = run()["model"]
    seen: list[str] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    model(torch.randn(4, 8))
    assert seen == ["Linear", "LayerNorm", "Sigmoid"] * len(names_of(sheet, "linear"))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_clipping_is_inserted_in_front_of_the_step(name: str, seed: int) -> None:
    head = "model = nn.Linear(8, 8)\noptimizer = torch.optim.SGD(model.parameters(), lr=1.0)\ndata = [torch.ones(2, 8)] * 2\n"
    layout = layouts(seed, head + LOOPS[name])
    sheet = Sheet(layout.text, data=layout.data).optimizer("torch.optim.SGD(model.parameters(), lr=1.0)", "SGD")
    sheet.having(loop=literals.loop(step_site=sheet.at("optimizer.step()")))
    written(sheet, layout, fix("clip-gradient-norm", max_norm=0.01))
    assert Path("model.py").read_text(encoding="utf-8-sig" if layout.bom else layout.encoding).count("clip_grad_norm_(") == 1
    model = run()["model"]
    assert model.weight.grad.norm() < 0.0101


def test_a_comprehension_over_a_tuple_gets_a_further_item() -> None:
    sheet = sheet_of(layouts(0, MODELS["comprehension"]))
    assert "(nn.Linear(8, 8), nn.LayerNorm(8), nn.Sigmoid())" in sheet.edited(
        fix("insert-normalization", *names_of(sheet, "linear"), kind="LayerNorm")
    )
