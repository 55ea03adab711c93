"""GitHub's line hash, against the values that github/codeql-action publishes with its own implementation."""

from __future__ import annotations

import pytest

from gradcheck.report.sarif import line_hash

MIXED_ENDS = " hello; \t{0}world!!!{0}{0}{0}  \t\tGreetings{0} End{0}"
WITH_END = ["e9496ae3ebfced30:1", "fb7c023a8b9ccb3f:1", "ce8ba1a563dcdaca:1", "e20e36e16fcb0cc8:1", "b3edc88f2938467e:1"]
WITH_END += ["c8e28b0b4002a3a0:1", "c129715d7a2bc9a3:1"]

VECTORS = {
    "": ["c129715d7a2bc9a3:1"],
    " a\nb\n  \t\tc\n d": ["271789c17abda88f:1", "54703d4cd895b18:1", "180aee12dab6264:1", "a23a3dc5e078b07b:1"],
    MIXED_ENDS.format("\n"): WITH_END,
    MIXED_ENDS.format("\r"): WITH_END,
    MIXED_ENDS.format("\r\n"): WITH_END,
    "Lorem ipsum dolor sit amet.\n" * 10: [
        *(f"a7f2ff13bc495cf2:{n}" for n in range(1, 7)),
        "a7f2ff1481e87703:1",
        "a9cf91f7bbf1862b:1",
        "55ec222b86bcae53:1",
        "cc97dc7b1d7d8f7b:1",
        "c129715d7a2bc9a3:1",
    ],
}


@pytest.mark.parametrize("text", VECTORS)
def test_published_values(text):
    assert [line_hash(text, n) for n in range(1, len(VECTORS[text]) + 1)] == VECTORS[text]


def test_a_line_beyond_the_end_has_none():
    assert line_hash("a\n", 3) is None and line_hash("a\n", 0) is None


def test_lines_above_change_nothing_and_what_stands_below_does():
    assert line_hash("x\nlayer\nend", 2) == line_hash("y\ny\nlayer\nend", 3) != line_hash("x\nlayer\nother", 2)
