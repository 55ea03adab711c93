"""`--add-ignore`: comments that suppress the findings of a report, written into the source. The code itself does not change."""

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gradcheck.files import write_text
from gradcheck.report.in_editor import IGNORE, placed
from gradcheck.types.location import Location
from gradcheck.types.report import Report

Wishes = dict[str, list[tuple[Location, str]]]  # path -> places and names of rules


def add_ignores(reports: Sequence[Report]) -> tuple[int, list[str]]:
    """Writes a comment for each headline. Returns how many were written, and which could not be, with the reason."""
    done, left = 0, []
    wishes: Wishes = defaultdict(list)
    for report in reports:
        for finding in report.headlines:
            if finding.location is None or finding.location.cell or not finding.location.path.endswith(".py"):
                left.append(f"{finding.name}: it has no line in a Python file; leave it out with `ignore` in [tool.gradcheck]")
                continue
            try:
                lines = Path(finding.location.path).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                left.append(f"{finding.name}: cannot read {finding.location.path}: {error}")
                continue
            place = placed(report, finding, lines)
            if place is not None:
                wishes[place.path].append((place, finding.name))
    for path, own in wishes.items():
        before = Path(path).read_text(encoding="utf-8")
        after, count, failed = commented(before, own)
        left += [f"{name}: {path}:{place.line} has no place for a comment" for place, name in failed]
        if after != before:
            write_text(Path(path), after, hint="is the file yours to write to?")
            done += count
    return done, left


def commented(text: str, wishes: Sequence[tuple[Location, str]]) -> tuple[str, int, list[tuple[Location, str]]]:
    """The text with a comment for each wish, how many were put in, and the wishes that found no room."""
    count, failed = 0, []
    for place, name in sorted(set(wishes), key=lambda wish: (-wish[0].line, wish[1])):
        found = next((new for new in _candidates(text, place, name) if _same_code(text, new)), None)
        if found is None:
            failed.append((place, name))
        elif found != text:
            text, count = found, count + 1
    return text, count, failed


def _candidates(text: str, place: Location, name: str) -> Iterator[str]:
    """The end of each line of the expression, the last one first: a comment there covers the expression."""
    lines = text.splitlines(keepends=True)
    comments = _comments(text)
    for number in range(max(place.end_line, place.line), place.line - 1, -1):
        if number > len(lines):
            continue
        line = lines[number - 1]
        bare = line.rstrip("\r\n")
        end, comment = line[len(bare) :], comments.get(number)
        known = IGNORE.search(comment[1]) if comment is not None else None
        if known is not None and comment is not None:
            names = [word.strip() for word in known[1].split(",") if word.strip()]
            if name in names:
                yield text
                return
            start = comment[0] + known.start(1)
            new = bare[:start] + ", ".join([*names, name]) + bare[comment[0] + known.end(1) :]
        else:
            new = f"{bare.rstrip()}  # gradcheck: ignore[{name}]"
        yield "".join([*lines[: number - 1], new + end, *lines[number:]])


def _comments(text: str) -> Mapping[int, tuple[int, str]]:
    """Line -> column and text of its comment."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError):
        return {}
    return {token.start[0]: (token.start[1], token.string) for token in tokens if token.type == tokenize.COMMENT}


def _same_code(before: str, after: str) -> bool:
    """Whether only comments differ: inside a string, or after a backslash, there can be no comment."""
    if before == after:
        return True
    try:
        return ast.dump(ast.parse(before)) == ast.dump(ast.parse(after)) and _names(_comments(after)) > _names(_comments(before))
    except SyntaxError:
        return False


def _names(comments: Mapping[int, tuple[int, str]]) -> int:
    return sum(len(found[1].split(",")) for _, text in comments.values() if (found := IGNORE.search(text)) is not None)
