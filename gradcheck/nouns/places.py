"""Spans of the user's source."""

from __future__ import annotations

from dataclasses import dataclass


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

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Ignore:
    """A `# gradcheck: ignore[name, ...]` comment: `line` is the line that it speaks for."""

    path: str
    line: int
    names: tuple[str, ...]
    comment_line: int
