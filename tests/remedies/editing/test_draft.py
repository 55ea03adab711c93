"""Places follow the edits, and an edit that changes more than it says is refused."""

from __future__ import annotations

import random

import pytest

from gradcheck.remedies.editing.document import parsed
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable, moved, spliced
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.statements import insert_after, insert_before, remove_statement
from tests.remedies.editing.sheets import place

NESTED = "def f(x):\n    if x:\n        return 1\n    return 2\n\n\ny = f(3)\n"


def draft(text: str) -> Draft:
    return Draft(parsed("model.py", text.encode()))


def followed(span: tuple[int, int], edits: list[Edit], length: int) -> tuple[int, int] | None:
    """Where a span goes, by following every character of it; None when an edit takes some of it and something outside."""
    inside = [e for e in edits if e.start < span[1] and e.end > span[0]]
    if any(not (span[0] <= e.start and e.end <= span[1]) for e in inside):
        return None
    before = sum(len(e.text) - (e.end - e.start) for e in edits if e.end <= span[0] and e not in inside and (e.start, e.end) != span)
    grown = sum(len(e.text) - (e.end - e.start) for e in inside)
    assert span[1] <= length
    return span[0] + before, span[1] + before + grown


def test_spans_move_as_their_characters_do() -> None:
    for seed in range(300):
        draw = random.Random(seed)
        text = "abcdefghijklmnopqrstuvwxyz"
        cuts = sorted(draw.sample(range(27), 4))
        edits = [Edit(cuts[0], cuts[1], "X" * draw.randint(0, 5)), Edit(cuts[2], cuts[3], "Y" * draw.randint(0, 5))]
        start, end = sorted(draw.sample(range(27), 2))
        where = moved((start, end), edits)
        assert where == followed((start, end), edits, 26)
        if where is not None and not any(e.start < end and e.end > start for e in edits):
            assert spliced(text, edits)[where[0] : where[1]] == text[start:end]


def test_a_place_is_found_after_edits_around_it() -> None:
    one = draft("a = [nn.Linear(2, 2), 'größe', nn.Linear(3, 3)]\n")
    target = place("model.py", one.text, "nn.Linear(3, 3)")
    first = one.at(place("model.py", one.text, "nn.Linear(2, 2)"))
    one.replace(first, "nn.Identity()")
    spelled(one, "torch.nn.ReLU")
    assert one.source(one.at(target)) == "nn.Linear(3, 3)"


def test_a_node_is_found_after_edits_around_it_and_said_to_be_gone() -> None:
    d = draft(NESTED)
    condition, last = d.tree.body[0].body[0].test, d.tree.body[1]
    d.edit([Edit(0, 0, "import torch\n\n\n")])
    d.edit([Edit(d.text.index("f(3)"), d.text.index("f(3)") + 1, "f(2 or f)")])
    assert d.source(condition) == "x" and d.source(last) == "y = f(2 or f)(3)"
    assert d.source(d.parent(condition)) == "if x:\n        return 1"
    d.edit([Edit(d.text.index("if x:"), d.text.index("    return 2"), "")])
    with pytest.raises(Unwritable, match="another change took this place"):
        d.span(condition)
    assert d.source(last) == "y = f(2 or f)(3)"


def test_a_place_that_is_gone_is_said_to_be() -> None:
    one = draft("a = [f(1), g(2)]\n")
    target = place("model.py", one.text, "f(1)")
    start, end = one.span(one.tree.body[0])
    one.edit([Edit(start, end, "a = []")])
    with pytest.raises(Unwritable, match="another remedy"):
        one.at(target)


@pytest.mark.parametrize(
    "edit",
    [
        Edit(NESTED.index("    return 2"), NESTED.index("return 2"), "        "),  # moves a statement into the `if`
        Edit(NESTED.index("y = f"), NESTED.index("y = f"), "if y:\n  "),  # takes the last statement into a block
        Edit(NESTED.index("def"), NESTED.index("def"), "'''"),  # opens a string
        Edit(NESTED.index("return 2"), NESTED.index("return 2"), "# "),  # hides a statement in a comment
    ],
)
def test_an_edit_that_changes_more_is_refused(edit: Edit) -> None:
    one = draft(NESTED)
    with pytest.raises(Unwritable):
        one.edit([edit])
    assert one.text == NESTED


