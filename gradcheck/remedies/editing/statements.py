"""Putting statements before or after others, with their indentation and the file's newlines."""

import ast
import itertools
import re
import textwrap

from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.nodes import statement_of

_SPACE = re.compile(r"[ \t\f]*")


def insert_before(draft: Draft, node: ast.AST, code: str) -> None:
    """Lines before the statement that holds a node."""
    _beside(draft, statement_of(draft, node), code, before=True)


def insert_after(draft: Draft, node: ast.AST, code: str) -> None:
    """Lines after the statement that holds a node."""
    _beside(draft, statement_of(draft, node), code, before=False)


def insert_definition(draft: Draft, node: ast.AST, code: str) -> None:
    """A function or class before the top-level statement that holds a node, with two blank lines on either side."""
    top = next((a for a in (node, *draft.ancestors(node)) if isinstance(draft.parent(a), ast.Module)), None)
    if top is None:
        raise Unwritable("there is no place for a definition")
    before = draft.text[: draft.span(top)[0]].rstrip(" \t").replace("\r\n", "\n").replace("\r", "\n")
    blank = len(before) - len(before.rstrip("\n")) - 1
    insert_before(draft, top, "\n" * max(0, 2 - blank) + code.strip("\n") + "\n\n\n")


def _beside(draft: Draft, statement: ast.stmt, code: str, *, before: bool) -> None:
    start, end = draft.span(statement)
    block = block_of(draft, statement)
    line = line_start(draft.text, start)
    head = draft.text[line:start]
    if not head.strip() and _alone(draft.text, end):
        indent = _SPACE.match(head)[0]  # type: ignore[index]
        if before:
            draft.edit([Edit(line, line, _lines(draft, code, indent))])
        else:
            place = _behind_line(draft.text, end)
            missing = "" if place == 0 or draft.text[place - 1] in "\r\n" else draft.document.newline
            text = _lines(draft, code, indent)
            draft.edit([Edit(place, place, missing + (text.rstrip("\r\n") if missing else text))])
        return
    _unfold(draft, block)
    same = min((s for s in ast.walk(draft.tree) if isinstance(s, ast.stmt)), key=lambda s: _unlike(s, statement))
    if ast.dump(same) != ast.dump(statement):
        raise draft.refusal(statement, "there is no room for a statement")
    _beside(draft, same, code, before=before)


def _unlike(candidate: ast.stmt, statement: ast.stmt) -> tuple[bool, int]:
    """Orders candidates: equal code first, then by distance in lines."""
    return ast.dump(candidate) != ast.dump(statement), abs(candidate.lineno - statement.lineno)


def block_of(draft: Draft, statement: ast.stmt) -> list[ast.stmt]:
    """The list of statements that one stands in."""
    parent = draft.parent(statement)
    for name in ("body", "orelse", "finalbody", "handlers"):
        block = getattr(parent, name, None)
        if isinstance(block, list) and any(one is statement for one in block):
            return block
    raise draft.refusal(statement, "the statement stands in no block")


def _unfold(draft: Draft, block: list[ast.stmt]) -> None:
    """Gives each statement of a block that shares a line a line of its own: `if a: b; c` and `b; c`."""
    parent = draft.parent(block[0])
    first = draft.span(block[0])[0]
    line = line_start(draft.text, first)
    head = draft.text[line:first]
    indent = _SPACE.match(head)[0]  # type: ignore[index]
    edits = []
    if head.strip() and parent is not None and not isinstance(parent, ast.Module):
        indent += unit(draft)
        colon = len(draft.text[line:first].rstrip()) + line
        edits.append(Edit(colon, first, draft.document.newline + indent))
    for one, following in itertools.pairwise(block):
        end, start = draft.span(one)[1], draft.span(following)[0]
        gap = draft.text[end:start]
        if "\n" not in gap and "\r" not in gap and gap.strip() == ";":
            edits.append(Edit(end, start, draft.document.newline + indent))
    end = draft.span(block[-1])[1]
    if trailing := re.match(r"[ \t]*;", draft.text[end:]):
        edits.append(Edit(end, end + trailing.end(), ""))
    if not edits:
        raise draft.refusal(block[0], "there is no room for a statement")
    draft.edit(edits)


def indent_of(draft: Draft, node: ast.AST) -> str:
    """The white space before the statement that holds a node."""
    start = draft.span(statement_of(draft, node))[0]
    return _SPACE.match(draft.text[line_start(draft.text, start) : start])[0]  # type: ignore[index]


def unit(draft: Draft) -> str:
    """One level of indentation, as the file has it."""
    for node in ast.walk(draft.tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.stmt) and body[0].lineno > node.lineno:
            start = draft.span(body[0])[0]
            inner = draft.text[line_start(draft.text, start) : start]
            outer = indent_of(draft, node)
            if not inner.strip() and inner.startswith(outer) and len(inner) > len(outer):
                return inner[len(outer) :]
    return "    "


def remove_statement(draft: Draft, statement: ast.stmt) -> None:
    """Takes a statement away; a block that would be empty gets `pass`."""
    start, end = draft.span(statement)
    if len(block_of(draft, statement)) == 1 and not isinstance(draft.parent(statement), ast.Module):
        draft.edit([Edit(start, end, "pass")])
        return
    line = line_start(draft.text, start)
    if not draft.text[line:start].strip() and _alone(draft.text, end):
        draft.edit([Edit(line, _behind_line(draft.text, end), "")])
        return
    block = block_of(draft, statement)
    index = next(i for i, one in enumerate(block) if one is statement)
    if index + 1 < len(block):
        draft.edit([Edit(start, draft.span(block[index + 1])[0], "")])
    else:
        draft.edit([Edit(draft.span(block[index - 1])[1], end, "")])


def line_start(text: str, place: int) -> int:
    return max(text.rfind("\n", 0, place), text.rfind("\r", 0, place)) + 1


def _alone(text: str, end: int) -> bool:
    """Nothing but a comment follows on the line."""
    return re.match(r"[ \t\f]*(#[^\r\n]*)?(\r|\n|\Z)", text[end:]) is not None


def _behind_line(text: str, end: int) -> int:
    match = re.compile(r"[^\r\n]*(\r\n|\r|\n|\Z)").match(text, end)
    return match.end() if match else len(text)


def _lines(draft: Draft, code: str, indent: str) -> str:
    """Code as whole lines with an indentation; four spaces in it become the file's unit."""
    step, lines = unit(draft), []
    for line in textwrap.dedent(code).removesuffix("\n").split("\n"):
        bare = line.lstrip(" ")
        levels, rest = divmod(len(line) - len(bare), 4)
        lines.append(indent + step * levels + " " * rest + bare if bare else "")
    newline = draft.document.newline
    return newline.join(lines) + newline
