"""Comments that suppress findings are written where they speak for the expression, and nothing else is changed."""

from __future__ import annotations

import ast

import pytest

from gradcheck.report.add_ignores import add_ignores, commented
from gradcheck.types.location import Location
from gradcheck.workload.comments import ignores
from tests.literals import measurement
from tests.report.reports import finding, report

CASES = {
    "x = f(1)\n": "x = f(1)  # gradcheck: ignore[dead-units]\n",
    "x = f(1)": "x = f(1)  # gradcheck: ignore[dead-units]",
    "x = f(1)  # why\r\n": "x = f(1)  # why  # gradcheck: ignore[dead-units]\r\n",
    "x = f(1)  # gradcheck: ignore[wrong-gradient]\n": "x = f(1)  # gradcheck: ignore[wrong-gradient, dead-units]\n",
    "x = f(1)  # gradcheck: ignore[dead-units]\n": "x = f(1)  # gradcheck: ignore[dead-units]\n",
}


@pytest.mark.parametrize("before", CASES)
def test_a_comment_at_the_end_of_the_line(before):
    after, count, failed = commented(before, [(Location("m.py", 1, 5, 1, 9), "dead-units")])
    assert after == CASES[before] and count == (before != after) and not failed


def test_an_expression_of_several_lines_takes_it_where_a_comment_may_stand():
    text = 'x = f(\n    """a\n    b""" % 1, \\\n    2,\n)\n'
    after, count, _ = commented(text, [(Location("m.py", 2, 5, 3, 9), "dead-units")])
    assert count == 0 and after == text  # within a string, and behind a backslash
    after, count, failed = commented(text, [(Location("m.py", 2, 5, 4, 6), "dead-units")])
    assert count == 1 and not failed and "    2,  # gradcheck: ignore[dead-units]\n" in after
    assert ast.dump(ast.parse(after)) == ast.dump(ast.parse(text))


def test_it_is_written_once_and_silences_the_finding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import torch\nx = f(1)\ny = f(2)\n"
    (tmp_path / "model.py").write_text(text)
    place = Location("model.py", 2, 5, 2, 9)
    found = report(
        finding("ACT002", location=place), finding(line=None), measurements=(measurement(snippets={"model.py": {2: "x = f(1)"}}),)
    )
    count, left = add_ignores([found, found])
    assert count == 1 and [line.partition(":")[0] for line in left] == ["vanishing-gradient"] * 2
    assert (tmp_path / "model.py").read_text() == text.replace("f(1)", "f(1)  # gradcheck: ignore[dead-units]")
    assert [(i.line, i.names) for i in ignores(["model.py"])] == [(2, ("dead-units",))]
    assert add_ignores([found])[0] == 0
    (tmp_path / "model.py").write_text(text.replace("f(1)", "f(3)"))  # the source has changed since
    assert add_ignores([found])[0] == 0
