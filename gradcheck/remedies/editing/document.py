"""A source file as bytes and as text, kept as it is but for the edits, and replaced safely: whole or not at all."""

import ast
import difflib
import functools
import hashlib
import io
import itertools
import os
import re
import subprocess
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradcheck import files
from gradcheck.errors import GradcheckError

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_BOM = "\ufeff".encode()


class SourceError(GradcheckError):
    """A source file cannot be read, is not Python, or must not be written."""


@dataclass(frozen=True)
class Document:
    """A file that was read; `text` has its own newlines, and no byte-order mark."""

    path: str
    data: bytes
    text: str
    encoding: str
    bom: bool

    @property
    def newline(self) -> str:
        """The line ending of the file: the one that comes first."""
        match = _NEWLINE.search(self.text)
        return match[0] if match else "\n"

    @property
    def lines(self) -> list[str]:
        """With their endings, as Python counts lines."""
        return lines_of(self.text)

    def encoded(self, text: str) -> bytes:
        """The bytes of the file with another text. Raises SourceError when its encoding lacks a character."""
        try:
            return (_BOM if self.bom else b"") + text.encode(self.encoding)
        except UnicodeEncodeError as error:
            raise SourceError(f"{self.path}: {error.reason}", hint="store the file as UTF-8") from error

    def diff(self, text: str) -> str:
        """Unified diff to another text, empty when it is the same. Newlines in it are those of the file."""
        shown = self.path.lstrip("/")
        lines = difflib.unified_diff(self.lines, lines_of(text), f"a/{shown}", f"b/{shown}")
        return "".join(line if line.endswith(("\n", "\r")) else f"{line}\n\\ No newline at end of file\n" for line in lines)


@functools.lru_cache(maxsize=16)
def line_starts(text: str) -> tuple[int, ...]:
    """Offset of each line, as Python counts lines, and the length of the text after the last one."""
    starts = [match.start() for match in _LINE.finditer(text) if match.end() > match.start()]
    return (*starts, len(text)) if starts else (0, 0)


def lines_of(text: str) -> list[str]:
    starts = line_starts(text)
    return [text[a:b] for a, b in itertools.pairwise(starts) if b > a]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(path: str | Path) -> Document:
    """Raises SourceError when the file cannot be read, decoded or parsed."""
    try:
        return parsed(str(path), Path(path).read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error


def parsed(path: str, data: bytes) -> Document:
    """A document made from bytes. Raises SourceError as `read` does."""
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        bom = data.startswith(_BOM)
        text = data[len(_BOM) if bom else 0 :].decode("utf-8" if bom else encoding)
        ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise SourceError(f"{path} is not readable Python: {error}", hint="mend the file first") from error
    document = Document(path, data, text, "utf-8" if bom else encoding, bom)
    if document.encoded(text) != data:
        raise SourceError(f"{path}: its encoding, {encoding}, does not give the same bytes again", hint="store the file as UTF-8")
    return document


_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false")
_PATIENCE = 30.0  # seconds for git to answer


@dataclass(frozen=True)
class FileChange:
    """A file's bytes before and after."""

    path: str
    before: bytes
    after: bytes


def write(changes: Sequence[FileChange], *, allow_dirty: bool = False) -> None:
    """Replaces all files or none. Raises SourceError; after any exception, Ctrl-C among them, the old files are there."""
    refuse(changes, allow_dirty=allow_dirty)
    replaced: list[FileChange] = []
    try:
        for change in changes:
            replaced.append(change)
            replace(change.path, change.after)
            _expect(change.path, digest(change.after))
    except BaseException:
        restore(replaced)
        raise


def refuse(changes: Sequence[FileChange], *, allow_dirty: bool = False) -> None:
    """Raises SourceError when a file is not the one that was read, cannot be written, or lies in a dirty git tree."""
    for change in changes:
        ast.parse(parsed(change.path, change.after).text)
        _expect(change.path, digest(change.before))
        _writable(change.path)
    if not allow_dirty:
        refuse_dirty([c.path for c in changes])


def restore(changes: Sequence[FileChange]) -> None:
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
