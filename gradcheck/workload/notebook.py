"""A notebook: its code cells run one after another, each as a file of its own, named `PATH:cell NUMBER`. Magics are left out."""

from __future__ import annotations

import ast
import importlib.util
import io
import linecache
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from gradcheck import files
from gradcheck.errors import TargetError
from gradcheck.types.location import cell_file

SUFFIX = ".ipynb"
PYTHON_CELLS = ("time", "timeit", "capture", "prun")  # magics of a cell that is Python anyway
_TIMED = re.compile(r"(\s*)%time (?=\s*[^\s-])")
_QUESTION = re.compile(r"\?{1,2}[\w.*]+|[\w.*]+\?{1,2}")
_ASSIGNED = re.compile(r"(\s*)([A-Za-z_][\w.,\[\]'\" ]*?\s*=)\s*[!%].*", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    number: int  # among all cells of the notebook, from 1 on
    source: str


def code_cells(path: str) -> list[Cell]:
    """Raises TargetError for what is not a notebook, is written for another language, or holds no code."""
    try:
        data = files.parsed(Path(path))
    except OSError as error:
        raise TargetError(f"cannot read {path}: {error.strerror}", hint="name the notebook") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise TargetError(f"{path} is not a notebook: it is not JSON ({error})", hint="open it in Jupyter and save it again") from error
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        old = isinstance(data, dict) and "worksheets" in data
        hint = f"jupyter nbconvert --to notebook --nbformat 4 --inplace {path}" if old else "open it in Jupyter and save it again"
        raise TargetError(f"{path} is not a notebook of format 4: it has no list of cells", hint=hint)
    _check_language(path, data.get("metadata"))
    cells = [(i, c) for i, c in enumerate(data["cells"], 1) if isinstance(c, dict) and c.get("cell_type") == "code"]
    found = [Cell(i, _text(c.get("source"))) for i, c in cells]
    if not any(c.source.strip() for c in found):
        raise TargetError(f"{path} has no code cells", hint="name the notebook that trains")
    return found


def _check_language(path: str, metadata: Any) -> None:
    known = metadata if isinstance(metadata, dict) else {}
    kernel, info = (part if isinstance(part := known.get(key), dict) else {} for key in ("kernelspec", "language_info"))
    language = kernel.get("language") or info.get("name") or "python"
    if str(language).lower() not in ("python", "ipython"):
        name = kernel.get("display_name") or kernel.get("name") or language
        raise TargetError(
            f"{path} is written for the kernel {name}, not for Python", hint="gradcheck runs notebooks whose kernel is Python"
        )


def _text(source: Any) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source or "")


def start(path: str, names: dict[str, Any]) -> Iterator[CodeType]:
    """The code of each cell, compiled when the ones before it have run. `names`: of the notebook."""
    names.update(get_ipython=Shell, display=_Nothing(), In=[], Out={})
    absolute = os.path.abspath(path)
    for cell in code_cells(path):
        file = cell_file(absolute, cell.number)
        linecache.cache[file] = (len(cell.source), None, cell.source.splitlines(keepends=True), file)
        yield compile(python_of(cell.source), file, "exec", dont_inherit=True)


def python_of(source: str) -> str:
    """A cell without its magics; what is left stays at its line and column."""
    lines = source.splitlines(keepends=True)
    first = next((i for i, text in enumerate(lines) if text.strip()), 0)
    if lines and lines[first].startswith("%%"):
        if lines[first][2:].split()[:1] not in [[name] for name in PYTHON_CELLS]:
            return ""
        lines[first] = "\n"
    text = "".join(lines)
    try:
        ast.parse(text)
        return text
    except (SyntaxError, ValueError):
        return "".join(_without_magics(lines))


def _without_magics(lines: list[str]) -> Iterator[str]:
    pending = ""  # since the last magic: within a statement of several lines there is none
    goes_on = False  # a command of the shell, on the next line
    for text in lines:
        replaced = "\n" if goes_on else _replaced(text)
        if replaced is not None and (goes_on or _complete(pending)):
            pending, goes_on = "", text.rstrip().endswith("\\")
            yield replaced
        else:
            pending += text
            yield text


def _replaced(line: str) -> str | None:
    """The replacement of a line with a magic, a shell command or a question; None for other lines."""
    body = line.strip()
    indent = line[: len(line) - len(line.lstrip())]
    if timed := _TIMED.match(line):
        return f"{timed[1]}None; {line[timed.end() :]}"  # as wide as `%time `
    if body.startswith(("%", "!")) or _QUESTION.fullmatch(body):
        return f"{indent}pass\n"
    if assigned := _ASSIGNED.fullmatch(line):
        return f"{assigned[1]}{assigned[2]} []\n"
    return None


def _complete(text: str) -> bool:
    """Whether a statement ends where the text ends."""
    if text.rstrip("\n").endswith("\\"):
        return False
    try:
        for _ in tokenize.generate_tokens(io.StringIO(text).readline):
            pass
    except tokenize.TokenError:
        return False
    except SyntaxError:
        return True
    return True


class _Nothing:
    """Does nothing when it is called, and so do its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class Shell:
    """Stands for IPython: its magics do nothing. It is false, so that libraries do not hook into it (matplotlib's drawing does)."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return (lambda *args, **kwargs: []) if name in ("getoutput", "user_ns") else _Nothing()

    def __bool__(self) -> bool:
        return False


class _Display(ModuleType):
    """Stands for IPython's modules where it is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known: dict[str, Any] = {"get_ipython": Shell, "version_info": (9, 0, 0, "")}  # as matplotlib asks for
        return known.get(name) or _Nothing()


@contextmanager
def shell() -> Iterator[None]:
    """While active, `from IPython.display import ...` works without IPython too."""
    names = () if importlib.util.find_spec("IPython") is not None else ("IPython", "IPython.display")
    for name in names:
        sys.modules[name] = _Display(name)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
