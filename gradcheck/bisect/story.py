"""The story of a bisection: A is run at least twice, B once, each in its own process; their recordings are compared."""

import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradcheck import interrupts
from gradcheck.analysis.wording import counted
from gradcheck.bisect import wording
from gradcheck.bisect.compare import EXACT, GROUP, Comparison, Pair, compare
from gradcheck.bisect.recording import RunRecording, load
from gradcheck.errors import ConfigError, TargetError
from gradcheck.files import temporary_folder
from gradcheck.live.command import check_interpreter, program_of
from gradcheck.live.launch import launch
from gradcheck.types.bisection import Bisection, Parting, StepDistances, Verdict

CHILD = "gradcheck.bisect.child"
LISTED = 12  # partings that are reported
ROOM = 1 << 16  # bytes that a folder is to have left; measured: the recordings of 20 steps of small models take 2 to 20 kB
TAIL = 12  # lines of a failed program's output that are shown


@dataclass(frozen=True)
class BisectOrders:
    """`repeats`: runs of A at least, 2 or more; a third is made where the two are not equal. `seed`: what the programs are seeded with
    before they begin, None for not at all."""

    steps: int = 20
    repeats: int = 2
    tolerance: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Side:
    """A program, or a recording of it."""

    text: str
    runs: tuple[RunRecording, ...] = ()
    output: str = ""  # of the run that failed


