"""Finds the training of a program that knows nothing of gradcheck, and watches it from its first forward pass on."""

import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from gradcheck.config.settings import Settings, load
from gradcheck.errors import TrainingStopped
from gradcheck.instrument.loader_batches import LoaderBatches
from gradcheck.instrument.running_code import is_program, variable_of
from gradcheck.live.messages import send
from gradcheck.live.models import living_optimizers, unwrapped
from gradcheck.live.record_file import RecordFile
from gradcheck.live.sinks import frame
from gradcheck.live.watch import Board, watched
from gradcheck.types.gauges import Frame
from gradcheck.types.report import Report
from gradcheck.workload.source_sites import Sites, display_path, location_of_traceback, origin_of, record_sites

FRAME_EVERY = 0.2  # least seconds between messages to the parent


class Finder:
    """`install`, run the program, `finish`."""

    def __init__(self, order: dict[str, Any], pipe: IO[str], orphaned: Callable[[], None] = lambda: None) -> None:
        self.order, self.pipe, self.orphaned = order, pipe, orphaned
        self.file = RecordFile(Path(order["report"]), order["name"], order["overhead"], order["shown"], spare=Path(order["spare"]))
        self.process = os.getpid()  # forks of the program are not watched
        self.settings: Settings = load(config=order["config"], isolated=order["isolated"]).with_flags(**order["flags"])
        self.board: Board | None = None
        self.last: Report | None = None
        self.sites = Sites()
        self.batches = LoaderBatches()  # a loader begins before the model is called
        self._stack = ExitStack()
        self._handles: list[Any] = []
        self._told = 0.0
        self._known: tuple[Any, ...] = ()

    def install(self) -> None:
        self.sites = self._stack.enter_context(record_sites())
        self.batches.install()
        self._handles = [register_module_forward_pre_hook(self._called), register_optimizer_step_pre_hook(self._steps)]
        warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks")

    def _steps(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """A first step without any call of a module (compiled, or computed by hand) is watched from the next step on."""
        if self.board is None and os.getpid() == self.process:
            self._begin(optimizer, None, ())

    def _called(self, module: nn.Module, args: Any) -> None:
        """A module is called: the training has begun if an optimizer holds parameters of it."""
        if type(module).__name__ == "OptimizedModule":
            self._handles.pop(0).remove()  # a hook would be compiled, too; the first step will tell
            return
        if self.board is not None or not torch.is_grad_enabled() or os.getpid() != self.process:
            return
        own = {id(p) for p in module.parameters() if p.requires_grad}
        if not own:
            return
        held = [(sum(id(p) in own for g in o.param_groups for p in g["params"]), o) for o in living_optimizers()]
        most, found = max(held, key=lambda entry: entry[0], default=(0, None))
        if found is not None and any(is_lazy(p) for g in found.param_groups for p in g["params"]):
            self._handles.pop(0).remove()  # this pass makes them; the first step will tell
        elif found is not None and most:
            self._begin(found, module, args)

    def _begin(self, optimizer: Optimizer, module: nn.Module | None, args: Any) -> None:
        model = self._model(optimizer, module)
        if model is None:
            return
        self._let_go()
        order = self.order
        chosen = {name: order[name] for name in ("every", "overhead", "stop_on", "keep_spikes", "spikes", "name")}
        board = watched(model, optimizer, **chosen, on_measured=self._measured, config=self.settings)
        board.hand_over(self.batches)
        board.locate(self.sites.living(), self._files())
        self.board = board.start()
        self.file.shown = self.file.shown and board.leads
        self.file.show(None)
        if module is not None and not _is_shell(module):
            board.enter(module, args)
        others = [type(o).__name__ for o in living_optimizers() if o is not optimizer]
        send(self.pipe, "found", optimizer=type(optimizer).__name__, parameters=sum(p.numel() for p in model.parameters()), others=others)

    def _let_go(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _model(self, optimizer: Optimizer, called: nn.Module | None) -> nn.Module | None:
        """The outermost modules that hold the optimizer's parameters; several are joined into one."""
        held = {id(p) for g in optimizer.param_groups for p in g["params"]}
        modules = [m for m in (*self.sites.modules(), called) if m is not None and not _is_shell(m)]
        inner = {id(c) for m in modules for c in m._modules.values() if c is not None}
        roots = {id(m): m for m in modules if id(m) not in inner and any(id(p) in held for p in m.parameters())}
        found = list(roots.values())
        if len(found) < 2:
            return found[0] if found else unwrapped(called) if called is not None else None
        parts: dict[str, nn.Module] = {}
        for module in found:
            name = variable_of(module) or type(module).__name__.lower()
            free = name not in parts and not hasattr(nn.ModuleDict, name)
            parts[name if free else f"{name}{len(parts)}"] = module
        return nn.ModuleDict(parts)

    def _files(self) -> list[str]:
        """The user's files that are loaded: for comments that silence findings."""
        paths = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
        mine = [p for p in paths if isinstance(p, str) and p.endswith(".py") and origin_of(p) == "user"]
        return [display_path(p) for p in dict.fromkeys(mine) if Path(p).is_file()]

    # ------------------------------------------------------------------ telling

    def _measured(self, board: Board) -> None:
        now = time.perf_counter()
        if board.due():
            self.last = board.report()
            self.file.save(self.last)
        findings = self.last.findings if self.last is not None else ()
        new = tuple((f.code, f.message) for f in findings) != self._known
        if now - self._told >= FRAME_EVERY or new or board.steps <= 1:
            self._told, self._known = now, tuple((f.code, f.message) for f in findings)
            self._show(frame(board.record, board.pace, findings))

    def _show(self, shown: Frame) -> None:
        self.file.show(shown)
        if not send(self.pipe, "frame", **dataclasses.asdict(shown)):
            self.orphaned()

    def finish(self, error: BaseException | None) -> None:
        """The last report. `error`: what ended the program."""
        self._stack.close()
        self._let_go()
        self.batches.remove()
        if self.board is None or os.getpid() != self.process:
            send(self.pipe, "end", seen=False)
            return
        board = self.board
        board.close()
        if not board.leads:
            send(self.pipe, "end", elsewhere=True)
            return
        failure = board.failure
        seen = board.steps > 0 or any(f.code == "LOOP001" for f in board.findings)
        if seen:
            self.file.save(board.report(), always=True)
            self._show(frame(board.record, board.pace, board.findings))
        self.file.close()
        stopped = error.finding.code if isinstance(error, TrainingStopped) and error.finding is board.stopped else ""
        place = location_of_traceback(error.__traceback__) if error is not None else None
        failed = f"{type(failure).__name__}: {failure}" if failure is not None else ""
        send(self.pipe, "end", seen=seen, stopped=stopped, failure=failed, unsaved=self.file.why, place=str(place or ""))


def _is_shell(module: nn.Module) -> bool:
    """Whether it stands for the program, and its parts for the model."""
    return is_program(module) and not any(p is not None for p in module._parameters.values())
