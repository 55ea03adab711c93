"""A file while it is edited: edits are spans of text, each one is re-parsed, and what they leave alone is shown to be unchanged."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gradcheck.remedies.editing.document import Document, line_starts, parsed
from gradcheck.types.location import Location

Span = tuple[int, int]  # offsets into the text, the end exclusive


class Unwritable(Exception):
    """The remedy cannot be written into this source; the message tells the user why."""


@dataclass(frozen=True)
class Edit:
    """Replaces text[start:end]. An insertion has start == end."""

    start: int
    end: int
    text: str


@dataclass
class Draft:
    """`text` is what the file will be; places of the original, and nodes of trees from before an edit, are followed through the edits."""

    document: Document  # as it was measured
    origin: Document = None  # type: ignore[assignment]  # as it is on disk: another one when edits were measured in a copy
    text: str = field(init=False)
    history: list[tuple[Edit, ...]] = field(default_factory=list)
    _parsed: tuple[str, ast.Module] | None = None
    _parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    _seen: dict[ast.AST, tuple[str, int]] = field(default_factory=dict)  # the text that a node is of, and the number of edits before

    def __post_init__(self) -> None:
        self.text = self.document.text
        self.origin = self.origin or self.document

    @property
    def path(self) -> str:
        return self.document.path

    @property
    def changed(self) -> bool:
        return self.text != self.origin.text

    def settled(self) -> Draft:
        """The same edits of the same file, for what is measured with them: places are those of the edited text."""
        return Draft(parsed(self.path, self.document.encoded(self.text)), self.origin)

    def snapshot(self) -> tuple[str, int]:
        return self.text, len(self.history)

    def rewind(self, snapshot: tuple[str, int]) -> None:
        self.text, count = snapshot
        del self.history[count:]

    # ------------------------------------------------------------------ the tree

    @property
    def tree(self) -> ast.Module:
        if self._parsed is None or self._parsed[0] != self.text:
            tree = ast.parse(self.text)
            self._parsed = (self.text, tree)
            self._parents |= {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
            self._seen |= dict.fromkeys(ast.walk(tree), (self.text, len(self.history)))
        return self._parsed[1]

    def holds(self, node: ast.AST) -> bool:
        """Whether a node is of this tree, or of an earlier one."""
        return node in self._seen

    def parent(self, node: ast.AST) -> ast.AST | None:
        assert self.tree is not None
        return self._parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """From the node's parent to the module."""
        above = self.parent(node)
        while above is not None:
            yield above
            above = self.parent(above)

    def span(self, node: ast.AST) -> Span:
        """Where a node of this tree, or of an earlier one, is now. Raises Unwritable when an edit took it away."""
        text, age = self._seen[node]
        span: Span | None = span_of(node, line_starts(text), text)
        for edits in self.history[age:]:
            span = moved(span, edits) if span is not None else None
        if span is None:
            raise Unwritable(f"{self.path}: another change took this place")
        return span

    def source(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    # ------------------------------------------------------------------ places

    def where(self, location: Location) -> Span | None:
        """Where a place of the original is now; None when an edit took it away."""
        starts = line_starts(self.document.text)
        last = location.end_line or location.line
        if not (0 < location.line < len(starts) and 0 < last < len(starts)):
            return None
        start = starts[location.line - 1] + location.column - 1
        span: Span | None = (start, starts[last - 1] + (location.end_column or location.column) - 1)
        for edits in self.history:
            span = moved(span, edits) if span is not None else None
        return span

    def at(self, location: Location) -> ast.expr:
        """The expression at a place. Raises Unwritable when it is gone or is none."""
        span = self.where(location)
        if span is None:
            raise Unwritable(f"{location}: another remedy changed this place")
        starts, text = line_starts(self.text), self.text
        around: list[tuple[int, ast.expr]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.expr):
                start, end = span_of(node, starts, text)
                if (start, end) == span:
                    return node
                if start <= span[0] and span[1] <= end:
                    around.append((end - start, node))
        if not around:
            raise Unwritable(f"{location}: no expression is there")
        return min(around, key=lambda pair: pair[0])[1]

    def refusal(self, node: ast.expr | ast.stmt, why: str) -> Unwritable:
        """The error that says what stands in the way, and where."""
        return Unwritable(f"{self.path}:{node.lineno}: {why}")

    # ------------------------------------------------------------------ edits

    def edit(self, edits: Iterable[Edit]) -> None:
        """Applies edits that do not overlap. Raises Unwritable when the result is not valid Python, or differs elsewhere, too."""
        ordered = tuple(sorted(edits, key=lambda e: (e.start, e.end)))
        if any(a.end > b.start for a, b in itertools.pairwise(ordered)):
            raise Unwritable(f"{self.path}: two changes overlap")
        text = spliced(self.text, ordered)
        if text == self.text:
            return
        try:
            after = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise Unwritable(f"{self.path}: the edited file would not be valid Python ({error})") from error
        changed = next(strayed(self.tree, self.text, after, text, ordered), None)
        if changed is not None:
            raise self.refusal(changed, "the edit would change more than intended")
        self.text = text
        self.history.append(ordered)

    def replace(self, node: ast.AST, text: str) -> None:
        start, end = self.span(node)
        self.edit([Edit(start, end, text)])


def span_of(node: ast.AST, starts: tuple[int, ...], text: str) -> Span:
    """Offsets of a node in the text; decorators belong to their definition."""
    last_line, last_byte = getattr(node, "end_lineno", None), getattr(node, "end_col_offset", None)
    assert last_line is not None and last_byte is not None, f"{type(node).__name__} has no place"
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    if decorators:
        place = _offset(decorators[0].lineno, decorators[0].col_offset, starts, text)
        start = text.rindex("@", 0, place)
    else:
        start = _offset(getattr(node, "lineno"), getattr(node, "col_offset"), starts, text)  # noqa: B009
    return start, _offset(last_line, last_byte, starts, text)


def _offset(line: int, byte: int, starts: tuple[int, ...], text: str) -> int:
    """From ast's line (from 1) and UTF-8 byte in it (from 0)."""
    start = starts[line - 1]
    head = text[start : start + byte]
    return start + byte if head.isascii() else start + len(text[start : starts[line]].encode()[:byte].decode())


def spliced(text: str, edits: Iterable[Edit]) -> str:
    """The text with ordered edits applied."""
    parts, end = [], 0
    for edit in edits:
        parts += [text[end : edit.start], edit.text]
        end = edit.end
    return "".join([*parts, text[end:]])


def moved(span: Span, edits: Iterable[Edit]) -> Span | None:
    """Where a span is after ordered edits: what is inserted before it pushes it on, what is edited inside stretches it."""
    start, end = span
    shift = stretch = 0
    for edit in edits:
        grown = len(edit.text) - (edit.end - edit.start)
        if edit.end <= start and (edit.start, edit.end) != (start, end):
            shift += grown
        elif start <= edit.start and edit.end <= end and edit.start < end:
            stretch += grown
        elif edit.start < end:
            return None
    return start + shift, end + shift + stretch


def strayed(old: ast.Module, old_text: str, new: ast.Module, new_text: str, edits: tuple[Edit, ...]) -> Iterator[ast.stmt]:
    """Statements of the old tree that no edit touches and that the new tree lacks: same place, same nesting, same code.

    Of a statement with statements in it, what stands before these counts; they are looked at themselves.
    """
    new_starts, old_starts = line_starts(new_text), line_starts(old_text)
    there = {(span_of(node, new_starts, new_text)[0], depth): node for node, depth in _statements(new)}
    for node, depth in _statements(old):
        span = span_of(node, old_starts, old_text)
        if any(edit.start < span[1] and edit.end > span[0] for edit in edits):
            continue
        target = moved(span, edits)
        twin = there.get((target[0], depth)) if target is not None else None
        if twin is None or _head(twin) != _head(node):
            yield node


def _head(node: ast.stmt) -> str:
    """The code of a statement without the statements in it."""
    blocks: dict[str, list[ast.AST]] = {
        name: [] for name in ("body", "orelse", "finalbody", "handlers", "cases") if isinstance(getattr(node, name, None), list)
    }
    if not blocks:
        return ast.dump(node)
    bare = type(node)(**{**dict(ast.iter_fields(node)), **blocks})
    return ast.dump(bare)


def _statements(tree: ast.AST, depth: int = 0) -> Iterator[tuple[ast.stmt, int]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt):
            yield child, depth
            yield from _statements(child, depth + 1)
        else:
            yield from _statements(child, depth)
