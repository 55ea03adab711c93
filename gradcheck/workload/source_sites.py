"""Where in the user's source a module is created, and where a function is called.

A frame's `f_lasti` and `code.co_positions()` give the exact span of the running expression. Frames belong to the user, to an
installed package, to torch, or to gradcheck; the user's are what we point at, the package's line is the `detail`.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import re
import sys
import sysconfig
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from gradcheck.errors import TargetError
from gradcheck.types.location import Location, path_and_cell

Origin = Literal["user", "package", "torch", "tap", "gradcheck", "hidden"]

_GRADCHECK = str(Path(__file__).resolve().parent.parent) + os.sep
# gradcheck's code that runs inside the user's calls.
_RECORDING = tuple(("recorder recording forward backward steps step_log births rows tape nodes updates forgotten silent").split())
_TAPS = (
    *(_GRADCHECK + folder + os.sep for folder in ("bisect", "instrument", "measure", "live")),
    *(f"{_GRADCHECK}training{os.sep}{name}.py" for name in ("trainer", "clip")),
    f"{_GRADCHECK}workload{os.sep}training_copy.py",
    *(f"{_GRADCHECK}capture{os.sep}{name}.py" for name in _RECORDING),
)
_TORCH = str(Path(torch.__file__).resolve().parent) + os.sep
_INSTALLED = tuple({os.path.realpath(sysconfig.get_path(x)) + os.sep for x in ("stdlib", "platstdlib", "purelib", "platlib")})

# (id(code), offset) -> (code, span). By identity: equal code of two files compares equal. The code is held so that its id stays its own.
_spans: dict[tuple[int, int], tuple[CodeType, Location]] = {}
_positions: dict[int, tuple[CodeType, list[tuple[int | None, int | None, int | None, int | None]]]] = {}

# A decorated `__init__` puts a few foreign frames between the frames of one object's constructor chain.
_FOREIGN_FRAMES = 6


@functools.lru_cache(maxsize=4096)
def origin_of(filename: str) -> Origin:
    """Whose code a file holds. "tap": gradcheck's measuring code, which runs inside the user's calls."""
    if filename.startswith("<"):
        return "hidden"
    path = os.path.realpath(filename)
    if path.startswith(_TORCH):
        return "torch"
    if path.startswith(_GRADCHECK):
        return "tap" if path.startswith(_TAPS) else "gradcheck"
    if path.startswith(_INSTALLED) or f"{os.sep}site-packages{os.sep}" in path or f"{os.sep}dist-packages{os.sep}" in path:
        return "package"
    return "user"


# (folder, folder that it is a copy of, working directory): places in the copy are shown as places in the original.
_copies: list[tuple[str, str, str]] = []


@contextmanager
def moved(copy: str, original: str) -> Iterator[None]:
    """While active, files of one folder are shown as those of the folder that it was copied from."""
    _copies.append((_folder(copy), _folder(original), os.path.realpath(os.getcwd())))
    origin_of.cache_clear()
    try:
        yield
    finally:
        _copies.pop()


def _folder(path: str) -> str:
    return os.path.realpath(path).rstrip(os.sep) + os.sep


# Code that is compiled without a file has a name instead, which a notebook gives. File as Python calls it -> name.
_namers: list[Callable[[str], str | None]] = []


def named_by(namer: Callable[[str], str | None]) -> None:
    """From now on files that `namer` knows are shown by the names that it gives."""
    _namers.append(namer)


def display_path(path: str | Path) -> str:
    """Relative to the working directory when it lies inside, else absolute."""
    name = next((name for namer in _namers if (name := namer(str(path)))), None)
    if name is not None:
        return name
    absolute, here = os.path.realpath(path), os.path.realpath(os.getcwd())
    for copy, original, folder in _copies:
        if absolute.startswith(copy):
            absolute, here = original + absolute.removeprefix(copy), folder
    return os.path.relpath(absolute, here) if absolute.startswith(here.rstrip(os.sep) + os.sep) else absolute


def readable_path(shown: str | Path) -> str:
    """Where the file that runs under a displayed path is read: in the copy, while there is one."""
    for copy, original, folder in reversed(_copies):
        absolute = os.path.realpath(os.path.join(folder, shown))
        if absolute.startswith(original) and os.path.isfile(copy + absolute.removeprefix(original)):
            return copy + absolute.removeprefix(original)
    return str(shown)


def location_of_frame(frame: FrameType | None, *, torch_detail: bool = False) -> Location | None:
    """The innermost expression of the user's code that is running at or above `frame`.

    When it runs an installed package's code, that line is the `detail` (torch's own lines only with `torch_detail`). Without a user's
    line below gradcheck's own frames the package's line is the location; None when there is neither.
    """
    detail: Location | None = None
    while frame is not None:
        origin = origin_of(frame.f_code.co_filename)
        if origin == "user":
            span = span_of(frame.f_code, frame.f_lasti)
            return replace(span, detail=detail) if detail is not None else span
        if origin == "gradcheck":
            return _recorded(frame, detail)
        if detail is None and (origin == "package" or (origin == "torch" and torch_detail)):
            detail = span_of(frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return detail


def _recorded(frame: FrameType, detail: Location | None) -> Location | None:
    """The expression that a replay repeats, if `frame` is a call of one: a local variable there names it."""
    place = frame.f_locals.get("recorded_place") if frame.f_code.co_name == "_call" else None
    if not isinstance(place, Location):
        return detail
    return replace(place, detail=detail) if detail is not None else place


def location_of_traceback(traceback: TracebackType | None) -> Location | None:
    """The innermost line of the user's code that an exception passed through."""
    found: Location | None = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if origin_of(code.co_filename) == "user":
            found = span_of(code, traceback.tb_lasti)
        traceback = traceback.tb_next
    return found