def test_edits_that_overlap_are_refused() -> None:
    one = draft(NESTED)
    with pytest.raises(Unwritable, match="overlap"):
        one.edit([Edit(0, 5, "x"), Edit(3, 8, "y")])


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a = 1\nb = 2\n", "a = 1\nnew()\nb = 2\n"),
        ("a = 1; b = 2; c = 3\n", "a = 1\nnew()\nb = 2\nc = 3\n"),
        ("if a: b = 2\n", "if a:\n    new()\n    b = 2\n"),
        ("if a:\n\tb = 2\n", "if a:\n\tnew()\n\tb = 2\n"),
        ("try:\n  pass\nfinally:\n  b = 2  # last", "try:\n  pass\nfinally:\n  new()\n  b = 2  # last"),
        ("for b in (1, 2): b = 2;\n", "for b in (1, 2):\n    new()\n    b = 2\n"),
        ("@d\ndef b(): return 2\n", None),
    ],
)
def test_a_statement_is_put_in_front(text: str, after: str | None) -> None:
    one = draft(text)
    if after is None:
        insert_before(one, one.tree.body[0], "new()")
        assert one.text == "new()\n" + text
    else:
        insert_before(one, one.at(place("model.py", text, "2", 1 if "(1, 2)" in text else 0)), "new()")
        assert one.text == after


def test_a_statement_is_put_behind_the_last_line_without_a_newline() -> None:
    one = draft("def f():\r\n  return 1")
    insert_after(one, one.at(place("model.py", one.text, "1")), "new()")
    assert one.text == "def f():\r\n  return 1\r\n  new()"


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a = 1\nb = 2  # two\nc = 3\n", "a = 1\nc = 3\n"),
        ("a = 1; b = 2; c = 3\n", "a = 1; c = 3\n"),
        ("a = 1; b = 2\n", "a = 1\n"),
        ("if a:\n    b = 2\n", "if a:\n    pass\n"),
    ],
)
def test_a_statement_is_taken_away(text: str, after: str) -> None:
    one = draft(text)
    from gradcheck.remedies.editing.nodes import statement_of

    remove_statement(one, statement_of(one, one.at(place("model.py", text, "2"))))
    assert one.text == after


@pytest.mark.parametrize(
    ("text", "name", "spelling", "added"),
    [
        ("import torch\n", "torch.nn.ReLU", "torch.nn.ReLU", ""),
        ("import torch.nn as N\n", "torch.nn.init.zeros_", "N.init.zeros_", ""),
        ("from torch import nn\n", "torch.nn.functional.relu", "nn.functional.relu", ""),
        ("from torch.nn import Linear\n", "torch.nn.Linear", "Linear", ""),
        ("from torch.nn import functional as f\n", "torch.nn.functional.relu", "f.relu", ""),
        ('"""A model."""\nx = 1\n', "torch.nn.ReLU", "nn.ReLU", "from torch import nn"),
        ("#!python\nx = 1\n", "torch.no_grad", "torch.no_grad", "import torch"),
        ("from __future__ import annotations\nx = 1\n", "torch.optim.AdamW", "optim.AdamW", "from torch import optim"),
        ("from torch import nn\nx = 1\n", "torch.no_grad", "torch.no_grad", "import torch"),
        ("import math\n\nF = 3\n", "torch.nn.functional.relu", "torch.nn.functional.relu", "import torch"),
    ],
)
def test_names_of_torch_are_spelled_as_the_file_does(text: str, name: str, spelling: str, added: str) -> None:
    one = draft(text)
    assert spelled(one, name) == spelling
    assert [line for line in one.text.splitlines() if line and line not in text.splitlines()] == ([added] if added else [])
    compile(one.text, "model.py", "exec")
