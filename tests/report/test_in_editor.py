"""Findings in a text that has changed since they were saved, and patches as changes of lines."""

from __future__ import annotations

import difflib

import pytest

from gradcheck.report.in_editor import applies, changes, placed
from gradcheck.types.location import Location
from tests.literals import measurement
from tests.report.reports import finding, report

TEXT = ["import torch", "def f(x):", "    y = torch.sign(x)  # now", "    return y"]
PLACE = Location("model.py", 3, 9, 3, 22)


def found(lines):
    f = finding(line=None, location=PLACE)
    saved = {"model.py": dict(enumerate(TEXT, 1))}
    return placed(report(f, measurements=(measurement(snippets=saved),)), f, lines)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (TEXT, 3),
        ([*TEXT[:2], "    y = torch.sign(x) + 1", "    return y"], 3),  # the rest of the line is another
        (["", "", *TEXT], 5),
        ([*TEXT[:2], "    if x:", "        y = torch.sign(x)  # now", "    return y"], 4),
        ([*TEXT[:2], "    y = torch.tanh(x)  # now", "    return y"], None),
        ([*TEXT[:2], "    y = torch.sign(x)  # gradcheck: ignore[vanishing-gradient]", "    return y"], None),
        ([*TEXT[:2], "    y = torch.sign(x)  # gradcheck: ignore[dead-units]", "    return y"], 3),
        ([], None),
    ],
)
def test_a_finding_is_where_its_expression_is(lines, line):
    place = found(lines)
    assert (place and place.line) == line
    if place is not None:
        assert lines[place.line - 1][place.column - 1 : place.end_column - 1] == "torch.sign(x)"


AFTER = [TEXT[1:], [*TEXT[:2], "new", *TEXT[2:]], [*TEXT, "end"], ["first", *TEXT[:3], "last"], ["a", *TEXT, "b"]]


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("context", [0, 3])
def test_a_patch_as_changes_gives_the_new_text(after, context):
    diff = "\n".join(difflib.unified_diff(TEXT, after, "a/model.py", "b/model.py", lineterm="", n=context))
    lines = list(TEXT)
    for change in sorted(changes(diff), key=lambda c: -c.start):
        assert change.path == "model.py" and applies(change, TEXT)
        lines[change.start - 1 : change.start - 1 + len(change.old)] = change.new
    assert lines == after
