"""nn.LSTM and nn.GRU written where nn.RNN is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.remedies.editing.sheets import HEAD, Sheet, fix

BIASES = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")
NET = """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = {call}  # reads
        self.head = nn.Linear(64, 4)


model = Net()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def net(call: str, head: str = HEAD, parameters: tuple[str, ...] = BIASES) -> Sheet:
    sheet = Sheet(head + NET.format(call=call))
    return sheet.layer("rnn", call, kind="recurrent", type="RNN", parameters=parameters).root("Net()")


def made(text: str) -> Any:
    """The recurrent layer that the edited file makes."""
    scope: dict[str, Any] = {}
    exec(compile(text, "model.py", "exec"), scope)
    return scope["model"].rnn


CALLS = [
    ("nn.RNN(8, 64)", "nn.{}(8, 64)"),
    ("torch.nn.RNN(8, 64, batch_first=True)", "torch.nn.{}(8, 64, batch_first=True)"),
    ('nn.RNN(8, 64, nonlinearity="relu", batch_first=True)', "nn.{}(8, 64, batch_first=True)"),
    ('nn.RNN(8, hidden_size=64, nonlinearity="relu")', "nn.{}(8, hidden_size=64)"),
    ('nn.RNN(nonlinearity="relu", input_size=8, hidden_size=64)', "nn.{}(input_size=8, hidden_size=64)"),
    ('nn.RNN(8, 64, 2, "tanh")', "nn.{}(8, 64, 2)"),
    ('nn.RNN(8, 64, 2, "tanh", True, True, 0.1, bidirectional=True)', "nn.{}(8, 64, 2, True, True, 0.1, bidirectional=True)"),
    (
        'nn.RNN(\n            8,\n            64,\n            nonlinearity="relu",  # faster\n            num_layers=2,\n        )',
        "nn.{}(\n            8,\n            64,\n            num_layers=2,\n        )",
    ),
    (
        'nn.RNN(\n            8, 64, 2, "relu",  # of the old net\n            True, batch_first=True\n        )',
        "nn.{}(\n            8, 64, 2,  # of the old net\n            True, batch_first=True\n        )",
    ),
    (
        'nn.RNN(\n            8, 64, 2,  # sizes\n            "relu"\n        )',
        "nn.{}(\n            8, 64, 2,  # sizes\n            \n        )",
    ),
    ('nn.RNN(8, 64, 1, "relu", *(), **{"batch_first": True})', 'nn.{}(8, 64, 1, *(), **{{"batch_first": True}})'),
]


@pytest.mark.parametrize(("before", "after"), CALLS, ids=range(len(CALLS)))
def test_the_call_alone_changes(before: str, after: str) -> None:
    sheet = net(before)
    old, text = made(sheet.text), sheet.edited(fix("gated-recurrence", "rnn", kind="GRU"))
    assert text == sheet.text.replace(before, after.format("GRU"))
    new = made(text)
    options = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    assert type(new) is nn.GRU and {x: getattr(new, x) for x in options} == {x: getattr(old, x) for x in options}


def test_the_forget_gates_of_an_lstm_are_opened_as_the_remedy_of_that_name_does() -> None:
    sheet = net('nn.RNN(8, 64, 2, nonlinearity="relu")')
    text = sheet.edited(fix("gated-recurrence", "rnn", kind="LSTM"))
    written = Sheet(HEAD + NET.format(call="nn.LSTM(8, 64, 2)"), path="other.py")
    written.layer("rnn", "nn.LSTM(8, 64, 2)", kind="recurrent", parameters=BIASES).root("Net()")
    twin = written.edited(fix("forget-bias", "rnn", value=1.0))
    doc = "forget-bias as a sentence.".capitalize()
    assert doc in twin and text == twin.replace(doc, "Set the forget gate's bias of rnn to 1.")
    layer = made(text)
    for name, bias in layer.named_parameters():
        if name.startswith("bias"):
            assert bias[64:128].eq(1.0 if "_ih" in name else 0.0).all() and not bias[:64].eq(0).any()


def test_without_biases_there_is_no_gate_to_open() -> None:
    sheet = net("nn.RNN(8, 64, bias=False)", parameters=BIASES[:2])
    text = sheet.edited(fix("gated-recurrence", "rnn", kind="LSTM"))
    assert text == sheet.text.replace("nn.RNN", "nn.LSTM")


@pytest.mark.parametrize(
    ("imports", "added"),
    [
        ("from torch.nn import RNN, Linear, Module\n", "from torch import nn\n"),
        ("from torch import nn\nfrom torch.nn import RNN, Linear, Module\n", ""),
    ],
)
def test_a_name_that_was_imported_alone_gets_the_import_of_the_new_one(imports: str, added: str) -> None:
    body = NET.format(call="RNN(8, 64)").replace("nn.Module", "Module").replace("nn.Linear", "Linear")
    sheet = Sheet(imports + "\n\n" + body).layer("rnn", "RNN(8, 64)", kind="recurrent", type="RNN").root("Net()")
    text = sheet.edited(fix("gated-recurrence", "rnn", kind="GRU"))
    assert text == added + sheet.text.replace("= RNN(8", "= nn.GRU(8")
    assert type(made(text)) is nn.GRU


def test_an_import_of_the_new_layer_is_used() -> None:
    sheet = net("RNN(8, 64)", HEAD.replace("\n\n\n", "\nfrom torch.nn import GRU, RNN\n\n\n"))
    assert "self.rnn = GRU(8, 64)  # reads" in sheet.edited(fix("gated-recurrence", "rnn", kind="GRU"))


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("nn.RNN(*SIZES)", "may be among the arguments"),
        ("nn.RNN(8, 64, **OPTIONS)", "may be among the arguments"),
        ("KIND(8, 64)", "no nn.RNN of torch is created there"),
        ("nn.GRU(8, 64)", "no nn.RNN of torch is created there"),
        ('nn.RNN(8, 64, 1, ("relu"), True)', "not be valid Python"),
    ],
)
def test_what_cannot_be_written_exactly_is_left(call: str, why: str) -> None:
    assert why in net(call).refused(fix("gated-recurrence", "rnn", kind="LSTM"))


def test_an_expression_that_makes_other_layers_too_is_left() -> None:
    sheet = net("nn.RNN(8, 64)").layer("second", "nn.RNN(8, 64)", kind="recurrent", type="RNN")
    assert "makes second too" in sheet.refused(fix("gated-recurrence", "rnn", kind="LSTM"))
    assert sheet.edited(fix("gated-recurrence", "rnn", "second", kind="GRU")) == sheet.text.replace("nn.RNN", "nn.GRU")