def span_of(code: CodeType, offset: int) -> Location:
    """The expression that the instruction at byte `offset` of `code` belongs to."""
    key = (id(code), offset)
    if key not in _spans:
        _spans[key] = (code, _span(code, offset))
    return _spans[key][1]


def _span(code: CodeType, offset: int) -> Location:
    if id(code) not in _positions:
        _positions[id(code)] = (code, list(code.co_positions()))
    positions = _positions[id(code)][1]
    line, end_line, column, end_column = positions[offset // 2] if 0 <= offset // 2 < len(positions) else (None,) * 4
    line = line or code.co_firstlineno
    end_line = end_line or line
    path, cell = path_and_cell(display_path(code.co_filename))
    return Location(
        path=path,
        line=line,
        column=_character(code.co_filename, line, column or 0),
        end_line=end_line,
        end_column=_character(code.co_filename, end_line, end_column) if end_column is not None else 0,
        scope="" if code.co_qualname == "<module>" else code.co_qualname,
        cell=cell,
    )


def _character(filename: str, line: int, byte: int) -> int:
    """Column from 1 in characters, from a 0-based offset in UTF-8 bytes."""
    text = linecache.getline(filename, line)
    return len(text.encode()[:byte].decode(errors="replace")) + 1 if text else byte + 1


Constructed = nn.Module | Optimizer


class Sites:
    """Creation expressions of the modules and optimizers that were constructed while recording."""

    def __init__(self) -> None:
        self.recording = True
        self.made: Counter[Location] = Counter()  # layers with parameters of their own, by the expression
        self._seen: dict[int, tuple[weakref.ref[Constructed], Location]] = {}

    def add(self, others: Sites) -> None:
        """What was constructed while others recorded is known here, too."""
        self._seen |= others._seen

    def living(self) -> dict[int, Location]:
        """id(object) -> Location, for all that still exist; modules that no other one lists among them."""
        return {key: place for key, (reference, place) in self._seen.items() if reference() is not None}

    def modules(self) -> list[nn.Module]:
        """The modules among them."""
        found = (reference() for reference, _ in list(self._seen.values()))
        return [m for m in found if isinstance(m, nn.Module)]

    def get(self, module: Constructed) -> Location | None:
        entry = self._seen.get(id(module))
        return entry[1] if entry is not None and entry[0]() is module else None

    def constructed(self, module: Constructed, frame: FrameType | None) -> None:
        place = location_of_frame(_outside_constructor(module, frame), torch_detail=True)
        self._note(module, place)
        if place is not None and hasattr(type(module), "reset_parameters"):  # its own attributes are not there yet
            self.made[place] += 1

    def unpickled(self, module: Constructed, frame: FrameType | None) -> None:
        """A copy gets the place of its original: that is the expression to edit."""
        template = _copied_from(frame)
        place = self.get(template) if template is not None else None
        self._note(module, place or location_of_frame(frame))

    def _note(self, module: Constructed, place: Location | None) -> None:
        if place is not None:
            self._seen[id(module)] = (weakref.ref(module), place)


@contextmanager
def record_sites() -> Iterator[Sites]:
    """While active, notes the expression that constructs (or deep-copies) each torch module, and constructs each optimizer."""
    sites = Sites()
    _spans.clear()
    _positions.clear()
    constructor, restore, optimizer = nn.Module.__init__, nn.Module.__setstate__, Optimizer.__init__
    setattr(nn.Module, "__init__", _recording(constructor, sites, sites.constructed))  # noqa: B010
    setattr(Optimizer, "__init__", _recording(optimizer, sites, sites.constructed))  # noqa: B010
    setattr(nn.Module, "__setstate__", _recording(restore, sites, sites.unpickled))  # noqa: B010
    try:
        yield sites
    finally:
        setattr(nn.Module, "__init__", constructor)  # noqa: B010
        setattr(Optimizer, "__init__", optimizer)  # noqa: B010
        setattr(nn.Module, "__setstate__", restore)  # noqa: B010
        sites.recording = False  # a class body may have kept the wrapped method


def _recording(method: Callable[..., Any], sites: Sites, note: Callable[[Constructed, FrameType | None], None]) -> Callable[..., Any]:
    @functools.wraps(method)
    def recorded(self: Constructed, *args: Any, **kwargs: Any) -> Any:
        if sites.recording:
            note(self, sys._getframe(1))
        return method(self, *args, **kwargs)

    return recorded


def _outside_constructor(module: Constructed, frame: FrameType | None) -> FrameType | None:
    """The frame that evaluates `Class(...)`: above every frame whose first argument is the module itself."""
    outside, foreign = frame, 0
    while frame is not None and foreign < _FOREIGN_FRAMES:
        if _first_argument(frame) is module:
            outside, foreign = frame.f_back, 0
        else:
            foreign += 1
        frame = frame.f_back
    return outside


def _first_argument(frame: FrameType) -> Any:
    """The first positional argument; of a decorator's `wrapper(*args, **kwargs)` the first of `args`."""
    code = frame.f_code
    if code.co_argcount:
        return frame.f_locals.get(code.co_varnames[0])
    if code.co_flags & inspect.CO_VARARGS:
        arguments = frame.f_locals.get(code.co_varnames[code.co_kwonlyargcount])
        return arguments[0] if isinstance(arguments, tuple) and arguments else None
    return None


_COPIERS = ("copy", "gradcheck.workload.copying")


def _copied_from(frame: FrameType | None) -> nn.Module | None:
    """The module that `copy.deepcopy` is copying when it restores the state of the copy."""
    for _ in range(_FOREIGN_FRAMES):
        if frame is None:
            return None
        if frame.f_code.co_name == "_reconstruct" and frame.f_globals.get("__name__") in _COPIERS:
            original = frame.f_locals.get("x")
            return original if isinstance(original, nn.Module) else None
        frame = frame.f_back
    return None


_SHADOWED = re.compile(r"^module 'gradcheck' has no attribute|^cannot import name .* from 'gradcheck'|^No module named 'gradcheck\.")


def one_line(text: str) -> str:
    """Someone else's text on one line of a message of ours; of a traceback, as a data loader's worker sends it, the beginning and end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        lines = [lines[0], lines[-1]]
    return " ".join(lines)


def failure(what: str, error: BaseException, hint: str = "") -> TargetError:
    """A TargetError for an exception from the user's code, at the user's innermost line."""
    place = location_of_traceback(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        column = error.offset or 1
        path, cell = path_and_cell(display_path(error.filename))
        place = Location(path, error.lineno or 1, column, error.end_lineno or 0, error.end_offset or 0, cell=cell)
        hint = hint or "correct the syntax"
    elif isinstance(error, ModuleNotFoundError):
        hint = hint or f"install what provides {error.name} in the environment that gradcheck runs in, or run gradcheck from its folder"
    elif isinstance(error, SystemExit):
        message = f"{what}: it exits by itself (SystemExit: {error.code})"
        next_step = "gradcheck imports the file: put what runs under `if __name__ == '__main__':`, so that importing only builds the model"
        return TargetError(message, hint=hint or next_step, location=place)
    text = one_line(str(error))
    if _SHADOWED.search(text):
        hint = "a file of yours is named gradcheck.py, or a folder gradcheck, like this package: rename it"
    first = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return TargetError(f"{what}: {first}", hint=hint or "correct it, or name another target", location=place)
