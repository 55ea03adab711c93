"""A mirror of the user's folders: what is read is the user's, what is written, moved and removed stays in the mirror."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gradcheck.capture import mirror as module
from gradcheck.capture.mirror import Mirror
from gradcheck.errors import TargetError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with data beside its folder, large files, and results of earlier runs."""
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "table.csv").write_text("1,2")
    root = tmp_path / "project"
    (root / "package").mkdir(parents=True)
    (root / "package" / "train.py").write_text("x = 1\n")
    (root / "runs" / "first").mkdir(parents=True)
    (root / "runs" / "first" / "log.txt").write_text("old")
    (root / "weights.bin").write_bytes(b"w" * 100)
    return root


def made(project: Path, home: Path, edits: dict[Path, bytes] | None = None) -> Mirror:
    home.mkdir()
    return Mirror(home, (project / "package", project), edits or {})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_lies_outward_is_found_as_from_the_original(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = made(project, tmp_path / "home")
    monkeypatch.chdir(mirror.path(project))
    assert Path("../data/raw/table.csv").read_text() == "1,2"
    script = mirror.path(project / "package" / "train.py")
    assert (script.resolve().parent.parent.parent / "data" / "raw" / "table.csv").read_text() == "1,2"
    assert [p.name for p in Path().rglob("*.txt")] == ["log.txt"]  # walking does not follow links


def change_log() -> None:
    with open("runs/first/log.txt", "a") as file:
        file.write(" and new")
    assert Path("runs/first/log.txt").read_text() == "old and new"


def make_beside() -> None:
    os.makedirs("../data/cache")
    Path("../data/cache/x").write_text("x")
    assert sorted(os.listdir("../data")) == ["cache", "raw"]


def replace_large() -> None:
    Path("new.bin").write_bytes(b"n")
    os.replace("new.bin", "weights.bin")


def overwrite_large() -> None:
    with open("weights.bin", "r+b") as file:
        file.write(b"!")
    assert Path("weights.bin").read_bytes() == b"!" + b"w" * 99


def move_and_remove() -> None:
    os.rename("../data/raw/table.csv", "../data/raw/moved.csv")
    shutil.rmtree("runs")
    os.remove("weights.bin")
    assert not os.path.exists("runs")


def work_inside() -> None:
    os.chdir("../data/raw")
    Path("table.csv").write_text("gone")


def use_database() -> None:
    with sqlite3.connect("weights.bin") as database, pytest.raises(sqlite3.DatabaseError):
        database.execute("create table t (x)")


@pytest.mark.parametrize("work", [change_log, make_beside, replace_large, overwrite_large, move_and_remove, work_inside, use_database])
def test_nothing_of_the_users_is_changed(
    work: Callable[[], None], project: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 10)  # so that the weights are linked
    before = snapshot(tmp_path)
    mirror = made(project, tmp_path_factory.mktemp("home") / "m")
    monkeypatch.chdir(mirror.path(project))
    assert Path("weights.bin").is_symlink()
    with mirror.guarded():
        work()
    assert snapshot(tmp_path) == before


def test_large_trees_are_links_and_edits_take_the_place_of_files(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TREE", 1)
    outside = tmp_path / "library"
    outside.mkdir()
    (outside / "net.py").write_text("old = 1\n")
    mirror = made(project, tmp_path / "home", {outside / "net.py": b"new = 1\n", project / "package" / "train.py": b"x = 2\n"})
    assert mirror.path(project / "runs").is_symlink() and not mirror.path(project).is_symlink()
    assert mirror.path(outside / "net.py").read_text() == "new = 1\n" and (outside / "net.py").read_text() == "old = 1\n"
    assert mirror.path(project / "package" / "train.py").read_text() == "x = 2\n"
    assert mirror.of_edited(outside) == str(mirror.path(outside)) and mirror.of_edited(tmp_path / "data") is None


def test_a_file_that_is_too_large_to_copy_is_not_written_into(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 10)
    monkeypatch.setattr(module, "LARGEST", 50)
    mirror = made(project, tmp_path / "home")
    monkeypatch.chdir(mirror.path(project))
    with mirror.guarded(), pytest.raises(OSError, match="gradcheck copies no file"):
        os.open("weights.bin", os.O_WRONLY)
    assert (project / "weights.bin").read_bytes() == b"w" * 100


def test_no_room_for_a_mirror_is_one_error(project: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no mirror of"):
        Mirror(tmp_path / "home" / "missing", (project,), {})
