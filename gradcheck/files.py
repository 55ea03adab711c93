"""Files that a user names: read up to a size that can be meant, whatever they are, and looked for wherever they may be."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

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
