"""Keys of findings: the same as long as the model is, whatever happens to line numbers, counts and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.judge.consensus import fingerprint, key, layer_pattern, target_name
from gradcheck.types.finding import Finding
from tests.literals import location

ROOT = Path.cwd()


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        (("layers.0.linear1", "layers.1.linear1", "stem"), "layers.*.linear1,stem"),
        (("7",), "*"),
        (("block2.conv1", "block2.3"), "block2.*,block2.conv1"),
        ((), ""),
    ],
)
def test_numbers_of_layers_are_stars(layers, pattern):
    assert layer_pattern(layers) == pattern


def test_a_key_has_no_line():
    faulty = Finding("GRAD001", "vanishing-gradient", "error", "m", ("a.0",), location(3))
    assert key(faulty, "model.py", ROOT) == "vanishing-gradient:model.py:Net.__init__:a.*"
    moved = Finding("GRAD001", "vanishing-gradient", "error", "other", ("a.1", "a.2"), location(99))
    assert key(moved, "model.py", ROOT) == key(faulty, "model.py", ROOT)


def test_paths_are_seen_from_the_folder(tmp_path):
    inside = Finding("A001", "a", "error", "m", (), location(path=str(tmp_path / "src" / "net.py"), scope=""))
    assert key(inside, "x", tmp_path) == "a:src/net.py::"
    assert key(Finding("A001", "a", "error", "m"), f"{tmp_path}/src/net.py:Net", tmp_path) == "a:src/net.py:Net::"
    assert target_name("package.module:Net", tmp_path) == "package.module:Net"


def test_comprehensions_have_no_scope_of_their_own_in_newer_pythons():
    old = Finding("A001", "a", "error", "m", (), location(scope="Net.__init__.<locals>.<listcomp>"))
    new = Finding("A001", "a", "error", "m", (), location(scope="Net.__init__"))
    assert key(old, "x", ROOT) == key(new, "x", ROOT)


def test_fingerprints_differ_by_key_and_number():
    assert len({fingerprint("a"), fingerprint("b"), fingerprint("a", 1)}) == 3
    assert len(fingerprint("\ud800")) == 32
