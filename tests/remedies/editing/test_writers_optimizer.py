"""Another class of optimizer in place of SGD: a file before and after, and what it is left alone in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import literals
from tests.remedies.editing.sheets import HEAD, Sheet, fix

PLAIN, DECAYED = (fix("adaptive-optimizer", lr=3e-4, weight_decay=0.0), fix("adaptive-optimizer", lr=1e-3, weight_decay=0.01))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def created(call: str, head: str = HEAD) -> Sheet:
    return Sheet(f"{head}model = nn.Linear(2, 2)\noptimizer = {call}\n").optimizer(call, "SGD", lr=0.1)


def edited(call: str, *what: object, head: str = HEAD) -> str:
    text = created(call, head).edited(*what)
    return text[text.index("optimizer = ") + len("optimizer = ") : -1]


def test_name_and_rate_are_changed_and_what_only_sgd_has_goes() -> None:
    assert edited("torch.optim.SGD(model.parameters(), lr=0.1)", PLAIN) == "torch.optim.Adam(model.parameters(), lr=3e-4)"
    assert (
        edited("torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, foreach=True)", PLAIN)
        == "torch.optim.Adam(model.parameters(), 3e-4, foreach=True)"
    )


def test_weight_decay_makes_it_adamw_and_is_lowered_only() -> None:
    whole = "torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay="
    assert edited("torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3, momentum=0.9)", DECAYED) == f"{whole}0.01)"
    small = fix("adaptive-optimizer", lr=1e-3, weight_decay=1e-4)
    assert edited("torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)", small) == f"{whole}1e-4)"


def test_a_group_that_has_the_only_decay_keeps_it_for_itself() -> None:
    call = 'torch.optim.SGD([{"params": model.weight, "weight_decay": 0.3}, {"params": model.bias, "lr": 0.2}], lr=0.1)'
    assert edited(call, DECAYED) == (
        'torch.optim.AdamW([{"params": model.weight, "weight_decay": 0.01}, {"params": model.bias, "lr": 0.002}], '
        "lr=0.001, weight_decay=0.0)"
    )


def test_a_name_that_was_imported_alone_is_followed_by_an_import() -> None:
    head = "from torch import nn\nfrom torch.optim import SGD\n"
    sheet = created("SGD(model.parameters(), lr=0.1)", head)
    text = sheet.edited(PLAIN)
    assert "Adam(model.parameters(), lr=3e-4)" in text and "import" in text
    names: dict[str, object] = {}
    exec(text, names)
    assert type(names["optimizer"]).__name__ == "Adam"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("torch.optim.SGD(model.parameters(), 0.1, 0.9)", "not every setting"),
        ('torch.optim.SGD(model.parameters(), **{"lr": 0.1})', "not every setting"),
        ('torch.optim.SGD([{"params": model.weight, "momentum": 0.9}], lr=0.1)', "only SGD has"),
        ('getattr(torch.optim, "SGD")(model.parameters(), lr=0.1)', "not created as SGD"),
    ],
)
def test_what_it_cannot_tell_is_left(call: str, why: str) -> None:
    assert why in created(call).refused(PLAIN)


def test_a_cyclic_schedule_is_left() -> None:
    call = "torch.optim.SGD(model.parameters(), lr=0.1)"
    text = f"{HEAD}model = nn.Linear(2, 2)\noptimizer = {call}\ncycle = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 1.0)\n"
    assert "cyclic schedule" in Sheet(text).optimizer(call, "SGD").refused(PLAIN)


def test_an_assumed_optimizer_is_left() -> None:
    sheet = created("torch.optim.SGD(model.parameters(), lr=0.1)").having(optimizer=literals.optimizer("SGD", given=False))
    assert "assumed" in sheet.refused(PLAIN)


def test_an_update_by_hand_gets_no_setting() -> None:
    sheet = created("w.data.add_(w.grad, alpha=-0.1)").having(loop=literals.loop(by_hand=True))
    assert "updated by hand" in sheet.refused(fix("lower-learning-rate", lr=0.01))
