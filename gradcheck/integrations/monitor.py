"""What the callbacks of all trainers share: a board around one training; each finding is reported once, and the report saved."""

import atexit
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcheck.config.settings import EVERY, OVERHEAD, Settings
from gradcheck.errors import GradcheckError
from gradcheck.judge.consensus import key
from gradcheck.live.cadence import EARLY
from gradcheck.live.live_judge import at_least
from gradcheck.live.sinks import Sink
from gradcheck.live.watch import Board, watched
from gradcheck.report.formatting import summary
from gradcheck.types.finding import Finding, Severity
from gradcheck.types.report import Report

FILE = "gradcheck.json"


class Monitor:
    """Settings of a callback, and the board while a training runs. `say` gets lines for the user's log.

    `stopped` is the finding for which the trainer is to stop; the trainer is told by its callback, and ends in its own way. Of a
    distributed training every rank has a monitor, and that of rank 0 speaks, saves and stops.
    """

    def __init__(
        self,
        every: int | None = None,
        stop_on: Severity | None = None,
        save: str | Path | bool = True,
        sinks: Sequence[Sink] = (),
        config: Settings | Mapping[str, Any] | str | Path | None = None,
        overhead: float = OVERHEAD,
    ) -> None:
        self.every, self.stop_on, self.save = every, stop_on, save
        self._options: dict[str, Any] = {"every": every, "overhead": overhead, "sinks": sinks, "config": config}
        watched(nn.Identity(), stop_on=stop_on, **self._options)  # says now what is wrong with the settings
        self.board: Board | None = None
        self.report: Report | None = None
        self.stopped: Finding | None = None
        self._said: set[str] = set()
        self._say: Callable[[str], None] = print
        self._folder = Path()

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, *, folder: str | Path, say: Callable[[str], None], taken: int = 0
    ) -> None:
        """Starts to watch. `folder`: where the trainer writes its files; `taken`: steps before, of a resumed training."""
        global _latest
        previous = _latest() if _latest is not None else None
        if previous is not None:
            previous.end()  # a training that ended by an exception, where the trainer did not tell
        self._say, self._folder = say, Path(folder)
        self._said.clear()
        self.stopped = self.report = None
        name = f"the training of {type(model).__name__}"
        self.board = watched(model, optimizer, name=name, on_measured=self._measured, **self._options)
        self.board.feed.taken = taken
        self.board.start()
        _latest = weakref.ref(self)
        atexit.register(self.end)  # after an exception or Ctrl-C that the trainer does not report, there is a report anyway

    def end(self) -> None:
        """Takes the hooks out, says what is new, and saves the report. May be called again."""
        global _latest
        board, self.board = self.board, None
        if board is None:
            return
        _latest = None
        atexit.unregister(self.end)
        board.close()
        if not board.leads:
            return
        if board.failure is not None:
            self._say(f"gradcheck stopped watching at step {board.steps}: {type(board.failure).__name__}: {board.failure}")
        if not board.record.measured:
            self._say("gradcheck: no step of the optimizer was seen, so there is no report")
            return
        self.report = board.report()
        self._tell(self.report)
        self._save(self.report)

    def _save(self, report: Report) -> None:
        """The training is over and must not fail now: errors are only reported."""
        path = self.path
        if path is None:
            return
        try:
            if self.save is True:
                path.parent.mkdir(parents=True, exist_ok=True)
            report.to_json(path)
        except (GradcheckError, OSError) as error:
            self._say(f"gradcheck: the report was not saved: {error}")
        else:
            self._say(f"gradcheck: {summary(report)} gradcheck report {path} shows it")

    @property
    def path(self) -> Path | None:
        """Where the report is saved."""
        if self.save is False:
            return None
        return self._folder / FILE if self.save is True else Path(self.save)

    def speaks(self, step: int) -> bool:
        """Whether the processes ask each other after this step, from 0 in this run of the trainer, if one is to stop."""
        return step < EARLY or step % (self.every or EVERY) == 0

    def _measured(self, board: Board) -> None:
        if not board.due():
            return
        report = board.report()
        self._tell(report)
        if self.stop_on is not None and self.stopped is None:
            self.stopped = at_least(report.findings, self.stop_on)
            if self.stopped is not None:
                self._say(f"gradcheck stops the training at step {board.steps}: {self.stopped.name} ({self.stopped.code})")

    def _tell(self, report: Report) -> None:
        for finding in report.headlines:
            which = f"{finding.severity}:{key(finding, '', Path())}"
            if which not in self._said:
                self._said.add(which)
                place = f"{finding.location}: " if finding.location is not None else ""
                self._say(f"gradcheck: {place}{finding.name} ({finding.code}) {finding.severity}: {finding.message}")


class Monitored:
    """What the callbacks of trainers are given and show; see `Monitor`."""

    def __init__(
        self,
        every: int | None = None,
        stop_on: Severity | None = None,
        *,
        save: str | Path | bool = True,
        sinks: Sequence[Sink] = (),
        config: Settings | Mapping[str, Any] | str | Path | None = None,
        overhead: float = OVERHEAD,
    ) -> None:
        super().__init__()
        self._monitor = Monitor(every, stop_on, save, sinks, config, overhead)
        self._taken = 0

    @property
    def report(self) -> Report | None:
        """Of the last training that ended, in the process of rank 0."""
        return self._monitor.report

    @property
    def stopped(self) -> Finding | None:
        """The finding for which the training was stopped."""
        return self._monitor.stopped


_latest: weakref.ref[Monitor] | None = None  # the monitor whose board is open
