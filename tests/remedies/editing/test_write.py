"""Files are replaced whole or not at all, and never over work that is not committed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gradcheck.remedies.editing.document import FileChange, SourceError, restore, write
from gradcheck.remedies.editing.plan import SourcePlan
from tests.remedies.editing.sheets import HEAD, Sheet, fix

TEXT = HEAD + "model = nn.Linear(2, 2)\noptimizer = torch.optim.SGD(model.parameters(), lr=10.0)\n"
AFTER = TEXT.replace("10.0", "0.1")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned() -> SourcePlan:
    sheet = Sheet(TEXT).optimizer("torch.optim.SGD(model.parameters(), lr=10.0)", "SGD")
    return sheet.plan(fix("lower-learning-rate", lr=0.1))


def leftovers() -> list[str]:
    return sorted(p.name for p in Path.cwd().iterdir() if p.name not in ("model.py", ".git", "link.py", "other.py"))


def test_nothing_is_written_before_it_is_asked_for() -> None:
    plan = planned()
    assert Path("model.py").read_text() == TEXT
    assert plan.diffs == {"model.py": plan.diff} and "+optimizer = torch.optim.SGD(model.parameters(), lr=0.1)" in plan.diff


def test_a_file_is_replaced_with_its_mode_and_restored() -> None:
    plan = planned()
    Path("model.py").chmod(0o751)
    assert plan.write() == ["model.py"]
    assert Path("model.py").read_text() == AFTER and Path("model.py").stat().st_mode & 0o777 == 0o751
    restore(plan.done)
    assert Path("model.py").read_text() == TEXT and leftovers() == []


def test_what_was_changed_after_the_writing_is_not_restored() -> None:
    plan = planned()
    plan.write()
    Path("model.py").write_text("mine = 1\n")
    restore(plan.done)
    assert Path("model.py").read_text() == "mine = 1\n"


def test_a_symbolic_link_stays_one() -> None:
    Path("other.py").write_text(TEXT)
    Path("link.py").symlink_to("other.py")
    write([FileChange("link.py", TEXT.encode(), AFTER.encode())])
    assert Path("link.py").is_symlink() and Path("other.py").read_text() == AFTER


def test_a_file_that_changed_since_is_refused() -> None:
    plan = planned()
    Path("model.py").write_text(TEXT + "# mine\n")
    with pytest.raises(SourceError, match="changed since it was scanned"):
        plan.write()
    assert Path("model.py").read_text() == TEXT + "# mine\n"


def test_a_file_that_changed_between_scan_and_plan_is_refused() -> None:
    sheet = (
        Sheet(TEXT)
        .optimizer("torch.optim.SGD(model.parameters(), lr=10.0)", "SGD")
        .having(snippets={"model.py": {6: "model = nn.Linear(3, 3)"}})
    )
    with pytest.raises(SourceError, match=r"model\.py:6 changed since it was scanned"):
        sheet.plan(fix("lower-learning-rate", lr=0.1))


def test_what_does_not_parse_is_not_written() -> None:
    Path("model.py").write_text(TEXT)
    with pytest.raises(SourceError):
        write([FileChange("model.py", TEXT.encode(), b"def f(:\n")])
    assert Path("model.py").read_text() == TEXT


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_is_refused() -> None:
    plan = planned()
    Path("model.py").chmod(0o444)
    with pytest.raises(SourceError, match="read-only"):
        plan.write()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_an_interruption_leaves_every_old_file_whole(error: Any, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("model.py").write_text(TEXT)
    Path("other.py").write_text(TEXT)
    real, calls = getattr(os, moment), []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:  # the second file
            raise error
        return real(*args)

    monkeypatch.setattr(os, moment, failing)
    with pytest.raises((KeyboardInterrupt, SourceError)):
        write([FileChange("model.py", TEXT.encode(), AFTER.encode()), FileChange("other.py", TEXT.encode(), AFTER.encode())])
    assert Path("model.py").read_text() == Path("other.py").read_text() == TEXT
    assert leftovers() == []


# ---------------------------------------------------------------------------------------- git

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@needs_git
def test_an_untracked_file_is_refused_unless_allowed() -> None:
    plan = planned()
    git("init")
    with pytest.raises(SourceError) as caught:
        plan.write()
    assert "--allow-dirty" in caught.value.hint and Path("model.py").read_text() == TEXT
    assert plan.write(allow_dirty=True) == ["model.py"]


@needs_git
def test_a_dirty_tree_is_refused_and_a_clean_one_is_not_touched() -> None:
    plan = planned()
    Path("other.py").write_text("x = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    Path("other.py").write_text("x = 2\n")
    index = Path(".git/index").stat().st_mtime_ns
    with pytest.raises(SourceError, match=r"uncommitted changes .*other\.py"):
        plan.write()
    Path("other.py").write_text("x = 1\n")
    assert plan.write() == ["model.py"]
    assert Path(".git/index").stat().st_mtime_ns == index


def test_without_git_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    monkeypatch.setenv("PATH", "")
    assert plan.write() == ["model.py"]


def test_every_name_of_a_file_shows_the_edits() -> None:
    Path("model.py").write_text(TEXT)
    Path("same.py").hardlink_to("model.py")
    write([FileChange("model.py", TEXT.encode(), AFTER.encode())])
    assert Path("same.py").read_text() == AFTER and Path("model.py").samefile("same.py")


def test_a_file_whose_mode_forbids_it_is_not_written_even_by_root() -> None:
    Path("model.py").write_text(TEXT)
    Path("model.py").chmod(0o444)
    with pytest.raises(SourceError, match="read-only"):
        write([FileChange("model.py", TEXT.encode(), AFTER.encode())])
    assert Path("model.py").read_text() == TEXT
