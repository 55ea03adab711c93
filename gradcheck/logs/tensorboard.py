"""Event files of TensorBoard: scalars, read without tensorflow. A file is a row of length-prefixed protocol buffers."""

import struct
from collections.abc import Iterator
from pathlib import Path

from gradcheck.logs.protobuf import fields, first, floats, signed, text
from gradcheck.logs.table import Table

FORMAT = "event files of TensorBoard"
_FLOAT, _DOUBLE = 1, 2  # DataType of a TensorProto


def read(paths: list[Path]) -> Table:
    """The scalars of all these files, as if they were one."""
    table = Table(FORMAT)
    for path in sorted(paths):
        for record in _records(path.read_bytes()):
            _add(table, record)
    return table


def _records(data: bytes) -> Iterator[bytes]:
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
