"""Replacing files safely: whole or not at all, only when they are what was read, and not over uncommitted work."""

import ast
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradcheck import files
from gradcheck.remedies.editing.document import SourceError, digest, parsed

_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false")
_PATIENCE = 30.0  # seconds for git to answer


@dataclass(frozen=True)
class Change:
    """A file's bytes before and after."""

    path: str
    before: bytes
    after: bytes


def write(changes: Sequence[Change], *, allow_dirty: bool = False) -> None:
    """Replaces all files or none. Raises SourceError; after any exception, Ctrl-C among them, the old files are there."""
    refuse(changes, allow_dirty=allow_dirty)
    replaced: list[Change] = []
    try:
        for change in changes:
            replaced.append(change)
            replace(change.path, change.after)
            _expect(change.path, digest(change.after))
    except BaseException:
        restore(replaced)
        raise


def refuse(changes: Sequence[Change], *, allow_dirty: bool = False) -> None:
    """Raises SourceError when a file is not the one that was read, cannot be written, or lies in a dirty git tree."""
    for change in changes:
        ast.parse(parsed(change.path, change.after).text)
        _expect(change.path, digest(change.before))
        _writable(change.path)
    if not allow_dirty:
        refuse_dirty([c.path for c in changes])


def restore(changes: Sequence[Change]) -> None:
    """Puts the old bytes back where the new ones are."""
    for change in changes:
        if Path(change.path).read_bytes() == change.after:
            replace(change.path, change.before)


def _expect(path: str, wanted: str) -> None:
    try:
        found = digest(Path(path).read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
    if found != wanted:
        raise SourceError(f"{path} changed since it was scanned", hint="scan again; nothing was written")


def replace(path: str, data: bytes) -> None:
    """Keeps the mode, and writes through a symbolic link. Raises SourceError when the file cannot be written."""
    target = _writable(path)
    try:
        files.write(Path(target), data)
    except OSError as error:
        hint = "make it and its folder writable, or apply the diff by hand"
        raise SourceError(f"cannot write {path}: {error.strerror}", hint=hint) from error


def _writable(path: str) -> str:
    """The file itself, behind links. Root may write what its mode forbids; gradcheck does not."""
    target = os.path.realpath(path)
    if not os.access(target, os.W_OK) or not os.stat(target).st_mode & 0o222:
        raise SourceError(f"{path} is read-only", hint="make it writable, or apply the diff by hand")
    return target


def refuse_dirty(paths: Sequence[str]) -> None:
    """Raises SourceError when a file is untracked, or its git tree has uncommitted changes. Without git nothing is refused."""
    for folder in sorted({os.path.dirname(os.path.realpath(p)) for p in paths}):
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        here = [os.path.realpath(p) for p in paths if os.path.dirname(os.path.realpath(p)) == folder]
        untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "--", *here)
        for what, found in (("uncommitted changes", changed), ("files that git does not know", untracked)):
            if found:
                first = found.splitlines()[0].strip()
                hint = "commit or stash them first, or pass --allow-dirty"
                raise SourceError(f"the git tree of {folder} has {what} ({first}); nothing was written", hint=hint)


def _git(folder: str, *arguments: str) -> str:
    """What git says; nothing when there is no git, or no tree."""
    try:
        answer = subprocess.run([*_GIT, *arguments], cwd=folder, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip("\n") if answer.returncode == 0 else ""