def recorded(text: str, orders: BisectOrders, times: int, tell: Callable[[str], None]) -> Side:
    """Runs a program `times` times, and once more where the first two differ; or reads what was recorded of it.

    `text`: a script, a command in one word, or a recording. Raises ConfigError for a command that cannot be run, SavedRunError for a
    file that is no recording, TargetError where no step was seen.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:  # a quotation without an end
        raise ConfigError(
            f"{text!r} is not a command: {error}", hint="quote it as the shell does: 'python train.py --name \"a b\"'"
        ) from error
    if len(words) == 1 and Path(words[0]).is_file() and not words[0].endswith((".py", ".ipynb")) and not _is_program(words[0]):
        return Side(text, tuple(load(Path(words[0]))))
    runs: list[RunRecording] = []
    while len(runs) < times or (times > 1 and len(runs) == times == 2 and compare(runs, runs[0]).noisy is not None):
        tell(f"run {len(runs) + 1} of {text}")
        run, output = _run(words, orders)
        if not run.steps:
            killed = f"signal {run.code - 128} ended it: by who sent it, or for want of memory" if run.code > 128 else ""
            hint = output.rpartition("\n")[2] or killed or "it is to train with torch.optim"
            raise TargetError(f"no training step of {text} was seen{_ended(run)}", hint=hint)
        runs.append(run)
        if run.code:
            return Side(text, tuple(runs), output)
    return Side(text, tuple(runs))


def _is_program(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def _run(words: Sequence[str], orders: BisectOrders) -> tuple[RunRecording, str]:
    """What was recorded, and the end of what the program wrote."""
    program = program_of(words, "bisect")
    check_interpreter(program)
    with temporary_folder() as name:
        folder = Path(name)
        order = {"steps": orders.steps, "seed": orders.seed, "recording": str(folder / "recording")}
        ended = launch(program, CHILD, order, folder, _into(folder / "output"), lambda said: said["kind"] == "end")
        if ended.interrupted or interrupts.received():
            raise KeyboardInterrupt
        if ended.code or not (folder / "recording").exists():
            _require_room(folder)
        lines = (folder / "output").read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        if not (folder / "recording").exists():
            return RunRecording(code=ended.code), "\n".join(lines)
        run = load(folder / "recording")[0]
        return replace(run, code=run.code or ended.code), "\n".join(lines)


def _require_room(folder: Path) -> None:
    """Raises TargetError where the failure of a run may be that of the folder that it writes into."""
    try:
        (folder / "room").write_bytes(bytes(ROOM))
    except OSError as error:
        where = folder.parent
        raise TargetError(f"nothing can be recorded in {where}: {error.strerror}", hint="set TMPDIR to a folder with room") from error


@contextmanager
def _into(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("wb") as file:
        yield {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}


def _ended(run: RunRecording) -> str:
    return f"; it ended with exit code {run.code}" if run.code else ""


def bisected(a: Side, b: Side, orders: BisectOrders) -> Bisection:
    """Raises ConfigError if A was recorded only once: its noise is unknown."""
    if len(a.runs) < 2:
        if a.runs and a.runs[0].code:
            raise TargetError(f"{a.text} failed{_ended(a.runs[0])}", hint=a.output.rpartition("\n")[2])
        raise ConfigError(f"{a.text} holds one run, and the noise of A takes two", hint="record it with --repeats 2")
    other = b.runs[0]
    found = compare(a.runs, other, orders.tolerance)
    failed = any(r.code for r in (*a.runs, other))
    verdict, headline, causes = _verdict(found, a, b)
    parted = found.parted
    return Bisection(
        a.text, b.text, verdict, headline, tuple(causes), wording.noise(found, a.runs),
        tuple(map(_parting, parted[:LISTED])), len(parted), len(found.pairs),
        tuple(_steps(found)), tuple(_notes(found, a, b, orders)), failed,
    )  # fmt: skip


def _verdict(found: Comparison, a: Side, b: Side) -> tuple[Verdict, str, list[str]]:
    unseeded, parted = wording.unseeded(found), found.parted
    first = parted[0] if parted else None
    if unseeded and (first is None or found.noisy is None or _later(first, found.noisy, a.runs[0])):
        assert found.noisy is not None
        causes = wording.causes(found.noisy, a.runs[:1], a.runs[1])
        return "not-comparable", unseeded, [*causes, "seed the program (torch.manual_seed), or give --seed 0"]
    if first is not None:
        return "parted", wording.headline(first, a.runs, b.runs[0], found.cut), wording.causes(first, a.runs, b.runs[0])
    if not found.pairs:
        return "not-comparable", "the two have nothing in common to compare", []
    steps = 1 + found.pairs[-1].step
    if all((p.distance or 0.0) <= EXACT for p in found.pairs):
        return "equal", f"A and B are equal in all that was compared, over {counted(steps, 'step')}", []
    return "within-noise", f"A and B agree over {counted(steps, 'step')}, within what counts as none", []


def _later(one: Pair, other: Pair, a: RunRecording) -> bool:
    """Whether one event comes after another, or is the same."""
    first, second = ((p.step, a.steps[p.step].index(p.a) if p.a is not None else -1) for p in (one, other))
    return first >= second


def _parting(pair: Pair) -> Parting:
    event = pair.event
    names = (pair.a.name if pair.a else "-", pair.b.name if pair.b else "-")
    return Parting(pair.step, event.kind, *names, event.call, pair.distance, pair.limit, wording.place(pair))


def _steps(found: Comparison) -> list[StepDistances]:
    most: dict[tuple[int, str], float] = {}
    for pair in found.pairs:
        group = GROUP.get(pair.event.kind)
        if group is not None and pair.distance is not None:
            most[pair.step, group] = max(most.get((pair.step, group), 0.0), pair.distance)
    steps = dict.fromkeys(p.step for p in found.pairs)
    at = most.get
    return [StepDistances(t, at((t, "activations")), at((t, "gradients")), at((t, "updates")), found.noise.get(t)) for t in steps]


def _notes(found: Comparison, a: Side, b: Side, orders: BisectOrders) -> list[str]:
    """What was not compared, and why."""
    notes = []
    for side, run, only in (("A", a.runs[0], found.matching.only_a), ("B", b.runs[0], found.matching.only_b)):
        if run.compiled:
            hint = "with TORCH_COMPILE_DISABLE=1 in the environment they are"
            notes.append(f"{side} is compiled at {_listed(run.compiled)}: activations inside were not seen; {hint}")
        if only:
            notes.append(f"in {side} only, and not compared: {_listed(only)}")
        if run.unread:
            notes.append(
                f"{counted(run.unread, 'tensor')} of {side} could not be read, and {'was' if run.unread == 1 else 'were'} not compared"
            )
        if run.full:
            notes.append(f"the recording of {side} reached its largest size after {counted(len(run.steps), 'step')}")
        elif len(run.steps) < orders.steps and not run.code:
            notes.append(f"{side} took {counted(len(run.steps), 'step')}")
        if run.code:
            notes.append(f"{side} ended with exit code {run.code} after {counted(len(run.steps), 'step')}")
        if run.failure:
            notes.append(f"recording {side} failed: {run.failure}")
    if found.cut:
        notes.append("the batch is divided differently: weights, their gradients and updates were compared, but not activations")
    return notes


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(wording.name_of(n) for n in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
