"""Labels that are shifted once, and adapters whose scale follows the root of their rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradcheck.types.sequence import SequenceFacts, Supervision, TokenStream
from tests import literals
from tests.remedies.editing.sheets import HEAD, Sheet, fix


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sheet(loss: str, ahead: int) -> tuple[Sheet, object]:
    written = Sheet(f"{HEAD}def loss_fn(logits, y):\n    return {loss}\n")
    place = written.at(loss)
    stream = TokenStream("embed", 0, ahead, 1.0, 100, loss_site=place)
    return written.having(sequence=SequenceFacts((stream,))), place


@pytest.mark.parametrize(
    ("ahead", "before", "after"),
    [
        (0, "logits.flatten(0, 1), y.flatten()", "logits[:, :-1].flatten(0, 1), y[:, 1:].flatten()"),
        (0, "logits.view(-1, 9), y.view(-1), ignore_index=0", "logits[:, :-1].reshape(-1, 9), y[:, 1:].reshape(-1), ignore_index=0"),
        (0, "logits.transpose(1, 2), y", "logits[:, :-1].transpose(1, 2), y[:, 1:]"),
        (2, "logits[:, :-1].reshape(-1, 9), y[:, 1:].reshape(-1)", "logits.reshape(-1, 9), y.reshape(-1)"),
    ],
)
def test_labels_are_shifted_once(ahead: int, before: str, after: str) -> None:
    written, place = sheet(f"F.cross_entropy({before})", ahead)
    assert written.edited(fix("shift-labels", location=place)) == written.text.replace(before, after)


def test_labels_of_a_criterion_are_shifted_once() -> None:
    written, place = sheet("criterion(logits.view(-1, 9), y.view(-1))", 0)
    after = written.text.replace("logits.view", "logits[:, :-1].reshape").replace("y.view", "y[:, 1:].reshape")
    assert written.edited(fix("shift-labels", location=place)) == after


@pytest.mark.parametrize(("ignored", "empty"), [("0", 4), ("OTHER", 0)])
def test_a_class_that_is_ignored(ignored: str, empty: int) -> None:
    written = Sheet(f"{HEAD}OTHER = 0\nloss_fn = nn.CrossEntropyLoss(ignore_index={ignored})\nloss_fn(a, y)\n")
    place = written.at("loss_fn(a, y)")
    facts = SequenceFacts(supervision=(Supervision("cross_entropy", 4, empty, 0, finite=False, rows=8, empty_rows=6, site=place),))
    after = written.text.replace(f"ignore_index={ignored}", "")
    assert written.having(sequence=facts).edited(fix("supervise-targets", location=place)) == after


@pytest.mark.parametrize(
    ("ahead", "loss"), [(2, "F.cross_entropy(logits, y)"), (0, "F.cross_entropy(logits[:, :-1], y)"), (0, "F.mse_loss(logits, y)")]
)
def test_a_shift_that_is_not_written_there(ahead: int, loss: str) -> None:
    written, place = sheet(loss, ahead)
    assert f"model.py:{place.line}" in written.refused(fix("shift-labels", location=place))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("y.masked_fill(known, -100)", "y.masked_fill(~known, -100)"),
        ("y.masked_fill_(~known, -100)", "y.masked_fill_(known, -100)"),
        ("torch.where(known == 1, IGNORED, y)", "torch.where(known == 1, y, IGNORED)"),
        ("[IGNORED] * len(y)", "list(y)"),
        ("[-100 if k else t for t, k in zip(y, known)]", "[t if k else -100 for t, k in zip(y, known)]"),
    ],
)
def test_targets_that_are_all_masked_out(before: str, after: str) -> None:
    loss = "def loss_fn(logits, y):\n    return F.cross_entropy(logits, y)\n"
    text = f"{HEAD}IGNORED = -100\ndef targets(y, known):\n    return {before}\n{loss}"
    written = Sheet(text)
    place = written.at("F.cross_entropy(logits, y)")
    facts = SequenceFacts(supervision=(Supervision("cross_entropy", 4, 4, -100, finite=False, site=place),))
    written = written.having(sequence=facts)
    assert written.edited(fix("supervise-targets", location=place)) == text.replace(before, after)


def test_two_places_that_mask_targets() -> None:
    written = Sheet(f"{HEAD}y[known > 0] = -100\ny[:3] = -100\ny[other] = -100\nF.cross_entropy(a, y)\n")
    place = written.at("F.cross_entropy(a, y)")
    facts = SequenceFacts(supervision=(Supervision("cross_entropy", 4, 4, -100, finite=False, site=place),))
    assert "2 places" in written.having(sequence=facts).refused(fix("supervise-targets", location=place))


def test_adapters_are_scaled_by_the_root_of_their_rank() -> None:
    written = Sheet("from peft import LoraConfig\n\nconfig = LoraConfig(r=128, lora_alpha=16)\n")
    assert written.edited(fix("rank-stabilised-scale")) == written.text.replace("=16)", "=16, use_rslora=True)")


def test_adapters_that_are_made_elsewhere() -> None:
    assert "0 calls of LoraConfig" in Sheet("import torch\n").refused(fix("rank-stabilised-scale"))


ATTENTION = "F.scaled_dot_product_attention(q, k, v, attn_mask=MASK)"


def test_attention_without_a_mask_becomes_causal() -> None:
    written = Sheet(f"{HEAD}def attend(q, k, v, pad):\n    return {ATTENTION.replace('MASK', 'None')}\n")
    wanted = fix("causal-attention", location=written.at("F.scaled_dot_product_attention(q, k, v, attn_mask=None)"))
    assert written.edited(wanted) == written.text.replace("attn_mask=None", "attn_mask=None, is_causal=True")
    masked = Sheet(f"{HEAD}def attend(q, k, v, pad):\n    return {ATTENTION.replace('MASK', 'pad')}\n")
    assert "it has a mask" in masked.refused(fix("causal-attention", location=masked.at(ATTENTION.replace("MASK", "pad"))))


MAKER = f"{HEAD}def make(net):\n    found = torch.optim.Adam(net.parameters())\n    return found\nnet = nn.Linear(2, 1)\n"


def test_an_optimizer_that_a_function_makes_is_made_once() -> None:
    written = Sheet(f"{MAKER}for x in data:\n    opt = make(net)\n    step(opt, x)\n")
    wanted = fix("keep-optimizer", location=written.at("torch.optim.Adam(net.parameters())"))
    assert written.edited(wanted) == f"{MAKER}opt = make(net)\nfor x in data:\n    step(opt, x)\n"
    hidden = Sheet(f"{MAKER}def step(x):\n    opt = make(net)\nfor x in data:\n    step(x)\n")
    assert "each call of make() makes it" in hidden.refused(wanted)


WRAPPED = {"step_site": "opt.step()", "backward_site": "scaled.backward(loss(x))", "clear_site": "opt.zero_grad()"}


def test_a_step_that_a_package_wraps_is_the_one_of_the_script() -> None:
    written = Sheet(f"{HEAD}for x in data:\n    scaled.backward(loss(x))\n    opt.zero_grad()\n    opt.step()\n")
    sites = {name: replace(written.at(call), detail="wrapper.py:9:1") for name, call in WRAPPED.items()}
    written.having(loop=literals.loop(lost=40, leftover=0, **sites))
    moved = written.text.replace("    opt.zero_grad()\n", "").replace("    scaled", "    opt.zero_grad()\n    scaled")
    assert written.edited(fix("clear-gradients")) == moved
    assert "not written in your files" in written.refused(fix("scale-loss"))
