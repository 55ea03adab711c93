"""The hash by which GitHub code scanning recognises a line after the file has changed elsewhere."""

from __future__ import annotations

from collections import Counter

WINDOW = 100  # UTF-16 units that are hashed for a line, from its first kept one
FACTOR = 37
END = 65535  # marks the end of the file
WRAP = (1 << 64) - 1


def line_hash(text: str, line: int) -> str | None:
    """`primaryLocationLineHash` of a line, counted from 1: `hash:n` for the n-th line with that hash. None beyond the end.

    The algorithm is that of github/codeql-action (src/fingerprints.ts): blanks and tabs are dropped, line ends are
    LF, and each line is hashed over the WINDOW units that begin with it, by h = 37 h + unit modulo 2^64. A line that has
    no unit of its own, as after the last line end, has no hash.
    """
    units = _units(text)
    starts = [0] + [i + 1 for i, unit in enumerate(units) if unit == 10]
    if not 1 <= line <= len(starts):
        return None
    padded = [*units, END, *([0] * WINDOW)]
    hashes = [_hash(padded[start : start + WINDOW]) for start in starts[:line]]
    return f"{hashes[-1]:x}:{Counter(hashes)[hashes[-1]]}"


def _units(text: str) -> list[int]:
    """UTF-16 code units without blanks and tabs, line ends as LF."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace(" ", "").replace("\t", "")
    raw = plain.encode("utf-16-le", "surrogatepass")
    return [raw[i] | raw[i + 1] << 8 for i in range(0, len(raw), 2)]


def _hash(units: list[int]) -> int:
    value = 0
    for unit in units:
        value = (value * FACTOR + unit) & WRAP
    return value
