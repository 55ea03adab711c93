"""The story of `gradcheck scan -- COMMAND`: the program is started as the user would, and scanned inside its own process.

`scan_program` is the parent's part, without torch. The module itself is what each process of the program runs: of those of a launcher
all take the same steps, and rank 0 judges and reports.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gradcheck import interrupts, rank
from gradcheck.errors import GradcheckError, TargetError
from gradcheck.files import temporary_folder, write_text
from gradcheck.live.command import UserProgram
from gradcheck.live.launch import launch
from gradcheck.live.messages import deaf, received, send, speaking
from gradcheck.types.location import Location

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.types.report import Report

CHILD = "gradcheck.cli.program"
STDERR = 2
FAILED = 2  # exit code
BUG = "this is a bug in gradcheck; please report it with the lines above"


@dataclasses.dataclass(frozen=True)
class ProcessOrders:
    """What the processes are told."""

    run: Mapping[str, Any]  # how the program is run, as a ScriptSpec has it
    config: list[str]
    isolated: bool
    flags: Mapping[str, Any]  # settings of the command line


def run_of(spec: ScriptSpec) -> dict[str, Any]:
    """What does not depend on the program."""
    return {"steps": spec.steps, "budget": spec.budget, "sandbox": spec.sandbox, "quiet": spec.quiet, "replay": spec.replay}


def scan_program(program: UserProgram, orders: ProcessOrders, progress: Callable[[str, float], None] | None = None) -> list[Report]:
    """The reports of a program that is run until it has taken some steps; none where another machine's process reports.

    What the program prints goes to stderr. Raises TargetError as a scan does, and KeyboardInterrupt on Ctrl-C.
    """
    from gradcheck.saved_run import load_all

    last: dict[str, Any] = {}

    def hear(said: dict[str, Any]) -> bool:
        if said["kind"] == "tick" and progress is not None:
            progress(said["phase"], said["fraction"])
        elif said["kind"] == "end":
            last.update(said)
        return bool(last)

    with temporary_folder() as folder:
        file = Path(folder) / "run.json"
        order = dataclasses.asdict(orders) | {"report": str(file)}
        ended = launch(program, CHILD, order, Path(folder), nullcontext({"stdout": STDERR}), hear)
        if ended.interrupted or last.get("interrupted"):
            raise KeyboardInterrupt
        if "error" in last:
            raise TargetError(last["error"], hint=last["hint"], location=_location(last["location"]))
        if "failure" in last:
            raise TargetError(f"gradcheck failed: {last['failure']}", hint=BUG)
        if last.get("elsewhere"):
            return []
        if program.launcher and ended.code == FAILED:  # it has said what is wrong with its options
            raise SystemExit(FAILED)
        if not file.exists():
            hint = "it may replace its process or start others that train: put that after --"
            raise TargetError(f"{program.name} ended with exit code {ended.code} before gradcheck could judge it", hint=hint)
        return list(load_all(file))


def _location(told: dict[str, Any] | None) -> Location | None:
    return Location(**(told | {"detail": _location(told["detail"])})) if told is not None else None


def main() -> None:
    """In the program's process."""
    started = time.perf_counter()
    order = received()
    with speaking(order) as pipe, interrupts.ending() if not order.get("launched") else nullcontext():
        told = _scanned(order, pipe, started)
        if order.get("launched"):
            deaf()
        send(pipe, "end", **(told if rank.launched()[0] == 0 else {"elsewhere": True}))
    sys.exit(interrupts.exit_code() if told.get("interrupted") and not order.get("launched") else 0)


def _scanned(order: dict[str, Any], pipe: IO[str], started: float) -> dict[str, Any]:
    """Scans, writes the reports, and returns what the parent is told in the end."""
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.config.settings import load

    def progress(phase: str, fraction: float) -> None:
        send(pipe, "tick", phase=phase, fraction=fraction)

    try:
        settings = load(config=order["config"], isolated=order["isolated"]).with_flags(**order["flags"])
        run = order["run"] | {"kind": order["kind"], "arguments": tuple(order["arguments"])}
        progress("importing torch", 0.0)
        from gradcheck.pipeline import scan_script
        from gradcheck.saved_run import dumps_all

        reports = scan_script(ScriptSpec(order["what"], **run), settings, progress, started)
        if reports:
            write_text(Path(order["report"]), dumps_all(reports))
    except Exception as error:
        return {"interrupted": True} if interrupts.received() else _failed(error)
    except KeyboardInterrupt:
        return {"interrupted": True}
    return {}


def _failed(error: Exception) -> dict[str, Any]:
    if isinstance(error, GradcheckError):
        place = dataclasses.asdict(error.location) if error.location is not None else None
        return {"error": error.message, "hint": error.hint, "location": place}
    traceback.print_exception(error)
    return {"failure": f"{type(error).__name__}: {error}"}
