"""Finding and reading TOML files, and where in them a key stands."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradcheck import files
from gradcheck.errors import ConfigError
from gradcheck.types.location import Location

OWN_FILE = "gradcheck.toml"  # holds what [tool.gradcheck] holds in pyproject.toml, and wins over it


@dataclass(frozen=True)
class Source:
    """Where settings come from: a file, a `--config` line, the command line, or Python."""

    name: str
    text: str = ""  # of a file
    folder: Path = Path()  # that paths in it are relative to
    prefix: str = ""  # "tool.gradcheck" in pyproject.toml

    def table(self, at: tuple[str, ...]) -> str:
        """`[tool.gradcheck.rules.NAME]` for the reader's eyes."""
        dotted = ".".join(p for p in (self.prefix, *at) if p)
        if not self.text:
            return f"{self.name} ({dotted})" if at else self.name
        return f"[{dotted}]" if dotted else self.name

    def find(self, at: tuple[str, ...], key: str) -> Location | None:
        """The line of a key, or of its table when the key does not stand on a line of its own; None without a file."""
        if not self.text:
            return None
        parts = tuple(self.prefix.split(".")) + at if self.prefix else at
        header, inside = 1, not parts
        for number, line in enumerate(self.text.splitlines(), start=1):
            if m := re.match(r"\s*\[+(.*?)\]+\s*(#.*)?$", line):
                names = _dotted(m[1])
                if names == (*parts, key):
                    return Location(self.name, number)
                inside = names == parts
                header = number if inside else header
            elif inside and "=" in line and _dotted(line.partition("=")[0])[:1] == (key,):
                return Location(self.name, number, len(line) - len(line.lstrip()) + 1)
        return Location(self.name, header)

    def relative(self, path: str) -> str:
        """A path of this source, seen from the working directory."""
        full = self.folder / path
        try:
            return os.path.relpath(full)
        except ValueError:  # another drive
            return str(full)


def _dotted(text: str) -> tuple[str, ...]:
    """Names of a dotted TOML key, quotes removed."""
    return tuple(a or b or c for a, b, c in re.findall(r"""\s*(?:"([^"]*)"|'([^']*)'|([^.\s"']+))\s*\.?""", text))


def find_file(start: Path) -> Path | None:
    """The nearest gradcheck.toml, or pyproject.toml with a [tool.gradcheck], in `start` or above."""
    for folder in (start, *start.parents):
        if (own := folder / OWN_FILE).is_file():
            return own
        project = folder / "pyproject.toml"
        if project.is_file() and b"gradcheck" in (raw := project.read_bytes()) and "gradcheck" in _toml(project, raw).get("tool", {}):
            return project
    return None


def read_file(path: Path) -> tuple[Mapping[str, Any], Source]:
    """The settings table of a file and its source. Raises ConfigError when it cannot be read."""
    try:
        raw = files.content(path)
    except OSError as e:
        raise ConfigError(f"cannot read the configuration {path}: {e.strerror}", hint="check --config") from e
    table = _toml(path, raw)
    name = os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
    text = raw.decode("utf-8")
    if path.name == "pyproject.toml":
        own = table.get("tool", {}).get("gradcheck", {})
        return own, Source(name, text, path.parent, "tool.gradcheck")
    return table, Source(name, text, path.parent)


def inline(text: str) -> tuple[Mapping[str, Any], Source]:
    """A `--config 'key = value'` line."""
    source = Source(f"--config {text!r}")
    try:
        return tomllib.loads(text), source
    except tomllib.TOMLDecodeError as e:
        hint = "strings need quotes: --config 'fail-on = \"warning\"'"
        raise ConfigError(f"{source.name} is neither a file nor valid TOML: {e}", hint=hint) from e


def _toml(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8", hint="save it as UTF-8") from e
    except tomllib.TOMLDecodeError as e:
        what, _, place = str(e).partition(" (at line ")
        numbers = re.findall(r"\d+", place)
        location = Location(str(path), int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else Location(str(path), 1)
        raise ConfigError(f"{path.name} is not valid TOML: {what}", hint="correct it, or pass --isolated", location=location) from e
