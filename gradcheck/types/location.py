"""Spans of the user's source."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CELL = re.compile(r"(.+\.ipynb):cell (\d+)")


def cell_file(path: str, cell: int) -> str:
    """What a cell of a notebook is called where files have names; the path itself for 0, which is not a cell."""
    return f"{path}:cell {cell}" if cell else path


def path_and_cell(file: str) -> tuple[str, int]:
    """The notebook and the number of its cell; of other files the path and 0."""
    found = _CELL.fullmatch(file)
    return (found[1], int(found[2])) if found else (file, 0)


@dataclass(frozen=True)
class Location:
    """A span of source text. Lines and columns count from 1, columns in characters; `end_column` is exclusive."""

    path: str  # relative to the working directory where that is possible, else absolute
    line: int
    column: int = 1
    end_line: int = 0
    end_column: int = 0
    scope: str = ""  # the function that holds the span, e.g. "Encoder.__init__"
    detail: Location | None = None  # the line of an installed package, when `path` is the user's line that led there
    cell: int = 0  # of a notebook, from 1 on, all kinds of cells counted; lines count from the cell's first one

    @classmethod
    def at(cls, file: str, line: int) -> Location:
        """The beginning of a line of a file, which may be a cell."""
        path, cell = path_and_cell(file)
        return cls(path, line, cell=cell)

    @property
    def file(self) -> str:
        """The path, with the cell where it is a notebook: lines are numbered in it."""
        return cell_file(self.path, self.cell)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Ignore:
    """A `# gradcheck: ignore[name, ...]` comment: `line` is the line that it speaks for."""

    path: str  # as `Location.file`
    line: int
    names: tuple[str, ...]
    comment_line: int
