"""What keeps a script from changing the user's files: a mirror of the folders that it runs in, and what it saves, kept in memory."""

import errno
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gradcheck.errors import TargetError
from gradcheck.instrument.patches import Patches


def keep_checkpoints(patches: Patches, home: Path | None) -> None:
    """Makes `torch.save` keep its data in memory, where `torch.load` finds it; in a sandbox it writes."""
    kept: dict[str, bytes] = {}

    def place(file: Any) -> str | None:
        if not isinstance(file, (str, os.PathLike)):
            return None
        path = os.path.realpath(os.fspath(file))
        return None if home is not None and Path(path).is_relative_to(home.resolve()) else path

    def save(original: Callable[..., Any]) -> Callable[..., Any]:
        def saved(value: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            path = place(f)
            if path is None:
                return original(value, f, *args, **kwargs)
            if not kept:
                print("gradcheck: checkpoints are kept in memory and not written (--sandbox writes them to a copy)", file=sys.stderr)
            buffer = io.BytesIO()
            result = original(value, buffer, *args, **kwargs)
            kept[path] = buffer.getvalue()
            return result

        return saved

    def load(original: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(f: Any, *args: Any, **kwargs: Any) -> Any:
            found = kept.get(place(f) or "")
            return original(io.BytesIO(found) if found is not None else f, *args, **kwargs)

        return loaded

    patches.wrap(torch, "save", save)
    patches.wrap(torch, "load", load)


LEFT_OUT = ("__pycache__",)
SMALL = 4_000_000  # bytes of a file that is copied rather than linked,
COPIED = 64_000_000  # while this many bytes were not copied yet
TREE = 2000  # entries of a folder that is rebuilt with all that is in it: code that walks over the tree does not follow links
TREES = 5000  # the same of all such folders together
LARGEST = 500_000_000  # bytes of a linked file that is copied because the script writes into it

_MAKES = ("os.mkdir", "os.chdir", "shutil.rmtree")  # audit events whose path becomes a folder of the mirror
_CHANGES = ("os.truncate", "os.chmod", "os.utime", "os.chown", "sqlite3.connect")  # whose file is written into
_MOVES = ("os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink")  # which act on the link itself
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Mirror:
    """`home` is an empty folder. `folders`: those that the script calls its own, by real path: where it lies, and where it is run."""

    def __init__(self, home: Path, folders: Sequence[Path], edits: Mapping[Path, bytes]) -> None:
        self.home = home.resolve()
        self.edited = tuple(edits)
        self._bytes, self._entries, self._busy = COPIED, TREES, False
        try:
            for folder in dict.fromkeys(folders):
                self._build(folder)
                self._fill(folder)
            for file, data in edits.items():
                self._build(file.parent)
                self.path(file).unlink(missing_ok=True)
                self.path(file).write_bytes(data)
        except OSError as error:
            raise TargetError(f"no mirror of {folders[0]} can be made in {home}: {error}", hint="set TMPDIR to another folder") from error

    def path(self, original: Path) -> Path:
        """Where a file or folder is in the mirror."""
        return self.home / original.relative_to(original.anchor)

    def of_edited(self, folder: Path) -> str | None:
        """A folder of `sys.path` in the mirror, when an edited file lies below it."""
        real = folder.resolve()
        return str(self.path(real)) if any(file.is_relative_to(real) for file in self.edited) else None

    # ---------------------------------------------------------------------------------------- building

    def _build(self, folder: Path) -> None:
        """A folder of the mirror with links to all that the original holds, and the folders above it."""
        twin = self.path(folder)
        if twin.is_dir() and not twin.is_symlink():
            return
        if folder != folder.parent:
            self._build(folder.parent)
        self._replace(twin, folder)

    def _replace(self, twin: Path, original: Path) -> None:
        """Puts a folder with links in place of a link to a folder."""
        if twin.is_symlink():
            twin.unlink()
        twin.mkdir(exist_ok=True)
        try:
            names = os.listdir(original)
        except PermissionError:  # what is to be seen behind it is linked by name
            return
        for name in names:
            at = twin / name
            if name not in LEFT_OUT and original / name != self.home and not os.path.lexists(at):
                at.symlink_to(original / name)

    def _fill(self, folder: Path) -> None:
        """Small files of a folder as copies; folders in it with all that they hold, where that is not much."""
        for entry in os.scandir(folder):
            original, twin = folder / entry.name, self.path(folder / entry.name)
            if entry.is_symlink() or not twin.is_symlink():
                continue
            if entry.is_file():
                self._copy_small(original, twin, entry.stat().st_size)
            elif entry.is_dir() and not entry.name.startswith("."):
                size = _entries(original, min(TREE, self._entries))
                if size is not None:
                    self._entries -= size
                    self._rebuild(original)

    def _rebuild(self, folder: Path) -> None:
        for at, _, names in os.walk(folder):
            self._build(Path(at))
            for name in names:
                file = Path(at) / name
                if not file.is_symlink() and file.is_file() and self.path(file).is_symlink():
                    self._copy_small(file, self.path(file), file.stat().st_size)

    def _copy_small(self, original: Path, twin: Path, size: int) -> None:
        if original.suffix == ".py" or (size <= SMALL and size <= self._bytes):
            self._bytes -= size
            twin.unlink()
            shutil.copy2(original, twin)

    # ----------------------------------------------------------------------------------------- writing

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """While active, a file that this process is about to write, move or remove in the mirror becomes the mirror's own first."""
        if not _guarded:
            _install()
        _guarded.append(self)
        try:
            yield
        finally:
            _guarded.remove(self)

    def before(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event of the interpreter, which comes before what it tells."""
        if self._busy:
            return
        self._busy = True
        try:
            if event == "open":
                name, mode, flags = arguments[:3]
                if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITE_FLAGS):
                    self._own(name, empty=isinstance(mode, str) and "w" in mode)
            elif event in _MAKES or event in _CHANGES:
                self._own(arguments[0])
            elif event in _MOVES:
                for name in arguments[:2]:
                    self._own(os.path.dirname(os.path.abspath(name)) if isinstance(name, (str, bytes, os.PathLike)) else name)
        finally:
            self._busy = False

    def _own(self, name: Any, *, empty: bool = False) -> None:
        """Copies replace the links on the way to a file or folder. `empty`: what the file holds is not needed."""
        if not isinstance(name, (str, bytes, os.PathLike)):
            return
        wanted = Path(os.path.abspath(os.fsdecode(name)))
        if not wanted.is_relative_to(self.home):
            return
        at = self.home
        for part in wanted.relative_to(self.home).parts:
            at = at / part
            original = Path(os.path.realpath(at))
            if not at.is_symlink() or original.is_relative_to(self.home):
                continue
            if original.is_dir():
                self._replace(at, original)
            elif original.is_file():
                self._copy(at, original, empty)

    def _copy(self, twin: Path, original: Path, empty: bool) -> None:
        if not empty and original.stat().st_size > LARGEST:
            raise OSError(errno.EFBIG, f"gradcheck copies no file of more than {LARGEST / 1e6:g} MB for a script to change", str(original))
        twin.unlink()
        if not empty:
            shutil.copy2(original, twin)


def _entries(folder: Path, most: int) -> int | None:
    """How many files and folders a tree holds; None when that is more than `most`."""
    found = 0
    for _, folders, files in os.walk(folder):
        found += len(folders) + len(files)
        if found > most:
            return None
    return found


_guarded: list[Mirror] = []
_installed = False


def _install() -> None:
    """The interpreter keeps an audit hook for good: there is one, which does nothing while no mirror is guarded."""
    global _installed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for mirror in _guarded:
        mirror.before(event, arguments)
