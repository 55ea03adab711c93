"""What one run of a program left: its events in order, step by step, as fingerprints; and the file of several such runs. No torch here."""

import base64
import gzip
import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gradcheck import files
from gradcheck.errors import SavedRunError
from gradcheck.saved_run import shaped

SKETCH = 8  # projections of a tensor
LARGEST = 150_000  # events of a run: some 20 MB as a file
SCHEMA = 1
KIND = "gradcheck recording"

# weight, buffer: before the first step. backward: the gradient at a layer's output. gradient: of a parameter, after a backward pass.
# edited: of a parameter, where it is another one when the step is taken. state: a buffer after the step.
Kind = Literal["weight", "buffer", "input", "forward", "loss", "backward", "gradient", "edited", "update", "state"]


@dataclass(frozen=True)
class Print:
    """What is kept of a tensor. `digest`: of its bits, "" if they mean nothing; `sketch`: projections on random signs."""

    shape: tuple[int, ...]
    dtype: str
    digest: str
    norm: float
    sketch: tuple[float, ...]


@dataclass(frozen=True)
class Event:
    """Something that a run computed. `call`: the how-manieth of its kind and name in the step; `note`: "eval" for a layer in that mode."""

    kind: Kind
    name: str
    call: int
    print: Print
    note: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.kind, self.name, self.call


@dataclass
class LayerFacts:
    """A layer as it was at its first call."""

    type: str
    settings: str  # its own description: `(64,), eps=1e-05`
    place: str  # train.py:14, "" where that is not known
    holds: bool  # other layers


@dataclass
class RunRecording:
    """One run. `steps[t]`: its events; `random[t]`: digests of the states of the generators by name when the step began;
    `samples[t]`: digests of the samples that went in."""

    steps: list[list[Event]] = field(default_factory=list)
    random: list[dict[str, str]] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)
    layers: dict[str, LayerFacts] = field(default_factory=dict)
    settings: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)  # of a parameter's optimizer, as they change
    world: int = 1  # processes that train together
    compiled: list[str] = field(default_factory=list)  # layers that torch.compile hides
    unread: int = 0  # tensors whose numbers could not be read
    full: bool = False  # the largest size was reached
    code: int = 0  # with which the program ended; 0 where it was ended after its last step
    failure: str = ""


_Row = tuple[Kind, str, int, tuple[int, ...], str, str, str, str]  # an event in the file


@dataclass
class _Plain(RunRecording):
    """As the file has it."""

    steps: list[list[_Row]] = field(default_factory=list)  # type: ignore[assignment]


def save(runs: Sequence[RunRecording], path: Path) -> None:
    """Raises SavedRunError where the file cannot be written."""
    document = {"kind": KIND, "schema_version": SCHEMA, "runs": [as_plain(r) for r in runs]}
    try:
        files.write(files.place(str(path)), gzip.compress(json.dumps(document).encode(), 6, mtime=0))
    except (OSError, RuntimeError) as error:
        raise SavedRunError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}", hint="give another path after --save"
        ) from error


def load(path: Path) -> list[RunRecording]:
    """Raises SavedRunError for anything but a recording."""
    hint = "gradcheck bisect COMMAND --save FILE writes one; gradcheck diff compares saved runs and logs"
    try:
        document = json.loads(_unpacked(files.content(path)))
        if document["kind"] != KIND:
            raise ValueError
        if document["schema_version"] > SCHEMA:
            raise SavedRunError(f"{path} was written by a newer gradcheck", hint="update gradcheck")
        return [of_plain(r) for r in document["runs"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, zlib.error, struct.error) as error:
        raise SavedRunError(f"{path} is not a recording of a run", hint=hint) from error


def _unpacked(data: bytes) -> bytes:
    """Raises OSError for what unfolds to more than any file may have."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(files.LARGEST + 1)
    if len(found) > files.LARGEST:
        raise OSError
    return found


def as_plain(run: RunRecording) -> dict[str, Any]:
    kept = {k: v for k, v in vars(run).items() if k not in ("steps", "layers")}
    return kept | {"layers": {k: asdict(v) for k, v in run.layers.items()}, "steps": [[_event(e) for e in step] for step in run.steps]}


def of_plain(plain: dict[str, Any]) -> RunRecording:
    """Raises ValueError and struct.error."""
    found = shaped(_Plain, plain)
    steps = [[_of_event(e) for e in step] for step in found.steps]
    return RunRecording(**vars(found) | {"steps": steps})


def _event(event: Event) -> list[Any]:
    p = event.print
    numbers = base64.b85encode(struct.pack(f"<{1 + SKETCH}d", p.norm, *p.sketch)).decode()
    return [event.kind, event.name, event.call, list(p.shape), p.dtype, p.digest, numbers, event.note]


def _of_event(plain: _Row) -> Event:
    kind, name, call, shape, dtype, digest, numbers, note = plain
    norm, *sketch = struct.unpack(f"<{1 + SKETCH}d", base64.b85decode(numbers))
    return Event(kind, name, call, Print(shape, dtype, digest, norm, tuple(sketch)), note)
