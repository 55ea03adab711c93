"""`# gradcheck: ignore[...]` comments and source lines around findings."""

import dataclasses
import io
import linecache
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from gradcheck.errors import TargetError
from gradcheck.types.location import Ignore, Location, cell_file, path_and_cell
from gradcheck.workload.notebook import SUFFIX, code_cells, python_of
from gradcheck.workload.source_sites import display_path, readable_path

_IGNORE = re.compile(r"#\s*gradcheck:\s*ignore\[([^\]]*)\]", re.IGNORECASE)
_LAYOUT = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
_LONGEST_SPAN = 20  # lines of one expression that a report shows


def ignores(paths: Iterable[str | Path]) -> tuple[Ignore, ...]:
    """Suppression comments of the given files, one Ignore for each line that a comment covers. A comment after code covers its line; one on
    a line of its own covers the whole statement below it. Files that cannot be read or are not Python have none.
    """
    files = (file for path in dict.fromkeys(str(p) for p in paths) for file in _files(path))
    return tuple(found for file in files for found in _of_file(file))


def _files(path: str) -> list[str]:
    """The path; of a notebook, its cells."""
    if not path.endswith(SUFFIX):
        return [path]
    try:
        return [cell_file(path, cell.number) for cell in code_cells(readable_path(path))]
    except TargetError:
        return []


def _opened(file: str, magics: bool = True) -> TextIO:
    """The text of a file, or of a cell, with its magics or without."""
    path, number = path_and_cell(file)
    if not number:
        if path in linecache.cache and not Path(path).exists():  # a cell of a notebook that is running
            return io.StringIO("".join(linecache.getlines(path)))
        return tokenize.open(readable_path(path))
    source = next((cell.source for cell in code_cells(readable_path(path)) if cell.number == number), "")
    return io.StringIO(source if magics else python_of(source))


def _of_file(path: str) -> list[Ignore]:
    found: list[Ignore] = []
    pending: list[tuple[int, tuple[str, ...]]] = []  # comments that wait for the statement below them
    first_line: int | None = None  # of the present statement
    shown = display_path(path)
    try:
        with _opened(path, magics=False) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.COMMENT and (names := _names(token.string)):
                    line = token.start[0]
                    if token.line[: token.start[1]].strip():
                        found.append(Ignore(shown, line, names, line))
                    elif first_line is None:
                        pending.append((line, names))
                    else:  # between the lines of a statement: it covers the line below
                        found.append(Ignore(shown, line + 1, names, line))
                elif token.type == tokenize.NEWLINE:
                    for comment_line, names in pending:
                        lines = range(first_line or token.start[0], token.start[0] + 1)
                        found += [Ignore(shown, line, names, comment_line) for line in lines]
                    pending, first_line = [], None
                elif token.type not in _LAYOUT and first_line is None:
                    first_line = token.start[0]
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError, TargetError):
        return found  # what comes before the broken place still counts
    return found


def _names(comment: str) -> tuple[str, ...]:
    match = _IGNORE.search(comment)
    return tuple(name.strip() for name in match[1].split(",") if name.strip()) if match else ()


def snippets(locations: Iterable[Location], context: int = 2) -> dict[str, dict[int, str]]:
    """`Location.file` -> line number -> text, for the lines of each location and `context` lines around them."""
    wanted: dict[str, set[int]] = {}
    for place in locations:
        last = min(max(place.end_line, place.line), place.line + _LONGEST_SPAN)
        wanted.setdefault(place.file, set()).update(range(max(1, place.line - context), last + context + 1))
    return {path: texts for path, lines in wanted.items() if (texts := _lines(path, lines))}


def _lines(path: str, wanted: set[int]) -> dict[int, str]:
    try:
        with _opened(path) as file:
            return {number: text.rstrip("\r\n") for number, text in enumerate(file, 1) if number in wanted}
    except (OSError, SyntaxError, UnicodeDecodeError, TargetError):
        return {}


def places(value: Any) -> Iterator[Location]:
    """All places that a record points at."""
    if isinstance(value, Location):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from places(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for spec in dataclasses.fields(value):
            yield from places(getattr(value, spec.name))
