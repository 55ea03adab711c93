"""A source file as bytes and as text: encoding, byte-order mark and newlines are kept as they are."""

import ast
import difflib
import functools
import hashlib
import io
import itertools
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

from gradcheck.errors import GradcheckError

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_BOM = "\ufeff".encode()


class SourceError(GradcheckError):
    """A source file cannot be read, is not Python, or must not be written."""


@dataclass(frozen=True)
class Document:
    """A file that was read; `text` has its own newlines, and no byte-order mark."""

    path: str
    data: bytes
    text: str
    encoding: str
    bom: bool

    @property
    def newline(self) -> str:
        """The line ending of the file: the one that comes first."""
        match = _NEWLINE.search(self.text)
        return match[0] if match else "\n"

    @property
    def lines(self) -> list[str]:
        """With their endings, as Python counts lines."""
        return lines_of(self.text)

    def encoded(self, text: str) -> bytes:
        """The bytes of the file with another text. Raises SourceError when its encoding lacks a character."""
        try:
            return (_BOM if self.bom else b"") + text.encode(self.encoding)
        except UnicodeEncodeError as error:
            raise SourceError(f"{self.path}: {error.reason}", hint="store the file as UTF-8") from error

    def diff(self, text: str) -> str:
        """Unified diff to another text, empty when it is the same. Newlines in it are those of the file."""
        shown = self.path.lstrip("/")
        lines = difflib.unified_diff(self.lines, lines_of(text), f"a/{shown}", f"b/{shown}")
        return "".join(line if line.endswith(("\n", "\r")) else f"{line}\n\\ No newline at end of file\n" for line in lines)


@functools.lru_cache(maxsize=16)
def line_starts(text: str) -> tuple[int, ...]:
    """Offset of each line, as Python counts lines, and the length of the text after the last one."""
    starts = [match.start() for match in _LINE.finditer(text) if match.end() > match.start()]
    return (*starts, len(text)) if starts else (0, 0)


def lines_of(text: str) -> list[str]:
    starts = line_starts(text)
    return [text[a:b] for a, b in itertools.pairwise(starts) if b > a]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(path: str | Path) -> Document:
    """Raises SourceError when the file cannot be read, decoded or parsed."""
    try:
        return parsed(str(path), Path(path).read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error


def parsed(path: str, data: bytes) -> Document:
    """A document made from bytes. Raises SourceError as `read` does."""
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        bom = data.startswith(_BOM)
        text = data[len(_BOM) if bom else 0 :].decode("utf-8" if bom else encoding)
        ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise SourceError(f"{path} is not readable Python: {error}", hint="mend the file first") from error
    document = Document(path, data, text, "utf-8" if bom else encoding, bom)
    if document.encoded(text) != data:
        raise SourceError(f"{path}: its encoding, {encoding}, does not give the same bytes again", hint="store the file as UTF-8")
    return document
