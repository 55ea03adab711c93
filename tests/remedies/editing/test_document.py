"""Files are read and written back byte by byte; what is no Python is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.remedies.editing.document import SourceError, lines_of, parsed, read

FILES = {
    "plain": b"x = 1\ny = 2\n",
    "no newline at the end": b"x = 1\ny = 2",
    "CRLF": b"x = 1\r\ny = 2\r\n",
    "byte-order mark": b"\xef\xbb\xbfx = 'gr\xc3\xb6\xc3\x9fe'\n",
    "latin-1": "# -*- coding: latin-1 -*-\nx = 'größe'\n".encode("latin-1"),
    "mixed newlines": b"x = 1\r\ny = 2\nz = 3\r",
    "form feed": b"x = 1\n\x0c\ny = 'a\x0bb'\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_written_back_byte_by_byte(name: str) -> None:
    document = parsed("a.py", FILES[name])
    assert document.encoded(document.text) == FILES[name]
    assert "".join(document.lines) == document.text
    assert document.diff(document.text) == ""


def test_lines_are_those_of_python() -> None:
    assert lines_of("a\x0cb\r\nc\rd\ne") == ["a\x0cb\r\n", "c\r", "d\n", "e"]


def test_a_diff_can_be_applied() -> None:
    document = parsed("models/net.py", b"a = 1\nb = 2\nc = 3")
    diff = document.diff("a = 1\nb = 20\nc = 3")
    assert diff.splitlines() == [
        "--- a/models/net.py",
        "+++ b/models/net.py",
        "@@ -1,3 +1,3 @@",
        " a = 1",
        "-b = 2",
        "+b = 20",
        " c = 3",
        "\\ No newline at end of file",
    ]


@pytest.mark.parametrize("data", [b"def f(:\n", b"\xff\xfe\x00", b"# coding: klingon\n", b"x = '\xe9'\n"])
def test_what_is_no_python_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match=r"a\.py is not readable Python"):
        parsed("a.py", data)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read(tmp_path / "absent.py")


def test_a_character_that_the_encoding_lacks_is_refused() -> None:
    document = parsed("a.py", FILES["latin-1"])
    with pytest.raises(SourceError) as caught:
        document.encoded(document.text + "# \N{GREEK SMALL LETTER ALPHA}")
    assert "UTF-8" in caught.value.hint
