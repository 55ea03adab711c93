"""Small pictures as PNG, with a palette: one byte a cell, and about a tenth of that when packed."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence

Color = tuple[int, int, int]


def data_url(rows: Sequence[bytes], palette: Sequence[Color], transparent: int) -> str:
    """A PNG of `rows` of palette indices as a data: URL. `transparent`: the index that shows what is behind."""
    width, height = len(rows[0]), len(rows)
    alpha = bytes(0 if i == transparent else 255 for i in range(transparent + 1))
    png = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", bytes(channel for color in palette for channel in color))
        + _chunk(b"tRNS", alpha)
        + _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + b64encode(png).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
