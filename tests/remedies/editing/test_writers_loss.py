"""Loss, data, regularisation: a file before and after, as a careful colleague would have changed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradcheck.remedies.writers import WRITERS
from gradcheck.types.checks import Difference, Dropout, LossOperation
from gradcheck.types.data import InputFacts
from gradcheck.types.losses import BroadcastMix
from gradcheck.types.training import Regularization
from tests import literals
from tests.remedies.editing.examples import changed, stack
from tests.remedies.editing.sheets import HEAD, Sheet, fix


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -------------------------------------------------------------------------------------- loss


def test_the_loss_is_replaced_as_module_and_as_function() -> None:
    p = fix("replace-loss", old="nll_loss", new="cross_entropy", function="addmm")
    for before, after in (("loss_fn = nn.NLLLoss()", "loss_fn = nn.CrossEntropyLoss()"), ("F.nll_loss(z, y)", "F.cross_entropy(z, y)")):
        sheet = Sheet(HEAD + before + "\n").having(losses=(literals.loss_call("nll_loss", site=None),))
        assert sheet.edited(p) == sheet.text.replace(before, after)


def test_softmax_becomes_log_softmax_with_its_loss() -> None:
    text = HEAD + "model = nn.Sequential(nn.Linear(2, 4), nn.Softmax(dim=1))\nloss_fn = nn.CrossEntropyLoss()\n"
    sheet = Sheet(text)
    sheet.having(losses=(literals.loss_call("cross_entropy", producer="softmax", producer_site=sheet.at("nn.Softmax(dim=1)"), site=None),))
    edited = sheet.edited(fix("replace-loss", old="cross_entropy", new="nll_loss", function="softmax"))
    assert edited == text.replace("nn.Softmax", "nn.LogSoftmax").replace("CrossEntropyLoss", "NLLLoss")


def test_shapes_are_matched_in_the_call_or_by_a_function_of_the_same_name() -> None:
    p = fix("match-shapes", operand="output", operation="squeeze", dim=1)
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
    p = fix("flip-sign", function="cross_entropy", whole=True)
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
    assert sheet.edited(fix(treatment, location=sheet.at(before))) == sheet.text.replace(before, after)


def test_an_import_that_is_added_does_not_shift_what_is_changed() -> None:
    before = "z.softmax(1).log()"
    sheet = Sheet(f"from torch.optim import SGD\n\n\ndef f(z, y):\n    return {before}\n")
    sheet.having(loss_operations=(LossOperation("log", "softmax", sheet.at(before)),))
    added = "from torch.nn import functional as F\nfrom torch.optim import SGD\n"
    assert sheet.edited(fix("stable-loss", location=sheet.at(before))) == f"{added}\n\ndef f(z, y):\n    return F.log_softmax(z, 1)\n"


# ---------------------------------------------------------------------- data, regularisation


def test_inputs_are_standardised_where_the_dataset_is_made() -> None:
    text = HEAD + "train_loader = DataLoader(TensorDataset(raw, y), shuffle=True)\nval_loader = DataLoader(TensorDataset(raw_val, y_val))\n"
    sheet = Sheet(text)
    assert changed(sheet, sheet.edited(fix("standardize-input", axis="feature", input="0"))) == [
        "mean, std = raw.mean(dim=0), raw.std(dim=0)",
        "raw = (raw - mean) / std",
        "raw_val = (raw_val - mean) / std",
    ]


def test_an_expression_gets_a_name_and_targets_their_inverse() -> None:
    sheet = Sheet(HEAD + "train_loader = DataLoader(TensorDataset(a + b, y))\n")
    assert changed(sheet, sheet.edited(fix("standardize-input", axis="all", mean=3.0, std=2.0))) == [
        "inputs = a + b",
        "inputs = (inputs - 3.0) / 2.0",
        "train_loader = DataLoader(TensorDataset(inputs, y))",
    ]
    assert changed(sheet, sheet.edited(fix("standardize-target", mean=150.0, std=75.0))) == [
        "y = (y - 150.0) / 75.0  # a prediction is output * 75.0 + 150.0"
    ]


@pytest.mark.parametrize(
    ("axis", "shape", "settings", "moments"),
    [
        ("feature", (4, 3), {}, ((1.0, 2.0), (-300.0, 40.0), (5.0, 0.0))),
        ("channel", (4, 3, 2, 2), {}, ((1.0, 2.0), (-300.0, 40.0), (5.0, 0.0))),
        ("all", (4, 3, 7), {"mean": 8.0, "std": 2.5}, ()),
    ],
)
def test_inputs_from_elsewhere_are_standardised_by_the_model(
    axis: str, shape: tuple[int, ...], settings: dict[str, float], moments: tuple[tuple[float, float], ...]
) -> None:
    sheet = Sheet(HEAD + "def build():\n    return nn.Identity()\n").root("nn.Identity()", "Identity")
    sheet.having(data=literals.data(inputs=(literals.input_facts("0", shape=shape, moments=moments),)))
    names: dict[str, Any] = {}
    exec(sheet.edited(fix("standardize-input", axis=axis, **settings)), names)
    x = torch.randn(shape)
    mean, std = (torch.tensor(m).view(-1, *(1 for _ in shape[2:])) for m in ([1.0, -300.0, 5.0], [2.0, 40.0, 1.0]))
    torch.testing.assert_close(names["build"]()(x), (x - 8.0) / 2.5 if axis == "all" else (x - mean) / std)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ((literals.input_facts("0"),), "too many features"),
        ((literals.input_facts("input_ids", moments=((0.0, 1.0),)),), "more than one tensor"),
        ((literals.input_facts("0"), literals.input_facts("1")), "more than one tensor"),
    ],
)
def test_inputs_from_elsewhere_are_left_where_their_moments_do_not_fit(inputs: tuple[InputFacts, ...], why: str) -> None:
    sheet = Sheet(HEAD + "model = nn.Identity()\n").root("nn.Identity()", "Identity").having(data=literals.data(inputs=inputs))
    assert why in sheet.refused(fix("standardize-input", axis="feature"))


def test_the_training_loader_is_shuffled() -> None:
    sheet = Sheet(HEAD + "val_loader = DataLoader(b)\ntrain_loader = DataLoader(a, batch_size=8, shuffle=False)\n")
    assert sheet.edited(fix("shuffle-data")) == sheet.text.replace("shuffle=False", "shuffle=True")


def test_the_rate_of_dropouts_is_changed_where_it_is_defined() -> None:
    sheet = Sheet(HEAD + "RATE = 0.97\n\n\ndef f(x, training):\n    return F.dropout(F.dropout(x, RATE, training), RATE, training)\n")
    sites = (sheet.at("F.dropout(x, RATE, training)"), sheet.at("F.dropout(F.dropout(x, RATE, training), RATE, training)"))
    sheet.having(regularization=Regularization(dropouts=tuple(Dropout(":dropout", 0.97, site) for site in sites)))
    assert sheet.edited(fix("lower-dropout", ":dropout", rate=0.2)) == sheet.text.replace("0.97", "0.2")


def test_labels_are_smoothed() -> None:
    sheet = Sheet(HEAD + "loss_fn = nn.CrossEntropyLoss()\n").having(losses=(literals.loss_call("cross_entropy", site=None),))
    assert sheet.edited(fix("label-smoothing", smoothing=0.1)) == sheet.text.replace("Loss()", "Loss(label_smoothing=0.1)")


def test_a_proximal_step_is_registered_with_the_optimizer() -> None:
    sheet = stack()
    edited = sheet.edited(fix("l1", l1=1e-4))
    assert "    optimizer.register_step_post_hook(shrink_weights)\n    return optimizer\n" in edited
    assert "p.copy_(p.sign() * (p.abs() - rate * 1e-4).clamp_min(0))" in edited


def test_writers_have_the_names_of_treatments() -> None:
    from gradcheck.remedies.catalogue import CATALOGUE

    assert set(WRITERS) <= set(CATALOGUE)
