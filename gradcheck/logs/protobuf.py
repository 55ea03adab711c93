"""As much of the wire format of protocol buffers as logs need."""

import struct

Field = bytes | int


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
