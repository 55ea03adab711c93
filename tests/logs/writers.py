"""Logs as other programs write them, from columns of numbers."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Columns = Mapping[str, Sequence[float]]


def falling(points: int = 200, seed: int = 0, tail: float = 0.02) -> list[float]:
    """A loss that falls from 2.3 to 0.3, with noise."""
    generator = random.Random(seed)
    return [2 * math.exp(-4 * i / points) + 0.3 + tail * generator.gauss(0, 1) for i in range(points)]


def json_lines(path: Path, columns: Columns) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(json.dumps({"step": i, **dict(zip(columns, row, strict=True))}) for i, row in enumerate(rows)))
    return path


def csv(path: Path, columns: Columns, separator: str = ",") -> Path:
    rows = (separator.join(map(str, (i, *row))) for i, row in enumerate(zip(*columns.values(), strict=True)))
    path.write_text("\n".join([separator.join(["step", *columns]), *rows]) + "\n")
    return path


def trainer_state(path: Path, columns: Columns, every: int = 10) -> Path:
    """With an evaluation after every fifth record, in a record of its own, and the summary at the end."""
    history: list[dict[str, Any]] = []
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        record = dict(zip(columns, row, strict=True))
        evaluation = record.pop("eval_loss", None)
        history.append({"epoch": i / 10, "step": i * every, **record})
        if evaluation is not None and i % 5 == 0:
            history.append({"epoch": i / 10, "eval_loss": evaluation, "eval_runtime": 1.0, "step": i * every})
    history.append({"epoch": 9.0, "step": len(history) * every, "train_loss": 1.0, "train_runtime": 60.0})
    path.write_text(json.dumps({"global_step": 9, "log_history": history, "max_steps": 9}))
    return path


def lightning(path: Path, columns: Columns) -> Path:
    """Cells are empty where a number was not logged."""
    names = list(columns)
    lines = [",".join(["epoch", "step", *names])]
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        lines += [",".join(["0", str(i), *("" if j != k else repr(v) for j in range(len(names)))]) for k, v in enumerate(row)]
    path.write_text("\n".join(lines) + "\n")
    return path


# --------------------------------------------------------------------------------------------------- protocol buffers


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def event_file(path: Path, columns: Columns, tensors: bool = False) -> Path:
    """As TensorBoard's: a simple value, or a tensor of one number."""
    out = b""
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        for name, number in zip(columns, row, strict=True):
            simple = _varint(2 << 3 | 5) + struct.pack("<f", number)
            tensor = _field(8, _field(1, 1) + _field(5, struct.pack("<f", number)))
            value = _field(1, name.encode()) + (tensor if tensors else simple)
            event = _varint(1 << 3 | 1) + struct.pack("<d", 0.0) + _field(2, i) + _field(5, _field(1, value))
            out += struct.pack("<Q", len(event)) + b"\0" * 4 + event + b"\0" * 4
    path.write_bytes(out)
    return path


def wandb(path: Path, columns: Columns, config: Mapping[str, Any] = {}, given: bool = False) -> Path:
    """Records in blocks of 32 KiB, cut where a block ends. `given`: the settings were given when the run began."""
    items = [_field(1, _field(1, k.encode()) + _field(16, json.dumps(v).encode())) for k, v in config.items()]
    records = [_field(17, _field(1, b"abc") + _field(4, b"".join(items))) if given else _field(5, b"".join(items))]
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        pairs = {"_step": i, **dict(zip(columns, row, strict=True))}
        history = b"".join(_field(1, _field(2, k.encode()) + _field(16, json.dumps(v).encode())) for k, v in pairs.items())
        records.append(_field(1, i) + _field(2, history))
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for record in records:
        first = True
        while first or record:
            left = 32768 - len(out) % 32768
            if left < 7:
                out += b"\0" * left
                left = 32768
            part, record = record[: left - 7], record[left - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            out += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    path.write_bytes(bytes(out))
    return path


def mlflow(folder: Path, columns: Columns, params: Mapping[str, str] = {}) -> Path:
    for name, values in columns.items():
        place = folder / "metrics" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"170000 {v} {i}\n" for i, v in enumerate(values)))
    (folder / "params").mkdir()
    for name, text in params.items():
        (folder / "params" / name).write_text(text)
    return folder


def mlflow_database(path: Path, columns: Columns) -> Path:
    base = sqlite3.connect(path)
    base.execute("create table runs (run_uuid text, start_time int, lifecycle_stage text)")
    base.execute("create table metrics (key text, value real, timestamp int, run_uuid text, step int, is_nan int)")
    base.execute("create table params (key text, value text, run_uuid text)")
    base.executemany("insert into runs values (?, ?, ?)", [("old", 1, "active"), ("new", 2, "active"), ("gone", 3, "deleted")])
    base.execute("insert into metrics values ('loss', 9.0, 0, 'old', 0, 0)")
    rows = [(name, v, i, "new", i, 0) for name, values in columns.items() for i, v in enumerate(values)]
    base.executemany("insert into metrics values (?, ?, ?, ?, ?, ?)", rows)
    base.commit()
    base.close()
    return path
