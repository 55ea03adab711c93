"""The saved run of a training that is going on, and beside it a small file with the board, for `gradcheck watch --attach`. No torch here.

Both are replaced whole: whatever ends the process, the files can be read. The small one is removed when the run ends.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from gradcheck.report.saved_runs import FOLDER, folder
from gradcheck.types.gauges import Frame
from gradcheck.types.report import Report

EARLY = 5  # first times that a run is saved at once, so that a short run leaves something, too
BOARD_EVERY = 1.0  # seconds between two boards, at least
SAVING = 1 / 8  # of what watching may take, for saving the run


def board_file(run: Path) -> Path:
    """Beside a saved run, while it grows."""
    return run.with_name(run.name.removesuffix(".json") + ".live.json")


@dataclass
class RecordFile:
    """Written by the process that trains. `shown`: with the small file. A failure to write harms nothing: `why` gives the reason."""

    path: Path
    title: str
    share: float  # of the run's time that watching may take
    shown: bool = True
    why: str = ""
    spare: Path | None = None  # where the last report goes if it cannot be saved
    _times: int = 0
    _told: float = 0.0
    _spent: float = 0.0
    _took: float = 0.0  # by the last time

    def show(self, frame: Frame | None) -> None:
        now = time.monotonic()
        if not self.shown or (now - self._told < BOARD_EVERY and frame is not None):
            return
        self._told = now
        words = {"process": os.getpid(), "born": born(os.getpid()), "host": socket.gethostname(), "title": self.title, "at": time.time()}
        frames = dataclasses.asdict(frame) if frame is not None else None
        place = board_file(self.path)
        new = place.with_name(f"{place.name}.{os.getpid()}")
        try:
            if self.path.parent.name == FOLDER.name and not self.path.parent.exists():
                folder(self.path.parent.parent)
            new.write_text(json.dumps(words | {"frame": frames}), encoding="utf-8")
            new.replace(place)
        except OSError as error:
            self.why = f"{place}: {error.strerror}"
            with contextlib.suppress(OSError):
                new.unlink()

    def save(self, report: Report, *, always: bool = False) -> None:
        """As often as its part of the share allows."""
        from gradcheck.errors import SavedRunError

        self._times += 1
        early = self._times <= EARLY
        if not (always or early) and self._spent + self._took > SAVING * self.share * report.seconds:
            return
        started = time.perf_counter()
        try:
            report.to_json(self.path)
            self.why = ""
        except SavedRunError as error:
            self.why = self.why or str(error)  # that of the folder comes first
            if always and self.spare is not None:
                with contextlib.suppress(SavedRunError):
                    report.to_json(self.spare)
        self._took = time.perf_counter() - started
        self._spent += 0.0 if early else self._took

    def close(self) -> None:
        if self.shown:
            with contextlib.suppress(OSError):
                board_file(self.path).unlink(missing_ok=True)


def born(process: int) -> str:
    """What distinguishes a process from a later one with the same number; "" if the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(process: int, since: str) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return born(process) == since
