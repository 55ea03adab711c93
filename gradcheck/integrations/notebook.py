"""Notebooks: `%load_ext gradcheck`, `%%gradcheck` over a cell that trains, and a board that lives in a cell.

%load_ext gradcheck

%%gradcheck
for x, y in loader:           # run for its first steps, on the notebook's own objects, which are put back afterwards
    ...

with gradcheck.watch(model, optimizer, on_measured=LiveBoard()) as board:
    train()
"""

from __future__ import annotations

import copy
import dataclasses
import linecache
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.display import HTML, display
from torch import nn

from gradcheck.api import watch
from gradcheck.capture.spec import LiveCell, ScriptSpec
from gradcheck.config.settings import load
from gradcheck.errors import ConfigError, GradcheckError
from gradcheck.live.sinks import frame
from gradcheck.live.watch import Board
from gradcheck.pipeline import scan_script
from gradcheck.report.html.page import of_frame, of_reports
from gradcheck.types.report import Report
from gradcheck.workload.source_sites import named_by, record_sites

EVERY = 0.25  # least seconds between two pictures of a live board
USAGE = "%%gradcheck [--budget SECONDS] [--fast] [--select RULES] [--ignore RULES], or %%gradcheck watch MODEL [OPTIMIZER]"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What `%load_ext gradcheck` calls."""
    if not isinstance(shell.magics_manager.registry.get("GradcheckMagics"), GradcheckMagics):
        shell.register_magics(GradcheckMagics(shell))


@magics_class
class GradcheckMagics(Magics):
    """From its creation on, notes where modules are made, so that findings point at those lines."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._sites = ExitStack().enter_context(record_sites())
        named_by(self._name)

    @cell_magic
    def gradcheck(self, line: str, cell: str) -> Any:
        """Scans the training of the cell: %%gradcheck [--budget SECONDS] [--fast] [--select RULES] [--ignore RULES].

        `%%gradcheck watch MODEL [OPTIMIZER]` runs the whole cell and shows a live board.
        """
        try:
            words = _words(line)
            return self._watched(words[1:], cell) if words[:1] == ["watch"] else self._scanned(line, cell)
        except GradcheckError as error:
            print(f"error: {error.message}" + (f"\nhelp: {error.hint}" if error.hint else ""), file=sys.stderr)
            return None

    def _scanned(self, line: str, cell: str) -> Report | Reports:
        settings = load().with_flags(**_flags(_words(line)))
        number = len(self.shell.history_manager.input_hist_parsed) - 1  # the shell's own count is one ahead, or not, by its version
        source = f"%%gradcheck {line}\n{cell}"
        file = self.shell.compile.cache(source, number, raw_code=source)
        code = compile("\n" + self.shell.transform_cell(cell), file, "exec", dont_inherit=True)  # lines count from the magic's
        module = sys.modules["__main__"] if vars(sys.modules["__main__"]) is self.shell.user_ns else self.shell.user_module
        board = display(HTML(""), display_id=True)
        spec = ScriptSpec("this cell", quiet=True, budget=settings.budget, kind="cell", cell=LiveCell(code, module, self._sites))

        def progress(phase: str, fraction: float) -> None:
            board.update(HTML(f"<small>gradcheck: {phase}</small>"))

        try:
            with put_back(module):
                reports = scan_script(spec, settings, progress)
        finally:
            board.update(HTML(""))
        return reports[0] if len(reports) == 1 else Reports(tuple(reports))

    def _name(self, file: str) -> str | None:
        """The cell that IPython has compiled under a name of its own."""
        number = getattr(self.shell.compile, "_filename_map", {}).get(file)
        if number is None:
            return None
        linecache.cache[name := f"cell {number}"] = linecache.cache[file]
        return name

    def _watched(self, names: list[str], cell: str) -> Board:
        found = [self.shell.user_ns.get(name) for name in names]
        if not 1 <= len(names) <= 2 or None in found:
            missing = next((name for name, value in zip(names, found, strict=True) if value is None), "")
            raise ConfigError(f"there is no {missing} in the notebook" if missing else "watch needs the name of the model", hint=USAGE)
        board = watch(*found, on_measured=LiveBoard())
        board.locate(self._sites.living(), [])
        with board:
            self.shell.run_cell(cell)
        return board


