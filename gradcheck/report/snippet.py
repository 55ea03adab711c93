"""A source excerpt with its line numbers in a gutter and carets under a span, as Ruff prints it."""

from collections.abc import Mapping

from rich.cells import cell_len
from rich.text import Text

from gradcheck.report.formatting import clean
from gradcheck.types.location import Location

CONTEXT = 2  # lines above and below
GUTTER = "bold blue"


def snippet(lines: Mapping[int, str], location: Location, style: str, width: int | None = None) -> list[Text]:
    """Rows of the excerpt around a location; none when its line is not in `lines`.

    `width`: of the terminal; longer lines are cut so that the span stays in view. None: lines are not cut.
    """
    if location.line not in lines:
        return []
    shown = [n for n in range(location.line - CONTEXT, location.line + CONTEXT + 1) if n in lines]
    margin = len(str(shown[-1]))
    start, length = _span(lines[location.line], location)
    room = None if width is None else max(width - margin - 4, 20)
    shift = 0 if room is None or start + length <= room else max(0, min(start - 4, start + length - room + 1))
    bar = Text(" " * (margin + 1) + "|", style=GUTTER)
    rows = [bar]
    for n in shown:
        rows.append(Text.assemble((f"{n:>{margin}} | ", GUTTER), _window(clean(lines[n]), shift, room)))
        rows[-1].rstrip()
        if n == location.line:
            carets = min(length, room - (start - shift)) if room is not None else length
            rows.append(Text.assemble((" " * (margin + 1) + "| ", GUTTER), " " * (start - shift), ("^" * max(carets, 1), style)))
    return [*rows, bar]


def _span(line: str, location: Location) -> tuple[int, int]:
    """First cell and number of cells of the span on its first line. Tabs and wide characters count by their width."""
    begin = min(max(location.column - 1, 0), len(line))
    one_line = location.end_line in (0, location.line) and location.end_column > location.column
    end = location.end_column - 1 if one_line else len(line.rstrip())
    start = cell_len(clean(line[:begin]))
    return start, max(cell_len(clean(line[: max(end, begin)])) - start, 1)


def _window(text: str, shift: int, room: int | None) -> str:
    """The part of a line from cell `shift` on that fits, with an ellipsis where it was cut."""
    if shift:
        text = "…" + _drop_cells(text, shift + 1)
    if room is not None and cell_len(text) > room:
        while cell_len(text) > room - 1:
            text = text[:-1]
        text += "…"
    return text.rstrip()


def _drop_cells(text: str, count: int) -> str:
    while count > 0 and text:
        count -= cell_len(text[0])
        text = text[1:]
    return " " * -count + text
