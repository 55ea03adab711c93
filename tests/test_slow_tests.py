"""The list of tests that only `--slow` runs names tests that exist."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_line_names_a_test() -> None:
    for line in (ROOT / "tests" / "slow_tests.txt").read_text().splitlines():
        path, name = line.split("::", 1)
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(), line
