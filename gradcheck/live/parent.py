"""The parent of a watched program: starts it, shows its messages, lets its own output through, and collects its report."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradcheck.files import temporary_folder
from gradcheck.live.acting import Actor
from gradcheck.live.command import UserProgram
from gradcheck.live.launch import launch
from gradcheck.live.record_file import board_file
from gradcheck.live.screen import Lines, Screen, Terminal
from gradcheck.saved_run import shaped
from gradcheck.types.gauges import Frame, live_findings
from gradcheck.types.report import Report

CHILD = "gradcheck.live.child"


@dataclass
class ProgramEnding:
    """How a watched program ended."""

    code: int  # as the shell has it: 128 + the signal that killed it
    interrupted: bool = False
    stopped: str = ""  # code of the finding that ended it
    failure: str = ""  # of gradcheck's own code
    unsaved: str = ""  # why the run could not be saved
    elsewhere: bool = False  # another machine's process reports
    report: Report | None = None


@dataclass
class Orders:
    """What the child is told."""

    every: int | None
    overhead: float
    stop_on: str | None
    keep_spikes: int = 0
    spikes: str = ""  # folder for their batches
    record: str = ""  # where the run is saved as it goes; "": nowhere for good
    config: list[str] = field(default_factory=list)
    isolated: bool = False
    flags: dict[str, Any] = field(default_factory=dict)


def run(program: UserProgram, orders: Orders, actor: Actor, *, color: str = "auto", quiet: bool = False) -> ProgramEnding:
    """Runs the program to its end; `actor` hears of findings. Raises ConfigError where processes cannot be given a pipe."""
    screen = _screen(program, color, quiet)
    ending = ProgramEnding(0)

    def hear(said: dict[str, Any]) -> bool:
        kind = said.pop("kind")
        if kind == "frame":
            frame = shaped(Frame, said)
            screen.show(frame)
            actor.look(frame.findings, frame.step)
        elif kind == "end":
            ending.stopped, ending.failure = said.get("stopped", ""), said.get("failure", "")
            ending.unsaved, ending.elsewhere = said.get("unsaved", ""), said.get("elsewhere", False)
        return bool(kind == "end")

    with temporary_folder() as folder:
        spare = Path(folder) / "run.json"
        file = Path(orders.record or spare)
        before = _written(file)
        order = vars(orders) | {"report": str(file), "spare": str(spare), "shown": bool(orders.record), "parent": os.getpid()}
        ended = launch(program, CHILD, order, Path(folder), screen.opened(), hear, screen.started)
        ending.code, ending.interrupted = ended.code, ended.interrupted
        board_file(file).unlink(missing_ok=True)  # of a program that was killed
        if _written(file) not in (None, before) or _written(spare) is not None:
            ending.report = Report.load(spare if _written(spare) is not None else file)
            actor.look(live_findings(ending.report.findings), ending.report.measurement.steps)
        actor.finish()
        return ending


def _written(file: Path) -> tuple[int, int] | None:
    """What tells one version of a file from another."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _screen(program: UserProgram, color: str, quiet: bool) -> Screen:
    if quiet:
        return Screen()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal(program.name, color)
    return Lines()
