"""Suppression comments and source lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradcheck.types.location import Location
from gradcheck.workload.comments import ignores, snippets

SOURCE = """x = 1  # gradcheck: ignore[dead-units]
# gradcheck: ignore[ACT001, ACT002] because
y = make(
    1,
    2,
)
text = "# gradcheck: ignore[inside-a-string]"
z = make(
    3,  # gradcheck: ignore[vanishing-gradient]
)
# gradcheck: something else
"""


def test_a_comment_behind_code_speaks_for_its_line(write: Callable[..., Path]) -> None:
    write(SOURCE)
    found = [(i.line, i.names) for i in ignores(["model.py"]) if i.comment_line == i.line]
    assert found == [(1, ("dead-units",)), (9, ("vanishing-gradient",))]


def test_a_comment_on_its_own_line_speaks_for_the_whole_statement_below(write: Callable[..., Path]) -> None:
    write(SOURCE)
    own = [i for i in ignores([Path("model.py").resolve()]) if i.comment_line == 2]
    assert [i.line for i in own] == [3, 4, 5, 6]
    assert all(i.names == ("ACT001", "ACT002") and i.path == "model.py" for i in own)


def test_missing_and_broken_files_have_what_can_be_read(write: Callable[..., Path]) -> None:
    write("a = 1  # gradcheck: ignore[x]\nb = (")
    assert [i.names for i in ignores(["model.py", "absent.py"])] == [("x",)]


def test_snippets_hold_the_lines_around_each_place(write: Callable[..., Path]) -> None:
    write(SOURCE)
    shown = snippets([Location("model.py", 1), Location("model.py", 8, 1, 10, 2), Location("absent.py", 1)], context=1)
    assert sorted(shown["model.py"]) == [1, 2, 7, 8, 9, 10, 11]
    assert shown["model.py"][8] == "z = make("
    assert list(shown) == ["model.py"]
