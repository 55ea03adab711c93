"""Runs that Weights & Biases keeps locally: `run-ID.wandb`, a log of protocol buffers in blocks, or the older `wandb-history.jsonl`."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.logs.protobuf import fields, text
from gradcheck.logs.table import Table

FORMAT = "a local run of Weights & Biases"
_MAGIC = b":W&B"
_BLOCK, _HEADER = 32768, 7
_HISTORY, _CONFIG, _RUN = 2, 5, 17  # numbers of fields in a Record
_GIVEN = 4  # in a run: the settings that `wandb.init` was given; later ones come by themselves
_KEY, _NESTED, _JSON = 1, 2, 16  # in an item of either


def read(path: Path) -> Table:
    """Raises ConfigError for a file that is not one of theirs."""
    data = path.read_bytes()
    if data[:4] != _MAGIC:
        raise ConfigError(f"{path} is not a run of Weights & Biases", hint="give the file run-ID.wandb, or its folder")
    table = Table(FORMAT)
    rows = []
    for record in _records(data):
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


def _records(data: bytes) -> Iterator[bytes]:
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