@dataclasses.dataclass(frozen=True)
class Reports:
    """What a cell with several optimizers shows."""

    reports: tuple[Report, ...]

    def _repr_html_(self) -> str:
        return of_reports(self.reports)


class LiveBoard:
    """A picture of a watched run that is renewed in its cell: `gradcheck.watch(model, optimizer, on_measured=LiveBoard())`."""

    def __init__(self, title: str = "gradcheck") -> None:
        self.title = title
        self._handle: Any = None
        self._last = 0.0
        self._report: Report | None = None

    def __call__(self, board: Board) -> None:
        """A measured step."""
        if self._handle is None:
            self._handle = display(HTML(of_frame(None, self.title)), display_id=True)
        now = time.monotonic()
        if board.due():
            self._report = board.report()
        elif now - self._last < EVERY:
            return
        self._last = now
        findings = self._report.findings if self._report is not None else ()
        self._handle.update(HTML(of_frame(frame(board.record, board.pace, findings), self.title)))


def _words(line: str) -> list[str]:
    """Raises ConfigError for a quotation without an end."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"%%gradcheck cannot read {line!r}: {error}", hint=USAGE) from error


def _flags(words: list[str]) -> dict[str, Any]:
    """`--budget 5 --select GRAD,INIT`. Raises ConfigError for what is not a flag of the magic."""
    flags: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name = word.removeprefix("--")
        value = True if name == "fast" else next(rest, None)
        if not word.startswith("--") or name not in ("budget", "fast", "select", "ignore") or value is None:
            raise ConfigError(f"%%gradcheck does not know {word!r}", hint=USAGE)
        try:
            flags[name] = float(value) if name == "budget" else value.split(",") if isinstance(value, str) else value
        except ValueError as error:
            raise ConfigError(f"--budget takes seconds, not {value!r}", hint=USAGE) from error
    return flags


@contextmanager
def put_back(module: ModuleType) -> Iterator[None]:
    """Restores the names of a notebook on the way out, and the states of the models, optimizers and containers among them."""
    names = vars(module)
    before = dict(names)
    back = [restore for value in before.values() if (restore := _keeper(value)) is not None]
    try:
        yield
    finally:
        for restore in back:
            restore()
        for name in names.keys() - before.keys():
            del names[name]
        names.update(before)


def _keeper(value: Any) -> Callable[[], None] | None:
    """What restores an object as it is now; None for what is not kept."""
    if isinstance(value, nn.Module):
        return _keeper_of_module(value)
    if isinstance(value, torch.Tensor):
        return _keeper_of_tensor(value)
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)) and not isinstance(value, type):
        state = copy.deepcopy(value.state_dict())
        return lambda: value.load_state_dict(state)
    if type(value) in (list, dict, set):
        return _keeper_of_container(value)
    return None


def _keeper_of_module(module: nn.Module) -> Callable[[], None]:
    tensors = [_keeper_of_tensor(tensor) for tensor in (*module.parameters(), *module.buffers())]
    modes = [(part, part.training) for part in module.modules()]

    def restore() -> None:
        for part, mode in modes:
            part.training = mode
        for tensor in tensors:
            tensor()

    return restore


def _keeper_of_tensor(tensor: torch.Tensor) -> Callable[[], None]:
    data, gradient = tensor.detach().clone(), tensor.grad.clone() if tensor.is_leaf and tensor.grad is not None else None

    def restore() -> None:
        with torch.no_grad():
            if tensor.data.shape == data.shape and tensor.data_ptr():
                tensor.data.copy_(data)
        if tensor.is_leaf:
            tensor.grad = gradient

    return restore


def _keeper_of_container(value: Any) -> Callable[[], None]:
    kept = copy.copy(value)

    def restore() -> None:
        value.clear()
        value.extend(kept) if isinstance(value, list) else value.update(kept)

    return restore
