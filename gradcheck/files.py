"""Files that a user names: read up to a size that can be meant, looked for wherever they may be, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcheck.errors import SavedRunError

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

# Bytes. The saved run of a model of 20,000 layers has 49 MB (measured); a device has no end.
LARGEST = 400_000_000


def content(path: Path, most: int = LARGEST) -> bytes:
    """Raises OSError, also for what is larger."""
    with path.open("rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"it has more than {most / 1e6:g} MB", str(path))
    return found


def text(path: Path) -> str:
    """UTF-8, with or without a byte order mark. Raises OSError and UnicodeDecodeError."""
    return content(path).decode("utf-8-sig")


def parsed(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, and ValueError for what is no JSON."""
    try:
        return json.loads(text(path))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def place(name: str) -> Path:
    """A path with `~` for the home folder, where there is that home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_folder(path: Path) -> bool:
    """Also for names that no file can have."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Also for names that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def write_text(path: Path, text: str, hint: str = "give another path after --output FORMAT:") -> None:
    """Raises SavedRunError when the file cannot be written."""
    path = place(str(path))
    try:
        write(path, text.encode("utf-8"))
    except (OSError, RuntimeError) as e:  # of links that go in a circle resolve() says RuntimeError before Python 3.13
        why = e.strerror if isinstance(e, OSError) else "its links go in a circle"
        raise SavedRunError(f"cannot write {path}: {why}", hint=hint) from e


def write(path: Path, data: bytes) -> None:
    """Whole or not at all, through symbolic links; a file that is there keeps its mode and owner. Raises OSError and RuntimeError.

    A pipe or a device has nothing to replace, and of a file with several names (hard links) another one would leave the others behind:
    these are written in place.
    """
    target = path.resolve()
    if target.is_symlink():
        raise OSError(errno.ELOOP, "its links go in a circle")
    there = target.exists()
    if there and (not target.is_file() or target.stat().st_nlink > 1):
        with target.open("r+b" if target.is_file() else "wb", buffering=0) as file:
            file.write(data)
            if target.is_file():
                file.truncate(len(data))
                os.fsync(file.fileno())
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if there:
            shutil.copymode(target, beside)
            with contextlib.suppress(OSError, AttributeError):  # of somebody else's file, where this is root
                os.chown(beside, target.stat().st_uid, target.stat().st_gid)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def temporary_folder() -> TemporaryDirectory[str]:
    """Its name tells whose it is: `remove_folders_of` removes what a process that was killed has left."""
    import tempfile

    return tempfile.TemporaryDirectory(prefix=f"gradcheck-{os.getpid()}-", ignore_cleanup_errors=True)


def remove_folders_of(processes: Iterable[int]) -> None:
    import tempfile

    with contextlib.suppress(OSError):  # there may be no folder for temporary files
        home = Path(tempfile.gettempdir())
        for folder in [found for pid in processes for found in home.glob(f"gradcheck-{pid}-*")]:
            shutil.rmtree(folder, ignore_errors=True)
