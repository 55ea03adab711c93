"""What trackers of experiments keep on this machine.

TensorBoard: event files. Weights & Biases: `run-ID.wandb`. MLflow: a folder with a file for each metric, or its database, of which the
newest run is read.
"""

import json
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.logs.table import Table, as_number

Field = bytes | int


# -------------------------------------------------- TensorBoard: a row of length-prefixed messages

_EVENT_FILES = "event files of TensorBoard"
_FLOAT, _DOUBLE = 1, 2  # DataType of a TensorProto


def read_events(paths: list[Path]) -> Table:
    """The scalars of all these files, as if they were one."""
    table = Table(_EVENT_FILES)
    for path in sorted(paths):
        for record in _events_in(path.read_bytes()):
            _add(table, record)
    return table


def _events_in(data: bytes) -> Iterator[bytes]:
    """Up to the end, or to where a killed program stopped writing."""
    place = 0
    while place + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        end = place + 12 + size
        if end + 4 > len(data):
            return
        yield data[place + 12 : end]
        place = end + 4


def _add(table: Table, record: bytes) -> None:
    event = fields(record)
    at = first(event, 2)
    step = signed(at) if isinstance(at, int) else 0
    for summary in event.get(5, ()):
        for value in fields(summary).get(1, ()):
            known = fields(value)
            number = _number(known)
            if number is not None:
                table.add(text(first(known, 1)), float(step), number)


def _number(value: dict[int, list[bytes | int]]) -> float | None:
    simple = first(value, 2)
    if simple is not None:
        return next(iter(floats(simple)), None)
    tensor = first(value, 8)
    if not isinstance(tensor, bytes):
        return None
    known = fields(tensor)
    kind, content = first(known, 1), first(known, 4)
    if kind == _FLOAT:
        found = floats(first(known, 5) or content or b"")
    elif kind == _DOUBLE:
        found = floats(first(known, 6) or content or b"", double=True)
    else:
        return None
    return found[0] if len(found) == 1 else None


# ------------------------------------------------------- Weights & Biases: a log of messages in blocks

_LOCAL_RUN = "a local run of Weights & Biases"
_MAGIC = b":W&B"
_BLOCK, _HEADER = 32768, 7
_HISTORY, _CONFIG, _RUN = 2, 5, 17  # numbers of fields in a Record
_GIVEN = 4  # in a run: the settings that `wandb.init` was given; later ones come by themselves
_KEY, _NESTED, _JSON = 1, 2, 16  # in an item of either


def read_wandb(path: Path) -> Table:
    """Raises ConfigError for a file that is not one of theirs."""
    data = path.read_bytes()
    if data[:4] != _MAGIC:
        raise ConfigError(f"{path} is not a run of Weights & Biases", hint="give the file run-ID.wandb, or its folder")
    table = Table(_LOCAL_RUN)
    rows = []
    for record in _records_in(data):
        known = fields(record)
        for history in known.get(_HISTORY, ()):
            rows.append(_items(history, 1))
        given = [config for run in known.get(_RUN, ()) for config in fields(run).get(_GIVEN, ())]
        for config in (*given, *known.get(_CONFIG, ())):
            table.settings |= _items(config, 1)
    table.add_rows(rows)
    return table


def _items(message: Any, number: int) -> dict[str, Any]:
    found = {}
    for item in fields(message).get(number, ()):
        known = fields(item)
        name = text(known[_KEY][0]) if _KEY in known else "/".join(map(text, known.get(_NESTED, ())))
        try:
            found[name] = json.loads(text(known[_JSON][0])) if _JSON in known else None
        except ValueError:
            continue
    return found


def _records_in(data: bytes) -> Iterator[bytes]:
    """The layout of LevelDB's logs: records lie in blocks, and go on in the next one where they do not fit."""
    place, parts = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        body = data[place + _HEADER : place + _HEADER + size]
        if len(body) < size or kind == 0:
            return
        place += _HEADER + size
        parts += body
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


# --------------------------------------------------------------------------------------------- MLflow

_MLFLOW = "a run of MLflow"
# Those that were not deleted, first those with a loss, and of these the newest.
_RUNS = """select run_uuid from runs where lifecycle_stage is not 'deleted' and run_uuid in (select run_uuid from metrics)
order by run_uuid in (select run_uuid from metrics where key like '%loss%') desc, start_time desc"""


def read_mlflow(folder: Path) -> Table:
    table = Table(_MLFLOW)
    for path in sorted(p for p in (folder / "metrics").rglob("*") if p.is_file()):
        name = path.relative_to(folder / "metrics").as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            words = line.split()
            if len(words) >= 2:
                step = as_number(words[2]) if len(words) > 2 else None
                table.add(name, float(number) if step is None else step, words[1])
    for path in (folder / "params").glob("*") if (folder / "params").is_dir() else ():
        table.settings[path.name] = path.read_text(encoding="utf-8", errors="replace").strip()
    return table


def read_mlflow_database(path: Path) -> Table:
    """Raises ConfigError for a database that is not MLflow's."""
    table = Table(_MLFLOW)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            found = [name for (name,) in base.execute(_RUNS)] or [""]
            if len(found) > 1:
                table.format = f"{_MLFLOW}, the newest of {len(found)}"
            rows = base.execute("select key, step, value, is_nan from metrics where run_uuid = ? order by step, timestamp", found[:1])
            for key, step, value, is_nan in rows:
                table.add(key, float(step), float("nan") if is_nan else value)
            table.settings |= dict(base.execute("select key, value from params where run_uuid = ?", found[:1]))
    except sqlite3.Error as error:
        raise ConfigError(f"{path} is not a database of MLflow: {error}", hint="name mlflow.db, or the folder of a run") from error
    return table


# --------------------------------------------- as much of the wire format of protocol buffers as these need


def fields(data: Field | None) -> dict[int, list[Field]]:
    """The fields of a message by their number: varints as int, all else as bytes. What is cut off is left out."""
    found: dict[int, list[Field]] = {}
    if not isinstance(data, bytes):
        return found
    place = 0
    try:
        while place < len(data):
            key, place = _varint(data, place)
            number, wire = key >> 3, key & 7
            value: Field
            if wire == 0:
                value, place = _varint(data, place)
            else:
                size, place = (8, place) if wire == 1 else (4, place) if wire == 5 else _varint(data, place)
                value, place = data[place : place + size], place + size
            found.setdefault(number, []).append(value)
    except IndexError:
        pass
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[place]
        place += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, place
        shift += 7


def first(found: dict[int, list[Field]], number: int) -> Field | None:
    values = found.get(number)
    return values[0] if values else None


def signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def text(value: Field | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def floats(value: Field, *, double: bool = False) -> tuple[float, ...]:
    """Packed numbers."""
    size = 8 if double else 4
    data = value if isinstance(value, bytes) else b""
    return struct.unpack(f"<{len(data) // size}{'d' if double else 'f'}", data[: len(data) // size * size])
